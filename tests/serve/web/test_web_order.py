"""Things that happen in an unlucky order: storage, server or timers that are late, and tabs that act at once."""

from __future__ import annotations

from selenium.webdriver.common.keys import Keys
from web_server import WAIT_S, Answer

NODES = """
    const request = indexedDB.open("mlcrt");
    return await new Promise((resolve) => {
        request.onsuccess = () => {
            request.result.transaction("conversations").objectStore("conversations").getAll().onsuccess = ({ target }) => {
                request.result.close();
                resolve(target.result.map(({ title, nodes }) => [title, nodes.map((n) => [n.content, n.state])]));
            };
        };
    });
"""  # noqa: E501
PENDING = "return Object.keys(localStorage).filter((key) => key.startsWith('mlcrt.pending.')).length"
LATE_DATABASE = """
    const open = IDBFactory.prototype.open;
    IDBFactory.prototype.open = function (...given) {
        const late = {};
        const request = open.apply(this, given);
        request.onupgradeneeded = () => late.onupgradeneeded();
        request.onsuccess = () => window.opened = () => late.onsuccess();
        Object.defineProperty(late, "result", { get: () => request.result });
        return late;
    };
"""


def stored(page) -> dict[str, dict[str, str]]:
    """What IndexedDB holds: title → text of a message → its state."""
    page.until(lambda: page.js(PENDING) == 0, "a change was not confirmed")
    return {title: {content: state for content, state in nodes} for title, nodes in page.module(NODES)}


def test_a_database_that_opens_late(page, server):
    """What is typed, sent and set before the page knows what it stored belongs to the conversation of the address."""
    page.ask("First")
    page.js("""
        sessionStorage["mlcrt.prompt"] = "a draft, ";
        localStorage["mlcrt.settings"] = JSON.stringify({ seed: 7, system: "Be brief." });
    """)
    with page.before_the_page(LATE_DATABASE):
        page.driver.refresh()
        page.until(lambda: page.js("return Boolean(window.opened)"), "the page opened no database")
        page.prompt.send_keys("finished", Keys.ENTER)
        page.keys(Keys.ESCAPE, Keys.CONTROL, ".")
        page.find("#set-top_k").send_keys("5")
        assert server.bodies[1:] == [] and page.find("#set-seed").get_attribute("value") == "7"
        page.js("window.opened()")
    page.until(lambda: len(server.bodies) == 2, "nothing was sent")
    page.idle()
    assert page.questions == ["First", "a draft, finished"] and page.titles() == ["First"]
    assert page.js("return JSON.parse(localStorage['mlcrt.settings'])") == {
        "seed": 7,
        "system": "Be brief.",
        "top_k": 5,
    }


def test_storage_that_never_answers(page, server):
    """Neither the question nor the answer waits for IndexedDB, and both are there again after a reload."""
    page.js("""
        const real = IDBDatabase.prototype.transaction;
        const never = { get: () => ({}), put() {}, delete() {}, transaction: {} };
        IDBDatabase.prototype.transaction = function (table, mode) {
            return mode === "readwrite" ? { objectStore: () => never } : real.call(this, table, mode);
        };
    """)
    answer = server.next(Answer("Half", held=True))
    page.send("Question")
    page.shows("Half")
    answer.end()
    page.idle()
    assert page.js(PENDING) == 1
    page.reload()
    assert page.questions == ["Question"] and page.answers == ["Half"] and page.note() == ""
    assert stored(page) == {"Question": {"Question": "done", "Half": "done"}}


def test_models_that_come_late(page, server):
    """The list of models: neither Stop nor the chosen model depend on when it comes."""
    server.models = ("toy-model", "other-model")
    page.reload()
    page.until(lambda: page.find("#model").text == "toy-model")
    page.press("Settings")
    page.find("#model-choice").send_keys("other")
    page.ask("Hello")
    server.models_held = True
    page.reload()
    page.press("Settings")
    page.find("#set-seed").send_keys("3")
    page.press("New conversation")
    page.js("localStorage.removeItem('mlcrt.settings')")
    page.press("New conversation")  # nothing says which model it is for, so the request waits for the list
    page.send("Anyone?")
    page.press("Stop")
    page.idle()
    assert page.note() == "Stopped before the first word." and len(server.bodies) == 1
    page.js("[...document.querySelectorAll('#list .open')].find((e) => e.textContent === 'Hello').click()")
    server.models_held = False
    page.until(lambda: page.find("#model").text == "other-model")
    page.ask("Again")
    assert server.bodies[1]["model"] == "other-model" and server.bodies[1]["seed"] == 3


