"""Watching the calls that a library's function makes: each kernel with its arguments, timed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlcrt.errors import MlcrtError

from .engine import _CACHE, _POSITION, _TOKEN, Engine

_CONTINUE, _SKIP = 0, 1  # what TVM's VM does with a call after its instrument was asked


@dataclass(frozen=True)
class Call:
    """One kernel call: seconds alone on the device, and (name, bytes, shape) of each tensor it was given.

    A name is a parameter's, "kv.LAYER" for a layer's K or V cache, or "" for everything else.
    """

    kernel: str
    seconds: float
    tensors: tuple[tuple[str, int, tuple[int, ...]], ...]


def _pass(*call) -> int:
    return _CONTINUE


class Observer:
    """A second instance of an engine's library, whose calls are timed one by one; no recorded graph is used.

    It works on the engine's own parameters and state: what it appends to the KV cache is not in `engine.tokens`. Use
    it in a `with` block, so that the library lets go of the engine.
    """

    def __init__(self, engine: Engine, dist: Path):
        self._engine, self._runtime = engine, engine.runtime
        library = self._runtime.load(Path(dist) / engine._entry["library"])
        if not hasattr(library, "set_instrument"):
            raise MlcrtError(f"kernels cannot be timed one by one on {engine.device}; leave out --profile")
        self._library, self._calls = library, []
        self._failure: MlcrtError | None = None
        self._watch = self._runtime.stopwatch()
        self._names = {t.data_ptr(): name for name, t in zip(engine._entry["parameters"], engine._params, strict=True)}
        self._names |= {t.data_ptr(): f"kv.{i // 2}" for i, t in enumerate(engine._state[_CACHE:])}
        library.set_instrument(self._instrument)

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._library.set_instrument(_pass)
        self._library = None

    @property
    def method(self) -> str:
        """How a call is timed, in words."""
        return self._watch.method

    def overhead(self, turns: int = 20) -> float:
        """Median seconds that an empty measurement shows."""
        return float(np.median([self._timed(lambda: None)[0] for _ in range(turns)]))

    def decode(self, length: int) -> list[Call]:
        """One decode step of token 0 after `length` tokens."""
        self._begin(length)
        engine = self._engine
        self._runtime.write(engine._state[_TOKEN], engine._token, 0)
        return self._run("decode", engine._state_bundle, engine._params)

    def prefill(self, tokens: Sequence[int]) -> list[Call]:
        """One call over at most `engine.chunk` tokens, from an empty cache."""
        self._begin(0)
        placed = self._runtime.place(np.array(tokens, np.int32))
        return self._run("prefill", placed, self._engine._state_bundle, self._engine._params)

    def _begin(self, length: int) -> None:
        self._runtime.write(self._engine._state[_POSITION], self._engine._position, length)

    def _run(self, name: str, *arguments) -> list[Call]:
        self._calls, self._failure = [], None
        try:
            self._library[name](*arguments)
        except Exception:  # TVM gives errors that pass through it another type
            if self._failure is None:
                raise
            raise self._failure from None
        return self._calls

    def _timed(self, call: Callable[[], Any], what: str = "an empty call") -> tuple[float, Any]:
        try:
            self._watch.start()
            result = call()
            return self._watch.stop(), result
        except MlcrtError as error:
            self._failure = MlcrtError(f"{what} cannot be timed ({error}); leave out --profile")
            raise self._failure from None

    def _instrument(self, function, symbol: str, before: bool, _result, *arguments) -> int:
        """Run a kernel here, in the VM's place, so that nothing but the kernel is within the measured time."""
        if not before or symbol.startswith("vm.builtin.") or not isinstance(function, self._runtime._ffi.Function):
            return _CONTINUE
        seconds, _ = self._timed(lambda: function(*arguments), symbol)
        tensors = tuple(self._describe(a) for a in arguments if hasattr(a, "data_ptr"))
        self._calls.append(Call(symbol, seconds, tensors))
        return _SKIP

    def _describe(self, tensor) -> tuple[str, int, tuple[int, ...]]:
        shape = tuple(int(d) for d in tensor.shape)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(str(tensor.dtype)).itemsize
        return self._names.get(tensor.data_ptr(), ""), size, shape
