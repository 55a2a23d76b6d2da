"""What can go wrong between page and server, said in sentences, with a way on."""

from __future__ import annotations

import json
import re

from web_browser import wait_for
from web_server import WAIT_S, Answer, Refusal


def test_api_key(page, server):
    page.until(lambda: page.find("#model").text == "toy-model")  # what comes next asks for the key, not the start
    server.key = "sesame"
    page.send("Hello")
    page.until(lambda: page.find("#key-dialog").is_displayed(), "no key was asked for")
    page.keys("wrong")
    page.press("Use this key")
    page.until(lambda: page.find("#key-reason").text == "The server refused this API key.", "no word on the wrong key")
    page.keys("sesame")
    page.press("Use this key")
    page.shows("Certainly.")
    page.idle()
    assert page.questions == ["Hello"] and len(page.answers) == 1
    assert page.js("return JSON.stringify(localStorage)").find("sesame") == -1  # the key is for this tab only
    page.reload()
    page.ask("Still known?")
    page.shows("Certainly.")


def test_key_asked_at_the_start_can_be_cancelled(page, server):
    server.key = "sesame"
    page.reload()
    page.until(lambda: page.find("#key-dialog").is_displayed(), "no key was asked for")
    page.press("Cancel")
    page.send("Hello")
    page.until(lambda: page.find("#key-dialog").is_displayed())
    page.press("Cancel")
    assert page.note().startswith("This server asks for an API key.")
    page.press("Enter the API key")
    page.keys("sesame")
    page.press("Use this key")
    page.shows("Certainly.")
    assert page.find("#model").text == "toy-model"


KEEP_NOTES = """
    window.notes = [];
    const look = () => document.querySelectorAll('.turn .note').forEach((e) => window.notes.push(e.innerText));
    new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
"""


def test_busy_server_is_asked_again(page, server):
    busy = {"message": "The queue is full.", "code": "rate_limit_exceeded"}
    server.next(Refusal(429, busy, {"Retry-After": "1"}), Refusal(429, busy, {"Retry-After": "600"}))
    page.js(KEEP_NOTES)  # the first is there for one second only
    page.send("Me too")
    page.until(lambda: re.search(r"in (600|5\d\d) s", page.note()), "it did not ask again by itself")
    assert "The server is busy. Asking again in 1 s." in "\n".join(page.js("return window.notes"))
    page.press("Ask now")
    page.shows("Certainly.")
    assert len(server.bodies) == 3
    server.next(Refusal(429, busy, {"Retry-After": "600"}))
    page.idle()
    page.send("And again")
    page.until(lambda: page.note().startswith("The server is busy."))
    page.press("Stop")
    page.idle()
    assert page.note() == "Stopped before the first word."
    server.next(Refusal(429, busy))  # without a time
    page.ask("Once more")
    assert page.note().startswith("The server is busy with other requests. Try again in a moment.")


REFUSALS = [
    (
        400,
        {"message": "The prompt has 9000 tokens", "code": "context_length_exceeded"},
        "no longer fits the model's context",
    ),
    (
        400,
        {"message": "top_p: must be at most 1", "code": "invalid_value"},
        "refused the request (400). Top_p: must be at most 1.",
    ),
    (404, {"message": "There is no such model here", "code": "model_not_found"}, "There is no such model here."),
    (413, {"message": "too large"}, "larger than the server accepts"),
    (
        500,
        {"message": "The server failed on this request; its log says why."},
        "The server failed on this request; its log says why.",
    ),
    (503, {"message": "shutting down"}, "shutting down or not ready yet"),
]


def test_refusals(page, server):
    for status, error, sentence in REFUSALS:
        server.next(Refusal(status, error))
        page.press("New conversation")
        page.ask("Hello")
        assert sentence in page.note() and page.button("Try again"), status
        page.press("Try again")
        page.shows("Certainly.")
        assert len(page.answers) == 1 and not page.note(), status
        page.idle()


def test_broken_connection(page, server):
    answer = server.next(Answer("As far as", held=True))
    page.send("Hello")
    page.shows("As far as")
    answer.cut()
    page.until(lambda: page.note().startswith("The connection broke before the answer was complete."))
    assert page.answers == ["As far as"]
    page.reload()
    assert page.answers == ["As far as"] and page.note().startswith("The connection broke")
    page.press("Try again")
    page.shows("Certainly.")