def test_a_late_drawing_is_of_the_newest_answer(page, server):
    """The drawing that a stopped answer asked for shows the first words of the one that took its place."""
    server.next(Answer("Old", held=True))
    page.send("Question")
    page.shows("Old")
    page.js("const real = setTimeout; window.setTimeout = (f, ms, ...a) => real(f, ms === 40 ? 1000 : ms, ...a)")
    server.next(Answer("New. Words", held=True))
    page.js("document.querySelector('.turn.user .edit').click()")
    page.keys(" again", Keys.ENTER)
    assert page.note() == "Reading the prompt"  # at once, not when something was stored
    page.shows("New. Words")
    assert page.spoken() == ["New."]
    page.press("Stop")
    page.idle()


def test_two_tabs_in_one_conversation(page, server):
    """Each tab receives an answer, one renames and sets something meanwhile: nothing of it is lost."""
    page.ask("Root")
    first, address = page.driver.current_window_handle, page.driver.current_url
    here = server.next(Answer("Here", held=True))
    page.send("From here")
    page.shows("Here")
    page.driver.switch_to.new_window("tab")
    page.screen()
    page.open(address)
    there = server.next(Answer("There", held=True))
    page.js("document.querySelector('.turn.user .edit').click()")
    page.keys(" of it", Keys.ENTER)
    page.shows("There")
    page.press("Rename “Root of it”")
    page.keys(Keys.CONTROL, "a")
    page.keys("Tree", Keys.ENTER)
    page.press("Settings")
    page.find("#set-seed").send_keys("3")
    second = page.driver.current_window_handle
    page.driver.switch_to.window(first)
    page.until(lambda: page.titles() == ["Tree"], "the new title did not come over")
    assert page.questions == ["Root", "From here"] and page.answers[-1] == "Here"
    here.say(" it is")
    here.end()
    page.shows("Here it is")
    page.idle()
    page.driver.switch_to.window(second)
    there.end()
    page.idle()
    assert page.questions == ["Root of it"] and page.answers == ["There"]
    page.press("Earlier version", ".turn.user")
    page.until(lambda: page.answers == ["Certainly.", "Here it is"], "the other tab's answer did not come over")
    messages = {"Root", "Certainly.", "From here", "Here it is", "Root of it", "There"}
    assert stored(page) == {"Tree": dict.fromkeys(messages, "done")}
    page.driver.close()
    page.driver.switch_to.window(first)
    page.until(lambda: page.find("#set-seed").get_property("value") == "3", "the setting did not come over")
    page.ask("On")
    assert server.bodies[-1]["seed"] == 3  # set in the other tab
    assert stored(page)["Tree"].keys() == messages | {"On"}


def test_deleted_in_another_tab(page, server):
    """A conversation stays deleted though an answer to it was arriving elsewhere; that one is stopped."""
    page.ask("Kept")
    page.press("New conversation")
    answer = server.next(Answer("Long", held=True))
    page.send("Streaming")
    page.shows("Long")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.screen()
    page.open()
    page.press("Delete “Streaming”")
    page.until(lambda: page.js(PENDING) == 0)
    page.driver.close()
    page.driver.switch_to.window(first)
    assert answer.left.wait(WAIT_S), "the answer still arrives"
    page.idle()
    page.until(lambda: page.titles() == ["Kept"])
    assert page.answers == ["Long"] and stored(page).keys() == {"Kept"}


def test_duplicate_of_a_tab(page, server):
    """A browser's copy of a tab starts with what the tab keeps for its session, but is not that tab after a reload."""
    answer = server.next(Answer("One", held=True))
    page.send("Hello")
    page.shows("One")
    page.until(lambda: page.js("return JSON.stringify(localStorage).includes('One')"))
    first = page.driver.current_window_handle
    page.js("""
        const link = document.createElement("a");
        Object.assign(link, { href: location.href, target: "_blank", rel: "opener", id: "copy", textContent: "copy" });
        document.querySelector("#empty").before(link);
    """)
    page.find("#copy").send_keys(Keys.ENTER)
    page.until(lambda: len(page.driver.window_handles) == 2)
    page.driver.switch_to.window(next(h for h in page.driver.window_handles if h != first))
    page.ready()
    assert page.note().startswith("This answer is arriving in another tab")
    page.driver.switch_to.window(first)
    answer.say(" and two.")
    answer.end()
    page.shows("One and two.")
    page.driver.switch_to.window(next(h for h in page.driver.window_handles if h != first))
    page.shows("One and two.")
    page.driver.close()
    page.driver.switch_to.window(first)


def test_a_late_recovery_leaves_what_arrives_here(page, server):
    """The page looks again for tabs that are gone; by then it may be receiving answers of its own."""
    page.js("localStorage['mlcrt.live.other'] = JSON.stringify({ at: Date.now() + 1e6, answers: [] })")
    later = "const real = setTimeout; window.setTimeout = (f, ms, ...a) => ms > 8000 ? (window.again = f, 0) : real(f, ms, ...a)"  # noqa: E501
    with page.before_the_page(later):
        page.reload()
    answer = server.next(Answer("One", held=True))
    page.send("Hello")
    page.shows("One")
    page.until(lambda: page.js("return JSON.stringify(localStorage).includes('One')"))
    page.js("const { again } = window; window.again = null; again()")
    page.until(lambda: page.js("return Boolean(window.again)"), "the other tab is not waited for any longer")
    assert list(stored(page)["Hello"].values()) == ["done", "streaming"]
    answer.end()
    page.idle()
    assert page.answers == ["One"] and stored(page) == {"Hello": {"Hello": "done", "One": "done"}}


