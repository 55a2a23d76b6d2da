"""The page's files as they are served: headers, types, caching, and that everything they name is there."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest
from web_server import WAIT_S

from mlcrt.serve import page as page_module
from mlcrt.serve.page import CONTENT_SECURITY_POLICY, page_files, page_paths

FOLDER = Path(page_module.__file__).parent / "web"


def fetch(server, path: str, method: str = "GET", **headers: str):
    request = urllib.request.Request(server.url.rstrip("/") + path, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_every_file(server):
    types = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".woff2": "font/woff2",
             ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
             ".txt": "text/plain; charset=utf-8"}  # fmt: skip
    paths = page_paths()
    on_disk = {f.relative_to(FOLDER).as_posix() for f in FOLDER.rglob("*") if f.is_file() and f.suffix != ".md"}
    assert paths == {"/"} | {f"/web/{name}" for name in on_disk}
    for path in paths:
        status, headers, body = fetch(server, path)
        name = "index.html" if path == "/" else path.removeprefix("/web/")
        assert status == 200 and body == (FOLDER / name).read_bytes()
        assert headers["content-type"] == types[Path(name).suffix]
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"
        status, again, body = fetch(server, path, **{"If-None-Match": f'"other", W/{headers["etag"]}'})
        assert status == 304 and body == b"" and again["etag"] == headers["etag"]
        assert again["content-security-policy"] == CONTENT_SECURITY_POLICY
        status, head, body = fetch(server, path, "HEAD")
        assert status == 200 and body == b"" and head["content-length"] == str((FOLDER / name).stat().st_size)
        assert fetch(server, path, **{"If-None-Match": '"other"'})[0] == 200


@pytest.mark.parametrize("path", ["/web/", "/web/../page.py", "/web/%2e%2e/page.py", "/web/README.md", "/web/fonts",
                                  "/web//etc/passwd", "/web/index.html/", "/web/app.js%00.css"])  # fmt: skip
def test_nothing_else(server, path):
    status, headers, body = fetch(server, path)
    assert status == 404 and b"passwd" not in body and headers["x-content-type-options"] == "nosniff"
    assert fetch(server, path, "POST")[0] in (404, 405)


def test_policy_has_no_holes():
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert rules["default-src"] == "'none'" and rules["script-src"] == "'self'" and rules["style-src"] == "'self'"
    for word in ("unsafe", "*", "http:", "https:", "data:", "blob:"):
        assert word not in CONTENT_SECURITY_POLICY


class Markup(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_markup_is_strict():
    """Nothing inline, every address on this server and there, every id once and every reference to one of them."""
    tags = Markup((FOLDER / "index.html").read_text(encoding="utf-8")).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags:
        assert tag != "style" and "style" not in attributes and not [n for n in attributes if n.startswith("on")]
        if tag == "script":
            assert attributes["src"] in page_paths()
        if tag == "link":
            assert attributes["href"] in page_paths()
        for name in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
            assert attributes.get(name, ids[0]) in ids, (tag, attributes)


def test_scripts_name_only_what_is_there():
    files = page_files()
    for name, file in files.items():
        if name.endswith((".js", ".css", ".html")):
            text = file.body.decode()
            assert not [
                u
                for u in re.findall(r"https?://[^\s\"'`)<]+", text)
                if "w3.org" not in u and "$" not in u and "/[" not in u
            ], name
        if name.endswith(".js"):
            for imported in re.findall(r'from "\./([^"]+)"', text):
                assert imported in files, f"{name} imports {imported}"
            for sink in (
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "DOMParser",
                "eval(",
                "new Function",
            ):
                assert sink not in text, f"{name} uses {sink}"
        if name.endswith(".css"):
            for url in re.findall(r'url\("([^"]+)"\)', text):
                assert url in files, f"{name} names {url}"