def test_error_in_the_stream(page, server):
    server.next(Answer("Some text", error={"message": "the device was lost", "type": "server_error"}))
    page.ask("Hello")
    assert page.answers == ["Some text"] and "The device was lost." in page.note()
    server.next(Answer("More", error={"message": "x", "code": "service_unavailable"}))
    page.press("Try again")
    page.shows("More")
    page.until(lambda: "shutting down or not ready yet" in page.note())


def test_server_gone(page, server):
    page.ask("Hello")
    server.server.should_exit = True
    server.thread.join(WAIT_S)
    page.send("Still there?")
    page.until(lambda: page.note().startswith("The server cannot be reached."))
    assert page.button("Try again")
    assert page.js("return document.getElementById('said').textContent").startswith("The server cannot be reached.")


def test_server_gone_at_the_start(page):
    """The page itself can come out of the browser's store while its server is away."""
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/v1/models"]})
    page.reload()
    page.until(lambda: page.notice().startswith("The server cannot be reached."))
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    page.press("Try again", "#notice")
    page.until(lambda: page.find("#model").text == "toy-model" and not page.notice())


def test_storage_that_is_full(page, tmp_path):
    """IndexedDB refuses: the conversation goes on, and a sentence says that it will not be kept."""
    page.js("IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError'); }")
    page.ask("Hello")
    page.shows("Certainly.")
    page.until(lambda: "could not store this conversation" in page.notice())
    file = tmp_path / "x.json"
    message = {"id": "n", "parent": None, "role": "user", "content": "x"}
    conversation = {"id": "a", "title": "Imported", "leaf": "n", "nodes": [message]}
    file.write_text(json.dumps({"format": "mlcrt-conversations", "version": 1, "conversations": [conversation]}))
    page.find("#import-file").send_keys(str(file))
    page.until(lambda: "Imported" in page.titles())
    page.until(lambda: not page.js("return document.getElementById('import-file').value"), "the import did not end")
    assert "could not store this conversation" in page.notice()  # and no word of what was imported instead


def test_streams_in_odd_pieces(page):
    """Server-sent events as the standard allows them: any line ends, comments, several data lines, cut anywhere."""
    text = ': hi\r\ndata: {"a":\r\ndata: 1}\r\n\r\nevent: x\ndata:é😀\n\ndata: last\r\rdata\n\nid: 3\n\ndata: cut off'
    script = """
        const { serverSentEvents } = await load('api.js');
        const bytes = new TextEncoder().encode(arguments[0]);
        const out = [];
        for (const step of [1, 2, 3, 7, 1000]) {
            const body = new ReadableStream({ start(controller) {
                for (let at = 0; at < bytes.length; at += step) controller.enqueue(bytes.slice(at, at + step));
                controller.close();
            } });
            const events = [];
            for await (const data of serverSentEvents(body)) events.push(data);
            out.push(events);
        }
        return out;
    """
    for events in page.module(script, text):
        assert events == ['{"a":\n1}', "é😀", "last", ""]


def test_retry_after_as_a_date(page):
    script = (
        "const { waitOf } = await load('api.js'); return arguments[0].map((h) => waitOf(h, Date.parse(arguments[1])))"
    )
    now = "Wed, 21 Oct 2015 07:28:00 GMT"
    headers = ["5", "0", "100000", "Wed, 21 Oct 2015 07:28:09 GMT", "Wed, 21 Oct 2015 07:20:00 GMT", "soon", None]
    assert page.module(script, headers, now) == [5, 1, 600, 9, 1, None, None]


def test_busy_without_end_gives_up(page, server):
    server.next(*[Refusal(429, {"message": "full"}, {"Retry-After": "1"})] * 6)
    page.js("const real = setTimeout; window.setTimeout = (f, ms, ...a) => real(f, ms === 1000 ? 0 : ms, ...a)")
    page.send("Hello")
    wait_for(lambda: len(server.bodies) == 6, "it did not ask six times")
    page.idle()
    assert page.note().startswith("The server is busy with other requests.") and page.button("Try again")