def test_an_answer_that_ends_while_the_page_is_left(page, server):
    """A page that the browser kept and brings back goes on where it was: with an answer that is complete."""
    answer = server.next(Answer("One", held=True))
    page.send("Hello")
    page.shows("One")
    page.js("""
        const { cancel } = ReadableStreamDefaultReader.prototype;
        ReadableStreamDefaultReader.prototype.cancel = function () { window.ended = true; return cancel.call(this); };
        window.dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true }));
    """)
    answer.end()
    page.until(lambda: page.js("return window.ended"))
    assert page.button("Stop")
    page.js("window.dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    page.idle()
    assert page.answers == ["One"] and stored(page) == {"Hello": {"Hello": "done", "One": "done"}}


def conversation(nodes: str, leaf: str, title: str = "t", **settings) -> dict:
    """`nodes`: "q f<q:streaming" is a message q and below it f in that state; in capitals those without a word."""
    found = []
    for part in nodes.split():
        name, _, rest = part.partition("<")
        parent, _, state = rest.partition(":")
        content = "" if name.isupper() else name
        found.append({"id": name.lower(), "parent": parent or None, "content": content, "state": state or "done"})
    more = {"id": "c", "title": title, "named": title != "t", "settings": settings, "updated": 0}
    return {"nodes": found, "leaf": leaf, **more}


# What this tab knew to be stored, what it has now, what is stored now, which answer it is receiving → what it has then.
MERGED = [
    # another try here in the place of an empty answer, which the store still has; and the same there
    (("q F<q", "f"), ("q g<q", "g"), ("q F<q", "f"), None, ("q g<q", "g")),
    (("q F<q", "f"), ("q F<q", "f"), ("q g<q", "g"), None, ("q g<q", "g")),
    (("q F<q", "f"), ("q F<q h<f", "h"), ("q g<q", "g"), None, ("q F<q h<f g<q", "h")),
    (("q F<q", "f"), ("q g<q", "g"), ("q F<q h<f", "h"), None, ("q g<q F<q h<f", "g")),
    (("q f<q", "f"), ("q f<q", "f"), ("q", "q"), None, ("q f<q", "f")),  # words are never lost
    # what is new there is shown below what is shown here, not instead of it
    (("q f<q", "f"), ("q f<q", "f"), ("q f<q h<f", "h"), None, ("q f<q h<f", "h")),
    (("q f<q", "f"), ("q f<q", "f"), ("q f<q g<q", "g"), None, ("q f<q g<q", "f")),
    (("q f<q", "f"), ("q f<q", "f"), ("q f<q h<f", "h"), "f", ("q f<q h<f", "f")),
    # an answer that ended counts more than one that arrives or was cut off, but not where it arrives
    (("q", "q"), ("q f<q:streaming", "f"), ("q f<q:stopped", "f"), None, ("q f<q:stopped", "f")),
    (("q", "q"), ("q f<q:streaming", "f"), ("q f<q:interrupted", "f"), "f", ("q f<q:streaming", "f")),
    (("q", "q"), ("q f<q:done", "f"), ("q f<q:interrupted", "f"), None, ("q f<q:done", "f")),
    # title and settings: who changed them; both: this tab
    (("q", "q"), ("q", "q"), ("q", "q", "there", 1), None, ("q", "q", "there", 1)),
    (("q", "q"), ("q", "q", "here", 1), ("q", "q"), None, ("q", "q", "here", 1)),
    (("q", "q"), ("q", "q", "here", 1), ("q", "q", "there", 2), None, ("q", "q", "here", 1)),
    (None, ("q h<q", "h", "here", 1), ("q f<q", "f", "there", 2), None, ("q h<q f<q", "h", "here", 1)),
]
MERGE = """
    const { baseOf, keepBase, take } = await load('merge.js');
    return arguments[0].map(([base, mine, stored, running]) => {
        keepBase(mine, base && baseOf(base));
        take(mine, stored, running);
        return mine;
    });
"""


def test_merging(page):
    def made(given):
        if given is None:
            return None
        nodes, leaf, title, seed = given if len(given) == 4 else (*given, "t", 0)
        return conversation(nodes, leaf, title, seed=seed)

    found = page.module(MERGE, [[*map(made, case[:3]), case[3]] for case in MERGED])
    for case, merged in zip(MERGED, found, strict=True):
        assert merged == made(case[4]), case
