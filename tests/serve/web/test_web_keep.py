"""Conversations stay: across reloads, even in the middle of an answer, between tabs, out to a file and back."""

from __future__ import annotations

import json

from selenium.webdriver.common.keys import Keys
from web_browser import wait_for
from web_server import WAIT_S, Answer, ScriptedServer


def test_reload_keeps_everything(page, server):
    server.next(Answer("**Bold** answer.\n\n- one\n- two"))
    page.press("Settings")
    page.find("#system").send_keys("Be brief.")
    page.ask("Question")
    page.prompt.send_keys("not sent yet")
    before = page.answers
    page.reload()
    assert page.questions == ["Question"] and page.answers == before and page.all(".turn strong")
    assert page.prompt.get_attribute("value") == "not sent yet"
    assert page.titles() == ["Question"]
    page.prompt.send_keys(Keys.ENTER)
    wait_for(lambda: len(server.bodies) == 2, "nothing was sent")
    assert [m["role"] for m in server.bodies[1]["messages"]] == ["system", "user", "assistant", "user"]


def test_reload_in_the_middle_of_an_answer(page, server):
    answer = server.next(Answer("So far ", held=True))
    page.send("A long story")
    page.shows("So far")
    answer.say("so good")
    page.shows("So far so good")
    page.reload()  # at once: what was on the screen must be there again
    assert page.questions == ["A long story"] and page.answers == ["So far so good"]
    assert page.note().startswith("The page was closed while this answer arrived.")
    assert answer.left.wait(WAIT_S)
    server.next(Answer("The end."))
    page.press("Try again")
    page.shows("The end.")
    page.idle()
    page.press("Earlier version")
    page.shows("So far so good")


def test_killed_tab(page, server):
    """No event tells a page that its process dies; the answer up to then comes back with the next tab."""
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.open()
    answer = server.next(Answer("Before the crash", held=True))
    page.send("Hello")
    page.shows("Before the crash")
    page.until(lambda: page.js(KEPT, "Before the crash"), "the answer was not written down while it arrived")
    record = page.js("return Object.entries(localStorage).find(([k]) => k.startsWith('mlcrt.live.'))")
    page.driver.execute_cdp_cmd("Page.close", {})
    page.driver.switch_to.window(first)
    page.until(lambda: len(page.driver.window_handles) == 1)  # it writes no more
    # As if the process had died without a word, a while ago.
    stale = (
        "const [k, v] = arguments[0]; localStorage[k] = JSON.stringify({ ...JSON.parse(v), at: Date.now() - 60000 })"
    )
    page.js(stale, record)
    page.reload()
    page.find("#list .open").click()
    page.shows("Before the crash")
    assert answer.left.wait(WAIT_S)


ALIVE = """
    return Object.entries(localStorage).some(([key, record]) =>
        key.startsWith("mlcrt.live.") && Date.now() - JSON.parse(record).at < 8000);
"""
KEPT = "return JSON.stringify(localStorage).includes(arguments[0])"


def test_closed_tab_is_told_from_a_busy_one(page, server):
    """An answer of a closed tab is there at once in the next; one that still arrives elsewhere is left alone."""
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.open()
    answer = server.next(Answer("Still", held=True))
    page.send("Hello")
    page.shows("Still")
    page.until(lambda: page.js(ALIVE), "the tab did not write down what it receives")
    # A tab that is closed says so; the browser may end it before that is written, and then its record grows old.
    page.js("window.dispatchEvent(new PageTransitionEvent('pagehide'))")
    answer.say(" there")  # what still comes is kept, as coming from a tab that is gone
    page.until(lambda: page.js(KEPT, "Still there"))
    assert not page.js(ALIVE)
    page.js("window.dispatchEvent(new PageTransitionEvent('pageshow'))")
    page.until(lambda: page.js(ALIVE), "the tab that came back does not write on")
    second = page.driver.current_window_handle
    page.driver.switch_to.window(first)
    page.reload()
    page.find("#list .open").click()
    page.until(lambda: page.note().startswith("This answer is arriving in another tab"))
    page.driver.switch_to.window(second)
    answer.say(" and going")
    page.shows("Still there and going")
    page.until(lambda: page.js(KEPT, "Still there and going"))
    page.driver.close()
    page.driver.switch_to.window(first)
    page.until(lambda: not page.js(ALIVE), "the closed tab counts as alive")
    page.reload()
    page.shows("Still there and going")
    assert page.note().startswith("The page was closed while this answer arrived.")


def test_rename_delete_undo_search(page, server):
    for text, reply in (("Apples?", "Red fruit."), ("Boats?", "They float."), ("Cats?", "They purr.")):
        server.next(Answer(reply))
        page.ask(text)
        page.press("New conversation")
    assert page.titles() == ["Cats?", "Boats?", "Apples?"]
    page.press("Rename “Boats?”")
    page.keys(Keys.CONTROL, "a")
    page.keys("Ships", Keys.ENTER)
    assert "Ships" in page.titles() and page.focused() == "Ships"
    page.find("#search").send_keys("purr")
    assert page.titles() == ["Cats?"] and page.find(".passage").text == "They purr."
    page.find("#search").send_keys(Keys.ESCAPE)
    page.press("Delete “Cats?”")
    assert "Cats?" not in page.titles() and page.notice().startswith("“Cats?” was deleted.")
    page.press("Undo")
    page.until(lambda: "Cats?" in page.titles() and page.answers == ["They purr."])
    page.press("Delete “Cats?”")
    page.press("Delete “Apples?”")
    page.reload()
    assert page.titles() == ["Ships"]


