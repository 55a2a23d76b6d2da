"""A server whose model says what a test tells it to, over the real `mount_page`; in a thread of the test's process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from mlcrt.serve.page import mount_page

WAIT_S = 60  # seconds: far more than anything here takes
_PORTS: set[int] = set()


@dataclass
class Answer:
    """`text` goes out in `pieces` of words at once; then, with `held`, what the test says until it calls end() or
    cut() (the connection breaks off). `error`: the last event, instead of the end, as OpenAI's error object."""

    text: str = ""
    held: bool = False
    finish: str = "stop"
    error: dict | None = None
    events: asyncio.Queue = field(default_factory=asyncio.Queue)
    begun: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)  # the client went away
    loop: asyncio.AbstractEventLoop | None = None

    def say(self, text: str) -> None:
        self._put(("text", text))

    def end(self) -> None:
        self._put(("end", ""))

    def cut(self) -> None:
        self._put(("cut", ""))

    def _put(self, event: tuple[str, str]) -> None:
        assert self.begun.wait(WAIT_S), "the page never asked for this answer"
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


def new_to_the_browser(port: int) -> bool:
    """Whether no page of this run came from this port; from now on one does. What a page stores stays with the port,
    and the system hands out ports again."""
    new = port not in _PORTS
    _PORTS.add(port)
    return new


def listen() -> socket.socket:
    while True:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        if new_to_the_browser(listener.getsockname()[1]):
            return listener
        listener.close()


@dataclass
class Refusal:
    status: int
    error: dict
    headers: dict = field(default_factory=dict)


class ScriptedServer:
    """`plan`: what the next chat requests get, then `Answer("Certainly.")`. `bodies`: what was asked. `paths`: every
    request line, so that a test can show that nothing else was fetched. `key`: the API key, if one is needed.
    `models_held`: the list of models does not come yet."""

    def __init__(self, context: int | None = 2048, models: tuple[str, ...] = ("toy-model",)):
        self.plan: deque[Answer | Refusal] = deque()
        self.bodies: list[dict] = []
        self.paths: list[str] = []
        self.key: str | None = None
        self.models_held = False
        self.context, self.models = context, models
        self.server = uvicorn.Server(uvicorn.Config(self._app(), log_level="critical", lifespan="off"))
        listener = listen()
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)

    def __enter__(self) -> ScriptedServer:
        self.thread.start()
        deadline = time.monotonic() + WAIT_S
        while not self.server.started:
            assert time.monotonic() < deadline, "the test's server did not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(WAIT_S)

    def next(self, *planned: Answer | Refusal) -> Answer | Refusal:
        self.plan.extend(planned)
        return planned[-1]

    def _app(self):
        app = FastAPI()
        mount_page(app)

        @app.get("/v1/models")
        async def models() -> dict:
            while self.models_held and not self.server.should_exit:
                await asyncio.sleep(0.01)
            data = [{"id": name, "object": "model", "max_model_len": self.context} for name in self.models]
            return {"object": "list", "data": data}

        @app.post("/v1/chat/completions")
        async def chat(request: Request):
            self.bodies.append(await request.json())
            planned = self.plan.popleft() if self.plan else Answer("Certainly.")
            if isinstance(planned, Refusal):
                return JSONResponse({"error": planned.error}, planned.status, planned.headers)
            return StreamingResponse(_stream(planned, self.bodies[-1]), media_type="text/event-stream")

        async def recording(scope, receive, send) -> None:
            if scope["type"] == "http":
                self.paths.append(f"{scope['method']} {scope['path']}")
                given = dict(scope["headers"]).get(b"authorization", b"").decode()
                if self.key and scope["path"].startswith("/v1/") and given != f"Bearer {self.key}":
                    refusal = JSONResponse({"error": {"message": "no key", "code": "invalid_api_key"}}, 401)
                    await refusal(scope, receive, send)
                    return
            await app(scope, receive, send)

        return recording


async def _stream(answer: Answer, body: dict):
    """Chunks as OpenAI's API documents them, the usage in one of its own before [DONE]."""
    sent = 0

    def chunk(choices: list, **more) -> str:
        data = {"object": "chat.completion.chunk", "model": "toy-model", "choices": choices, **more}
        return f"data: {json.dumps(data)}\n\n"

    def piece(text: str) -> str:
        return chunk([{"index": 0, "delta": {"content": text}, "finish_reason": None}])

    answer.loop = asyncio.get_running_loop()
    answer.begun.set()
    try:
        yield chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        words = [answer.text[at : at + 7] for at in range(0, len(answer.text), 7)]
        for word in words:
            sent += 1
            yield piece(word)
        while answer.held:
            kind, text = await answer.events.get()
            if kind == "cut":
                raise ConnectionAbortedError
            if kind == "end":
                break
            sent += 1
            yield piece(text)
        if answer.error:
            yield f"data: {json.dumps({'error': answer.error})}\n\n"
            return
        yield chunk([{"index": 0, "delta": {}, "finish_reason": answer.finish}])
        prompt = sum(len(message["content"].split()) for message in body["messages"])
        usage = {"prompt_tokens": prompt, "completion_tokens": sent, "total_tokens": prompt + sent}
        yield chunk([], usage=usage)
        yield "data: [DONE]\n\n"
    except (asyncio.CancelledError, GeneratorExit):
        answer.left.set()
        raise
