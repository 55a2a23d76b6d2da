"""Reading values out of a model's `config.json`, so that a bad value becomes one sentence with the key in it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping

from mlcrt.errors import MlcrtError

LARGEST_SIZE = 1 << 31  # no dimension or position count of a real model needs more; keeps nonsense from allocating


class Fields:
    """A mapping of configuration keys with defaults, and typed access that raises MlcrtError.

    `where` starts every message ("config.json", "config.json: rope_scaling"). A key that is absent or null takes its
    default; a key with neither value nor default is an error.
    """

    def __init__(self, values: object, where: str, defaults: Mapping[str, object] | None = None):
        if not isinstance(values, Mapping):
            raise MlcrtError(f"{where} must be a JSON object, not {reprlib.repr(values)}.")
        self.values, self.where, self.defaults = values, where, defaults or {}

    def get(self, key: str) -> object:
        value = self.values.get(key)
        return self.defaults.get(key) if value is None else value

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def null(self, key: str) -> bool:
        """Whether the key is there and null, for keys where that means "none" rather than "the default"."""
        return key in self.values and self.values[key] is None

    def bad(self, key: str, expected: str) -> MlcrtError:
        """The error for a `key` whose value is not `expected`."""
        value = self.get(key)
        if value is None:
            return MlcrtError(f"{self.where} has no {key}, which must be {expected}.")
        return MlcrtError(f"{self.where}: {key} must be {expected}, not {reprlib.repr(value)}.")

    def size(self, key: str, largest: int = LARGEST_SIZE) -> int:
        """A positive integer up to `largest`."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= largest:
            raise self.bad(key, f"an integer from 1 to {largest}")
        return value

    def number(self, key: str, above: float = 0.0) -> float:
        """A finite number greater than `above`."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.bad(key, f"a number above {above:g}")
        try:
            result = float(value)
        except OverflowError:
            raise self.bad(key, f"a number above {above:g}") from None
        if not math.isfinite(result) or result <= above:
            raise self.bad(key, f"a number above {above:g}")
        return result

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if self.has(key) else None

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def choice(self, key: str, options: Mapping[str, object]):
        """The entry of `options` that the text value names."""
        value = self.get(key)
        if not isinstance(value, str) or value not in options:
            raise self.bad(key, f"one of {', '.join(options)}")
        return options[value]

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of `count` positive finite numbers."""
        value, expected = self.get(key), f"a list of {count} numbers above 0"
        if not isinstance(value, (list, tuple)) or len(value) != count:
            raise self.bad(key, expected)
        entries = Fields(dict(enumerate(value)), self.where)
        try:
            return [entries.number(i) for i in range(count)]
        except MlcrtError:
            raise self.bad(key, expected) from None

    def token(self, key: str, vocab: int) -> int | None:
        """A token id below `vocab`, or None where there is none. A list counts by its first entry."""
        ids = self.tokens(key, vocab)
        return ids[0] if ids else None

    def tokens(self, key: str, vocab: int) -> tuple[int, ...]:
        """Token ids below `vocab`: an integer or a list of integers; empty where the key is null or has no default."""
        value = None if self.null(key) else self.get(key)
        ids = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab for i in ids):
            raise self.bad(key, f"a token id below vocab_size {vocab}, or a list of them")
        return tuple(dict.fromkeys(ids))
