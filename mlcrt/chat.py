"""ChatModule: a conversation with a compiled model, from Python.

with ChatModule("dist/SmolLM2-135M-Instruct-q4f16_1", temperature=0.2) as chat:
    print(chat.generate("What is a prime number?"))
    for piece in chat.stream("Name three of them."):
        print(piece, end="", flush=True)
    print(chat.stats())
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mlcrt.dist import is_dist, open_dist
from mlcrt.errors import MlcrtError, UsageError
from mlcrt.runtime.archive import read_archive, write_archive
from mlcrt.runtime.generate import Event, Generation
from mlcrt.runtime.sampling import SamplingParams
from mlcrt.runtime.stats import ChatStats, Usage
from mlcrt.runtime.tokenizer import ModelTokenizer
from mlcrt.select import describe_slots, has_library, require_device
from mlcrt.unpack import is_package, unpacked

Message = dict[str, Any]
Prompt = str | Sequence[Mapping[str, Any]]

# After a context shift at least this share of the context is free again, so that shifts stay rare.
_FREE_AFTER_SHIFT = 0.25


class ChatModule:
    """A model, its KV cache and the conversation so far.

    `model` is a compiled folder under dist/, a package of one (.tar.zst), or anything `mlcrt compile` takes (a Hub id,
    a Hugging Face folder, a .gguf file), which is compiled first. `context` is the number of tokens to hold (default:
    what the model was trained for, as far as the engine allows). `system` is the system message. `context_shift` drops
    the oldest turns, never the system message, when a conversation outgrows the context; otherwise that is an error or
    ends the answer.
    Other keywords are sampling settings (`SamplingParams`) for all answers; those not given come from the model's
    generation_config.json. Raises `MlcrtError`, for wrong settings `UsageError`.

    Only what is new is run through the model: the cached tokens that the next prompt begins with are kept.
    """

    def __init__(
        self,
        model: str | Path,
        device: str = "auto",
        context: int | None = None,
        *,
        quantization: str | None = None,
        system: str | None = None,
        context_shift: bool = False,
        dist_root: str | Path = "dist",
        report: Callable[[str], None] | None = None,
        **sampling: Any,
    ):
        base = SamplingParams().but(**sampling)  # names and values are checked before anything is loaded
        dist = resolve_model(model, quantization, device, Path(dist_root), report)
        from mlcrt.runtime.engine import Engine

        self.dist = dist
        self.engine = Engine(dist, device=device, context=context)
        self.device: str = self.engine.device
        try:
            self.tokenizer = ModelTokenizer(dist, self.engine.config.eos)
            self.sampling = base.but(**{**self.tokenizer.defaults, **sampling})
        except BaseException:
            self.engine.close()
            raise
        self.context_shift = context_shift
        self.last: Generation | None = None  # the latest answer, finished or not
        self._system = system
        self._messages: list[Message] = []
        self._known: list[tuple[str, list[int]]] = []  # the latest prompt, and with its answer: text and tokens
        self._active: Generator[Event, None, None] | None = None
        self._total = Usage()
        self._dropped = 0
        self.reset_chat()

    # -- the conversation

    @property
    def messages(self) -> list[Message]:
        """The conversation as the model sees it, a copy."""
        self._settle()
        return [dict(message) for message in self._messages]

    @property
    def system(self) -> str | None:
        """The system message. Setting it starts the conversation over."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        self._system = text
        self.reset_chat()

    def reset_chat(self) -> None:
        """Forget the conversation, but not the system message."""
        self._settle()
        self._messages = [{"role": "system", "content": self._system}] if self._system else []
        self._dropped = 0

    def generate(self, prompt: Prompt, stream: Callable[[str], None] | None = None, **sampling: Any) -> str:
        """Answer `prompt`: text is the user's next message, a list of messages replaces the conversation.

        `stream` is called with each piece of text. Sampling settings given here hold for this answer. If generation is
        broken off (Ctrl-C), what was said so far stays in the conversation; if it fails, the conversation is as before.
        """
        with closing(self.stream(prompt, **sampling)) as pieces:
            for piece in pieces:
                if stream is not None:
                    stream(piece)
        return self.last.text if self.last else ""

    def stream(self, prompt: Prompt, **sampling: Any) -> Iterator[str]:
        """`generate` as an iterator of pieces of text, none of them empty. Leaving it early ends the answer there."""
        with closing(self.events(prompt, **sampling)) as events:
            for event in events:
                if event.text:
                    yield event.text

    def events(self, prompt: Prompt, **sampling: Any) -> Generator[Event, None, None]:
        """`generate` token by token. Starting another answer ends this one where it is."""
        self._settle()
        params = self.sampling.but(**sampling)
        if isinstance(prompt, str):
            messages = [*self._messages, {"role": "user", "content": prompt}]
        else:
            messages = [dict(message) for message in prompt]
            if not messages or messages[-1].get("role") == "assistant":
                raise UsageError("A list of messages must end with one to be answered, not with the assistant's.")
        self._active = self._answer(messages, params)
        return self._active

    def regenerate(self, stream: Callable[[str], None] | None = None, **sampling: Any) -> str:
        """Answer the last user message again. Without `seed` the answer may differ."""
        self._settle()
        users = [i for i, message in enumerate(self._messages) if message["role"] == "user"]
        if not users:
            raise MlcrtError("There is no answer to generate again; ask something first.")
        return self.generate(self._messages[: users[-1] + 1], stream, **sampling)

    def benchmark_generate(self, prompt: str, generate_length: int, **sampling: Any) -> str:
        """Answer `prompt`, outside the conversation, with exactly `generate_length` tokens; `stats()` has the speed."""
        self._settle()
        before = self._messages
        fixed = {"max_tokens": generate_length, "ignore_eos": True, "stop": ()}
        try:
            return self.generate([{"role": "user", "content": prompt}], **{**sampling, **fixed})
        finally:
            self._messages = before

    def _settle(self) -> None:
        """End an answer that somebody began to iterate and left."""
        active, self._active = self._active, None
        if active is not None:
            active.close()

    def _answer(self, messages: list[Message], params: SamplingParams) -> Generator[Event, None, None]:
        """Generate for `messages`, which with the answer become the conversation; on failure it is as before."""
        before, self._messages = self._messages, messages
        try:
            text, prompt = self._prompt()
            if not params.ignore_eos:
                params = params.but(stop=(*params.stop, *self.tokenizer.template.stop))
            on_full = self._shift if self.context_shift else None
            generation = Generation(self.engine, self.tokenizer, prompt, params, on_full=on_full)
        except BaseException:
            self._messages = before
            raise
        self.last = generation
        keep = False
        try:
            yield from generation
            keep = True
        except (KeyboardInterrupt, GeneratorExit):
            keep = bool(generation.generated)
            raise
        finally:
            self._total.add(generation.usage)
            if not keep:
                self._messages = before
            else:
                self._messages = [*self._messages, {"role": "assistant", "content": generation.text}]
                self._known = [(text, prompt)]
                if self.tokenizer.decode(generation.generated) == generation.text:
                    self._known.append((text + generation.text, [*prompt, *generation.generated]))

    def _prompt(self) -> tuple[str, list[int]]:
        """The rendered conversation and its tokens, with the oldest turns dropped first if that is allowed."""
        text = self.tokenizer.template.render(self._messages)
        tokens = self.tokenizer.encode_after(text, self._known)
        if self.context_shift and len(tokens) >= self.engine.context:
            while len(tokens) > self.engine.context * (1 - _FREE_AFTER_SHIFT) and self._drop_turn():
                text = self.tokenizer.template.render(self._messages)
                tokens = self.tokenizer.encode(text)
        return text, tokens

    def _shift(self, generated: list[int]) -> list[int] | None:
        """Drop turns until a quarter of the context is free again; the prompt then goes on with `generated`."""
        tokens = None
        while self._drop_turn():
            tokens = [*self.tokenizer.encode(self.tokenizer.template.render(self._messages)), *generated]
            if len(tokens) <= self.engine.context * (1 - _FREE_AFTER_SHIFT):
                break
        return tokens

    def _drop_turn(self) -> bool:
        """Drop the oldest question with its answer; false if the latest question is all there is."""
        users = [i for i, message in enumerate(self._messages) if message["role"] == "user"]
        if len(users) < 2:
            return False
        self._messages = self._messages[: users[0]] + self._messages[users[1] :]
        self._dropped += 1
        return True

    # -- figures

    def stats(self) -> ChatStats:
        """Figures of the latest answer and of all, as a dict that prints as readable text."""
        return ChatStats(
            model=self.dist.name,
            device=self.device,
            context=self.engine.context,
            used=len(self.engine.tokens),
            dropped=self._dropped,
            last=self.last.usage if self.last else Usage(),
            total=self._total,
            finish_reason=self.last.finish_reason if self.last else None,
            memory=self.engine.memory,
        )

    # -- sessions

    def save(self, path: str | Path) -> None:
        """Write the conversation and the KV cache to one file, from which `load` goes on without running it again."""
        self._settle()
        state = {"model": self.dist.name, "messages": self._messages, "system": self._system, "known": self._known}
        write_archive(Path(path), state, self.engine.save)

    def load(self, path: str | Path) -> None:
        """Go on from a file that `save` wrote with the same model. On failure the conversation is as before."""
        self._settle()
        state = read_archive(Path(path), self.engine.restore)
        self._messages, self._system, self._dropped = state["messages"], state["system"], 0
        self._known = state["known"]

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.close()

    def __enter__(self) -> ChatModule:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def resolve_model(
    model: str | Path,
    quantization: str | None,
    device: str,
    dist_root: Path,
    report: Callable[[str], None] | None = None,
) -> Path:
    """The compiled folder for `model`, compiled now if it has to be: from its source, or for another target."""
    target = re.sub(r":\d+$", "", device)  # cuda:1 is the second device of target cuda
    report = report or (lambda line: print(line, file=sys.stderr))
    if is_package(model):
        return _from_package(Path(model), quantization, target, report)
    for path in (Path(model), dist_root / model):
        if is_dist(path):
            dist = open_dist(path)
            manifest = dist.manifest
            if quantization not in (None, manifest.get("quantization")):
                raise UsageError(
                    f"{path} is compiled already, as {manifest.get('quantization')}; "
                    f"name the original model to have it as {quantization}."
                )
            if has_library(dist, target):
                return path
            model = path
            break
    require_device(device)
    from mlcrt.compile import ensure_compiled

    return Path(
        ensure_compiled(str(model), quantization=quantization, target=target, dist_root=dist_root, report=report)
    )


def _from_package(model: Path, quantization: str | None, target: str, report: Callable[[str], None]) -> Path:
    """The unpacked folder of a package that has a library for `target` that runs here. Nothing is compiled."""
    dist = open_dist(unpacked(model, report))
    have = dist.manifest.get("quantization")
    if quantization not in (None, have):
        raise UsageError(f"{model} is quantised as {have}; package the model as {quantization} to have it so.")
    if not has_library(dist, target):
        require_device(target)
        where = "" if target == "auto" else f" as {target}"
        raise MlcrtError(
            f"{model} has no library that this machine can run{where} (it has: {describe_slots(dist)}); package it"
            f" again with one for it, such as --target {'cpu' if target == 'auto' else target}"
        )
    return dist.path