def test_changes_cut_off_by_a_reload(page, server):
    """A reload aborts what IndexedDB has begun; here it never ends: what was shown comes back all the same."""
    for text in ("Apples?", "Boats?", "Cats?"):
        server.next(Answer("Yes."))
        page.ask(text)
        page.press("New conversation")
    page.js("""
        const real = IDBDatabase.prototype.transaction;
        IDBDatabase.prototype.transaction = function (table, mode) {
            if (mode !== "readwrite") return real.call(this, table, mode);
            const never = { get: () => ({}), put() {}, delete() {}, transaction: {} };
            return { objectStore: () => never };
        };
    """)
    page.press("Delete “Apples?”")
    page.press("Rename “Boats?”")
    page.keys(Keys.CONTROL, "a")
    page.keys("Ships", Keys.ENTER)
    for times in range(2):  # and what was recovered stays so
        page.reload()
        assert page.titles() == ["Cats?", "Ships"], times
        assert page.js("return Object.keys(localStorage).filter((key) => key.startsWith('mlcrt.pending.'))") == []


def test_change_of_a_crashed_tab_yields_to_a_later_one(page, server):
    """What a tab that is gone left undone is done, unless the conversation went on elsewhere since."""
    for text in ("Apples?", "Boats?"):
        server.next(Answer("Yes."))
        page.ask(text)
        page.press("New conversation")
    page.js("""
        for (const row of document.querySelectorAll("#list li")) {
            const at = row.innerText.includes("Boats") ? Date.now() - 60000 : 1;
            const record = { tab: "gone", at, id: row.dataset.id, conversation: null };
            localStorage["mlcrt.pending.gone." + row.dataset.id] = JSON.stringify(record);
        }
        localStorage["mlcrt.pending.gone.damaged"] = "{";
        const request = indexedDB.open("mlcrt");
        window.aged = false;
        request.onsuccess = () => {
            const table = request.result.transaction("conversations", "readwrite").objectStore("conversations");
            table.getAll().onsuccess = ({ target }) => {
                for (const conversation of target.result) table.put({ ...conversation, updated: Date.now() - 120000 });
            };
            table.transaction.oncomplete = () => { request.result.close(); window.aged = true; };
        };
    """)
    page.until(lambda: page.js("return window.aged"))
    page.reload()
    assert page.titles() == ["Apples?"]


def test_export_and_import(page, server, chromium):
    server.next(Answer("First **answer**."), Answer("Second."))
    page.ask("One")
    page.press("Regenerate")
    page.shows("Second.")
    page.idle()
    page.press("Export")
    wait_for(lambda: list(chromium.downloads.glob("mlcrt-conversations-*.json")), "nothing was exported")
    (file,) = chromium.downloads.glob("mlcrt-conversations-*.json")
    wait_for(lambda: file.read_bytes().endswith(b"}"), "the export did not end")
    data = json.loads(file.read_text())
    assert data["format"] == "mlcrt-conversations" and len(data["conversations"][0]["nodes"]) == 3
    page.find("#import-file").send_keys(str(file))
    page.until(lambda: "0 conversations were imported, 1 were here already" in page.notice())
    with ScriptedServer() as other:  # another address: nothing is stored for it
        page.open(other.url)
        assert page.titles() == []
        page.find("#import-file").send_keys(str(file))
        page.until(lambda: page.titles() == ["One"])
        page.find("#list .open").click()
        page.shows("Second.")
        page.press("Earlier version")
        page.shows("First answer.")
        page.leave()
    page.drain()
    file.unlink()


def test_files_that_cannot_be_imported(page, tmp_path):
    good = {
        "id": "a",
        "title": "t",
        "leaf": "n",
        "nodes": [{"id": "n", "parent": None, "role": "user", "content": "x"}],
    }
    whole = {"format": "mlcrt-conversations", "version": 1, "conversations": [good]}
    cases = {
        "not json": "This file is not JSON",
        "[]": "holds no conversations of this page",
        json.dumps({**whole, "version": 2}): "has version 2",
        json.dumps({**whole, "conversations": [good, {"id": "b"}]}): "Conversation 2 of the file is damaged",
        json.dumps(
            {**whole, "conversations": [{**good, "nodes": [{**good["nodes"][0], "parent": "n"}]}]}
        ): "hangs on none",
    }
    for text, expected in cases.items():
        file = tmp_path / "x.json"
        file.write_text(text)
        page.find("#import-file").send_keys(str(file))
        page.until(lambda expected=expected: expected in page.notice(), expected)
        assert page.titles() == []


def test_two_tabs(page, server):
    page.ask("From the first tab")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.open()
    assert page.titles() == ["From the first tab"]
    page.ask("From the second tab")
    page.until(lambda: not page.js(KEPT, "mlcrt.pending."), "the change was not confirmed")
    page.driver.close()
    page.driver.switch_to.window(first)
    page.until(lambda: page.titles() == ["From the second tab", "From the first tab"])


def test_answers_go_on_while_another_conversation_is_open(page, server):
    answer = server.next(Answer("Slowly", held=True))
    page.send("Slow one")
    page.shows("Slowly")
    page.press("New conversation")
    page.ask("Quick one")
    page.shows("Certainly.")
    answer.say(" but surely")
    answer.end()
    page.js("[...document.querySelectorAll('#list .open')].find((e) => e.textContent.includes('Slow')).click()")
    page.shows("Slowly but surely")
    page.idle()
    page.driver.back()
    page.shows("Certainly.")
