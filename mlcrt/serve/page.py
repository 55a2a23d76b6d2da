"""The chat page: `mount_page(app)` serves the files of mlcrt/serve/web, `/` being its index.html.

The page is public and holds nothing secret: no API key may be asked for on `page_paths()`. It calls, on its own origin
only, GET /v1/models and POST /v1/chat/completions with `stream` and `stream_options.include_usage`, with the
key as `Authorization: Bearer …` once a 401 asked for one. See web/README.md for what it reads out of the answers.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import NamedTuple

from fastapi import FastAPI, Request, Response

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No script may turn a string into markup, so a slip of ours is an error and not a hole.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # kept by the browser, asked for anew with If-None-Match
}

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}


class PageFile(NamedTuple):
    body: bytes
    content_type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """Every file of the page by its path below mlcrt/serve/web, as 'fonts/OFL.txt'. Other kinds are left out."""
    files: dict[str, PageFile] = {}

    def walk(folder, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{prefix}{entry.name}/")
                continue
            content_type = CONTENT_TYPES.get("." + entry.name.rpartition(".")[2])
            if content_type:
                body = entry.read_bytes()
                etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
                files[prefix + entry.name] = PageFile(body, content_type, etag)

    walk(resources.files(__package__) / "web", "")
    return files


def page_paths() -> frozenset[str]:
    """The URL paths of the page, all of which must be reachable without an API key: '/', '/web/app.js', …"""
    return frozenset({"/", *(f"/web/{name}" for name in page_files())})


def mount_page(app: FastAPI) -> None:
    """Add `/` and `/web/…` to `app`, for GET and HEAD, outside its OpenAPI document.

    The files (some 400 kB) are read here once and looked up by name, so no request can reach another path.
    """
    files = page_files()

    def answer(request: Request, name: str) -> Response:
        found = files.get(name)
        if found is None:
            return Response("There is no such file.\n", 404, PAGE_HEADERS, "text/plain; charset=utf-8")
        headers = {**PAGE_HEADERS, "ETag": found.etag}
        if _matches(request.headers.get("if-none-match", ""), found.etag):
            return Response(status_code=304, headers=headers)
        return Response(found.body, headers=headers, media_type=found.content_type)

    async def index(request: Request) -> Response:
        return answer(request, "index.html")

    async def file(request: Request) -> Response:
        return answer(request, request.path_params["name"])

    app.add_api_route("/", index, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/web/{name:path}", file, methods=["GET", "HEAD"], include_in_schema=False)


def _matches(if_none_match: str, etag: str) -> bool:
    """RFC 9110, 13.1.2: a list of tags compared weakly, or '*'."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags
