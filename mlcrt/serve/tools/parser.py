"""Reading tool calls out of streamed text, character by character.

A format is a generator that is sent one character at a time and "" at the end, so what comes out cannot depend on how
the text was cut. Text that may yet become a call is held back; the arguments of a call pass through as they come.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass

Steps = Generator[None, str, None]  # sent characters
Next = Generator[None, str, str]  # sent characters, returns one that it did not use
SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", *_ARGUMENTS, "type", "id")


@dataclass(frozen=True)
class Text:
    """Ordinary text of the answer."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The call number `index` (from 0) of function `name` begins."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """A further piece of the JSON text of call `index`."""

    index: int
    text: str


Event = Text | CallStart | Arguments


class ToolParser:
    """Feed it the text of one answer; it returns what became certain.

    `steps(parser)` is the format. `known` are the names of the functions: where a format has no marker in front of a
    call, only these make one. Raises nothing, whatever the text.
    """

    def __init__(self, steps: Callable[[ToolParser], Steps], known: Collection[str] = ()):
        self.known = known
        self.calls = 0
        self._events: list[Event] = []
        self._space = ""  # held back: it goes if a call follows
        self._after_call = False
        self._held: list[str] | None = None
        self._queue: deque[str] = deque()
        self._steps = steps(self)
        next(self._steps)

    def feed(self, text: str) -> list[Event]:
        self._queue.extend(text)
        self._run()
        return self._take()

    def finish(self) -> list[Event]:
        """The text is over."""
        with contextlib.suppress(StopIteration):
            self._steps.send("")
            while self._queue:  # what was held came back as text
                self._run()
                self._steps.send("")
        if self._space and not self.calls:
            self._add(Text(self._space))
        self._space = ""
        return self._take()

    def _run(self) -> None:
        while self._queue:
            char = self._queue.popleft()
            if self._held is not None:
                self._held.append(char)
            self._steps.send(char)

    # -- for formats

    def text(self, text: str) -> None:
        """Pass `text` on; whitespace waits for what follows it, and next to a call it is dropped."""
        if self._after_call:
            text = text.lstrip(SPACE)
            self._after_call = not text
        solid = text.rstrip(SPACE)
        if solid:
            self._add(Text(self._space + solid))
            self._space = ""
        self._space += text[len(solid) :]

    def hold(self, already: str = "") -> None:
        """From here on (and `already` before) it may be a call, or turn out to be text."""
        self._held = [already]

    @property
    def holding(self) -> bool:
        """Whether what is held is not known to be a call."""
        return self._held is not None

    def release(self) -> None:
        """It was text. The character that came last is sent again."""
        held, self._held = self._held or [], None
        if len(held) > 1:
            self.back(held.pop())
        self.text("".join(held))

    def back(self, char: str) -> None:
        """Send `char` again next."""
        if char:
            self._queue.appendleft(char)

    def start(self, name: str) -> None:
        """It is a call of function `name`."""
        self._space, self._held, self._after_call = "", None, True
        self._add(CallStart(self.calls, name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that started last."""
        if text:
            self._add(Arguments(self.calls - 1, text))

    def _add(self, event: Event) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(event, Text) and isinstance(last, Text):
            self._events[-1] = Text(last.text + event.text)
        elif isinstance(event, Arguments) and isinstance(last, Arguments) and last.index == event.index:
            self._events[-1] = Arguments(event.index, last.text + event.text)
        else:
            self._events.append(event)

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def until(parser: ToolParser, opening: str, closing: str = "") -> Generator[None, str, str]:
    """Pass text on up to `opening` or `closing`, which is swallowed and returned; "" when the text ends before. Half a
    `closing` at the end is that of an answer cut off, and no text."""
    held = ""
    while True:
        char = yield
        if not char:
            parser.text("" if closing.startswith(held) else held)
            return ""
        held += char
        if held in (opening, closing):
            return held
        while held and not opening.startswith(held) and not closing.startswith(held):
            parser.text(held[0])
            held = held[1:]


def skip_space(also: str = "") -> Next:
    """The first character that is none of whitespace and `also`; "" at the end."""
    while True:
        char = yield
        if not char or char not in SPACE + also:
            return char


def matches(marker: str, first: str) -> Generator[None, str, bool]:
    """Whether `first` and what follows is `marker`."""
    seen = first
    while seen != marker:
        if not marker.startswith(seen):
            return False
        char = yield
        if not char:
            return False
        seen += char
    return True


def json_value(first: str, take: Callable[[str], None]) -> Next:
    """One JSON value that begins with `first`, character by character into `take`. Brackets and strings are followed,
    the rest is not checked. Returns the character after it; "" may also mean that the text ended inside."""
    take(first)
    depth = 1 if first in "{[" else 0
    inside = first == '"'
    while not depth and not inside:  # a number or a word
        char = yield
        if not char or char in ",}]" or char in SPACE:
            return char
        take(char)
    while depth or inside:
        char = yield
        if not char:
            return char
        take(char)
        if inside and char == "\\":
            char = yield
            if not char:
                return char
            take(char)
        elif char == '"':
            inside = not inside
        elif not inside:
            depth += (char in "{[") - (char in "}]")
    return (yield)


def call_object(parser: ToolParser, listed: bool = False) -> Next:
    """The rest of `{"name": …, "arguments": {…}}` ("parameters" does too), after its first brace.

    It starts the call when the name and the beginning of the arguments are there; if it never does (`parser.holding`),
    this was no call. `listed`: only known names make one, and nothing may stand in it that calls do not have. Returns
    the character after the object, or the one at which it stopped being one.
    """
    name: str | None = None
    pending: str | None = None  # arguments that came before the name
    char = yield from skip_space()
    while char == '"':
        key: list[str] = []
        char = yield from json_value(char, key.append)
        label = _string("".join(key))
        if listed and label not in _KEYS:
            return char
        if char and char in SPACE:
            char = yield from skip_space()
        if char != ":":
            return char
        first = yield from skip_space()
        if not first or first in ",:}]":
            return first
        value: list[str] = []
        if label in _ARGUMENTS and pending is None and parser.holding:
            if name is not None:
                parser.start(name)
            if first == "{" and name is not None:
                char = yield from json_value(first, parser.arguments)
            else:
                char = yield from json_value(first, value.append)
                pending = _as_object("".join(value))
                if name is not None:
                    parser.arguments(pending)
        else:
            char = yield from json_value(first, value.append)
            if label == "name" and name is None:
                name = _string("".join(value))
                if not name or (listed and name not in parser.known):
                    return char
                if pending is not None:
                    parser.start(name)
                    parser.arguments(pending)
        if char and char in SPACE:
            char = yield from skip_space()
        if char != ",":
            break
        char = yield from skip_space()
    if char != "}":
        return char
    if parser.holding and name:
        parser.start(name)
        parser.arguments("{}")
    return char if parser.holding else (yield)


def _string(text: str) -> str | None:
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _as_object(text: str) -> str:
    """Arguments that are no object: JSON inside a string is taken out of it, nothing is an empty object."""
    inner = _string(text)
    return (text if inner is None else inner) if text not in ("null", '""') else "{}"
