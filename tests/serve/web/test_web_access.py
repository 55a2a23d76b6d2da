"""The page for everyone: axe-core, keyboard alone, what a screen reader hears, phones, calm motion, dark and light."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys
from web_browser import unavailable
from web_server import WAIT_S, Answer

RICH = """# Title

Some *text* with a [link](http://example.org/a) and `code`.
A_very_long_word_that_has_no_place_to_break_anywhere_in_it_0123456789_0123456789.

1. one
   - two
- [x] done

> quoted

```python
def f(x):  # a comment that is long enough to need scrolling on any phone there is, and then some more of it
    return "string" + str(42)
```

| a column | another column | a third column | a fourth column | a fifth one |
|---|---|---|---|---|
| 1 | 2 | 3 | 4 | https://example.org/a/very/long/address/that/does/not/break |

$$x^2$$ ends."""
STATES = ("empty", "conversation", "editing", "error", "settings", "sidebar", "help", "key")


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core 4.12 out of the package axe-playwright-python, whose own needs (Playwright) are not wanted."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        unavailable("axe-core is not there (pip install --no-deps axe-playwright-python==0.1.8)")
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


def bring_to(page, server, state: str) -> None:
    if state in ("conversation", "editing"):
        server.next(Answer(RICH))
        page.ask("What can you show?")
        page.ask("A second, much longer question. " * 12)
    if state == "editing":
        page.press("Edit")
    if state == "error":
        server.next(Answer("Some", error={"message": "it broke", "type": "server_error"}))
        page.ask("What can you show?")
        page.js("document.querySelector('.regenerate')?.click()")
        page.idle()
    if state == "settings":
        page.press("Settings")
        page.find("#set-top_p").send_keys("7")
    if state == "sidebar":
        page.ask("What can you show?")
        page.press("New conversation") if page.find("#new").is_displayed() else page.press("Conversations")
    if state == "help":
        page.keys(Keys.CONTROL, "/")
        page.until(lambda: page.find("#help").is_displayed())
    if state == "key":
        server.key = "k"
        page.reload()
        page.until(lambda: page.find("#key-dialog").is_displayed())


@pytest.mark.parametrize("width, dark", [(320, False), (1280, True)], ids=["phone-light", "desktop-dark"])
def test_axe_finds_nothing(page, server, axe, width, dark):
    page.screen(width=width, height=760, touch=width == 320, dark=dark, still=True)
    for state in STATES if width == 320 else ("conversation", "error", "settings", "help", "key"):
        server.key = None
        page.js("sessionStorage.clear(); localStorage.clear()")
        page.open()
        bring_to(page, server, state)
        page.js(axe)
        script = """
            const done = arguments[0];
            axe.run(document, { resultTypes: ['violations'] }).then(({ violations, passes }) => done({
                ran: passes.length,
                bad: violations.map((r) =>
                    `${r.id}: ${r.help}: ${r.nodes.map((n) => n.html.slice(0, 120) + n.failureSummary)}`),
            }));
        """
        result = page.driver.execute_async_script(script)
        assert result["ran"] > 15 and not result["bad"], (state, json.dumps(result["bad"], indent=1))


SMALL = """
    return [...document.querySelectorAll('button, input, select, summary')].filter((e) => {
        const box = e.getBoundingClientRect();
        return e.checkVisibility() && (box.height < 43.9 || box.width < 43.9);
    }).map((e) => e.outerHTML.slice(0, 99));
"""
WIDE = """
    const out = [];
    for (const e of document.querySelectorAll('body *')) {
        const box = e.getBoundingClientRect();
        const scrolls = e.closest('pre, .table, .unseen, select');
        if (!scrolls && box.width && e.checkVisibility() && (box.right > innerWidth + 1 || box.left < -1)) out.push(e.outerHTML.slice(0, 99));
        const inner = e.closest('.words, .note, .margin, .hint, dialog') && getComputedStyle(e).display !== 'inline';
        if (!scrolls && inner && e.scrollWidth > e.clientWidth + 1) out.push('too wide inside: ' + e.outerHTML.slice(0, 99));
    }
    return [document.documentElement.scrollWidth, document.getElementById('scroller').scrollWidth > document.getElementById('scroller').clientWidth, out];
"""  # noqa: E501


@pytest.mark.parametrize("state", STATES)
def test_phone_has_no_sideways_scroll_and_room_for_fingers(page, server, state):
    """44 px by WCAG 2.2's enhanced rule for everything that a finger is to hit; links within text are exempt."""
    page.screen(width=320, height=568, touch=True)
    bring_to(page, server, state)
    width, sideways, out = page.js(WIDE)
    assert width <= 320 and not sideways and not out, out
    assert page.js(SMALL) == []


def test_phone_with_the_keyboard_up(page, server):
    """An on-screen keyboard leaves some 250 px: the box must stay on the screen, and typing must work."""
    page.screen(width=360, height=640, touch=True)
    page.prompt.send_keys("One", Keys.ENTER, "two")  # Enter begins a new line there
    assert page.prompt.get_attribute("value") == "One\ntwo" and not server.bodies
    page.press("Send")
    page.shows("Certainly.")
    page.idle()
    page.screen(width=360, height=250, touch=True)
    page.prompt.send_keys("line\n" * 12)
    edges = "const b = document.querySelector('.box').getBoundingClientRect(); return [b.top, b.bottom, innerHeight]"
    top, bottom, height = page.js(edges)
    assert top >= 0 and bottom <= height == 250
    assert page.button("Send")


def test_keyboard_alone(page, server):
    """A visit without a mouse, by Tab order and shortcuts."""
    order = []
    page.js("document.querySelector('a, button, input, textarea').focus()")
    for _ in range(12):
        order.append(page.focused())
        outline = page.js("const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.outlineWidth")
        around = "const box = document.activeElement.closest('.box'); return box && getComputedStyle(box).boxShadow"
        box = page.js(around)
        assert outline.startswith("solid") or box, f"the focus does not show on {order[-1]}"
        if order[-1] == "Send":
            break
        page.keys(Keys.TAB)
    assert order == [
        "Skip to the message box", "New conversation", "Search conversations", "Export", "Import", "Keyboard",
        "Conversations", "Settings", "Message", "Send",
    ]  # fmt: skip
    page.keys(Keys.SHIFT, Keys.TAB)
    answer = server.next(Answer("Streaming", held=True))
    page.keys("Typed", Keys.ENTER)
    page.shows("Streaming")
    assert page.focused() == "Message"
    page.keys(Keys.ESCAPE)
    page.idle()
    assert page.note() == "Stopped." and answer.left.wait(WAIT_S)
    page.keys(Keys.UP)  # in the empty box: edit the last message
    assert page.focused() == "Edit your message"
    page.keys(Keys.CONTROL, "a")
    page.keys("Retyped", Keys.ENTER)
    page.shows("Certainly.")
    page.idle()
    page.keys(Keys.CONTROL, Keys.SHIFT, "o")
    page.until(lambda: page.questions == [] and page.focused() == "Message")
    page.keys("Other", Keys.ENTER)
    page.shows("Certainly.")
    page.idle()
    page.keys(Keys.CONTROL, "k")
    assert page.focused() == "Search conversations"
    page.keys("retyped", Keys.DOWN)
    page.until(lambda: page.titles() == ["Retyped"])
    page.keys(Keys.ENTER)
    page.until(lambda: page.questions == ["Retyped"])
    page.keys(Keys.CONTROL, ".")
    assert page.focused() == "Settings" and page.find("#settings").is_displayed()
    page.keys(Keys.TAB, Keys.TAB)
    assert page.focused() == "System prompt"
    page.keys(Keys.TAB, Keys.UP)
    assert page.find("#set-temperature").get_attribute("value") == "1.05"
    page.keys(Keys.ESCAPE)
    page.until(lambda: page.focused() == "Settings" and not page.find("#settings").is_displayed())
    page.keys(Keys.CONTROL, "/")
    page.until(lambda: page.find("#help").is_displayed())
    page.keys(Keys.ESCAPE)
    page.until(lambda: not page.find("#help").is_displayed())
    assert page.focused() == "Settings"


def test_drawer_on_a_phone_keeps_the_focus_inside(page):
    page.screen(width=360, height=640, touch=True)
    page.press("Conversations")
    assert page.find("#sidebar").is_displayed() and page.focused() == "New conversation"
    names = set()
    for _ in range(8):
        page.keys(Keys.TAB)
        names.add(page.focused())
    assert not names & {"Message", "Send", "Settings", "Conversations"}, names
    page.keys(Keys.ESCAPE)
    assert page.focused() == "Conversations" and not page.find("#sidebar").is_displayed()
    assert page.find("#open-sidebar").get_attribute("aria-expanded") == "false"


def test_screen_reader_hears_sentences(page, server):
    answer = server.next(Answer(held=True))
    page.send("Speak")
    for piece, heard in (
        ("The first", []),
        (" sentence has *stress*. The", ["The first sentence has stress."]),
        (" second costs 3.50 euros", ["The first sentence has stress."]),
        ("!\n\n```python\nprint(1)\nprint(2)\n```\n", None),
    ):
        answer.say(piece)
        page.until(lambda: page.find(".turn.assistant .answer").get_attribute("textContent"))
        if heard is not None:
            page.until(lambda heard=heard: page.spoken() == heard, f"{page.spoken()} instead of {heard}")
    page.until(
        lambda: " ".join(page.spoken()[1:]) == "The second costs 3.50 euros! Listing of 2 lines.", str(page.spoken())
    )
    answer.say("- last")
    answer.end()
    page.until(lambda: page.spoken()[-1:] == ["last"])
    said = page.find("#said")
    page.until(lambda: said.get_attribute("textContent").startswith("Answer complete: 5 tokens"))
    assert page.find("#spoken").get_attribute("aria-live") == "polite" and said.get_attribute("role") == "status"
    assert not page.all("#turns[aria-live], #turns [aria-live]")
    roles = {e.aria_role for e in page.all("main, nav, header, form, h1")}
    assert {"main", "navigation", "banner", "form", "heading"} <= roles


def test_motion_can_be_switched_off(page, server):
    answer = server.next(Answer("Moving", held=True))
    page.send("Hello")
    page.shows("Moving")
    moving = "return getComputedStyle(document.querySelector('.running .answer p'), '::after').animationName"
    assert page.js(moving) == "breathe"
    page.screen(still=True)
    assert page.js(moving) == "none"
    answer.end()
    page.idle()


def test_appearance(page):
    paper = "return getComputedStyle(document.documentElement).backgroundColor"
    light = page.js(paper)
    page.screen(dark=True)
    dark = page.js(paper)
    assert light != dark
    page.press("Settings")
    page.find("#theme").send_keys("Light")
    assert page.js(paper) == light
    page.reload()
    assert page.js(paper) == light


def test_scrolling_follows_only_at_the_end(page, server):
    server.next(Answer("\n\n".join(f"Paragraph {n}" for n in range(80))))
    page.ask("Long")
    at_end = "const s = document.getElementById('scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight < 3"
    page.until(lambda: page.js(at_end), "the end is not in view")
    answer = server.next(Answer("more", held=True))
    page.send("More")
    page.shows("more")
    page.js("document.getElementById('scroller').scrollTop = 100")
    page.until(lambda: page.find("#jump").is_displayed())
    answer.say("\n\nlines" * 20)
    whole = "return document.querySelector('.turn:last-child .answer').textContent.split(arguments[0]).length - 1"
    page.until(lambda: page.js(whole, "lines") == 20)
    assert page.js("return document.getElementById('scroller').scrollTop") == 100
    page.press("Go to the newest message")
    page.until(lambda: page.js(at_end))
    answer.say("\n\nlast" * 20)
    page.until(lambda: page.js(whole, "last") == 20 and page.js(at_end))
    answer.end()
    page.idle()
