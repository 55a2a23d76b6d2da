"""Quantisation schemes as data.

A weight [N, K] (out x in features) is cut into groups of 32 along K. Element k of a row is

    w = scale * (code - zero)                  symmetric: zero is the scheme's constant
    w = scale * code + min                     asymmetric: `min` is stored per group

Codes are packed little-end first into uint32 words along K: word i of a row holds elements i*per_word … in ascending
bit order. K is padded to whole groups with codes that decode to zero (or are multiplied by zero activations). A 3-bit
code is split into a 2-bit low plane (`codes`, 16 elements a word) and a 1-bit high plane (`high`, 32 a word), so no
code straddles a word. Scales and minima are float16, which makes GGUF's Q4_0, Q4_1 and Q8_0 representable bit for bit.

Names follow MLC-LLM's convention qWfA_L: W weight bits, A activation/KV/scale precision, L layout (0: KN, 1: NK).
"""

from __future__ import annotations

from dataclasses import dataclass

from mlcrt.errors import UsageError

GROUP = 32


@dataclass(frozen=True)
class Scheme:
    """How one weight is stored. `bits` 16 and 32 are plain floats; `zero` None with `bits` < 16 means stored minima."""

    name: str
    bits: int
    dtype: str  # float type of activations and KV cache on devices that compute in it
    zero: int | None = None
    layout: str = "NK"
    group: int = GROUP

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def float_storage(self) -> str:
        return "float32" if self.bits == 32 else "float16"

    def row_major(self) -> Scheme:
        """The scheme with the same codes in NK order: what kernels see after KN parts were turned at load."""
        if self.layout == "NK":
            return self
        wanted = (self.bits, self.zero, self.dtype, "NK")
        same = (s for s in SCHEMES.values() if (s.bits, s.zero, s.dtype, s.layout) == wanted)
        return next(same)

    @property
    def asymmetric(self) -> bool:
        return not self.is_float and self.zero is None

    @property
    def plane_bits(self) -> int:
        """Bits of one element inside a word of `codes` (the low plane for 3-bit codes)."""
        return 2 if self.bits == 3 else self.bits

    @property
    def per_word(self) -> int:
        return 32 // self.plane_bits

    def tensors(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Stored parts of a [rows, columns] weight: suffix → (shape, dtype), in a fixed order."""
        if self.is_float:
            return {"": ((rows, columns), self.float_storage)}
        groups = -(-columns // self.group)
        words = groups * self.group // self.per_word

        def shape(n: int, k: int) -> tuple[int, ...]:
            return (n, k) if self.layout == "NK" else (k, n)

        parts = {"codes": (shape(rows, words), "uint32")}
        if self.bits == 3:
            parts["high"] = (shape(rows, groups), "uint32")
        parts["scales"] = (shape(rows, groups), "float16")
        if self.asymmetric:
            parts["mins"] = (shape(rows, groups), "float16")
        return parts

    def bits_per_weight(self) -> float:
        """Stored bits per element, scales and minima included."""
        if self.is_float:
            return float(self.bits)
        return self.bits + (32 if self.asymmetric else 16) / self.group


SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("q0f32", 32, "float32"),
        Scheme("q0f16", 16, "float16"),
        Scheme("q8f16_1", 8, "float16", zero=128),
        Scheme("q4f16_0", 4, "float16", zero=8, layout="KN"),
        Scheme("q4f16_1", 4, "float16", zero=8),
        Scheme("q4f32_1", 4, "float32", zero=8),
        Scheme("q3f16_1", 3, "float16", zero=4),
        Scheme("q4f16_asym", 4, "float16", zero=None),
    )
}

KEEP = "gguf"  # not a scheme: keep each GGUF tensor's own codes where a scheme above can hold them
QUANTIZATIONS = tuple(SCHEMES) + (KEEP,)


def scheme(name: str) -> Scheme:
    """The scheme called `name`; UsageError names the known ones."""
    try:
        return SCHEMES[name]
    except KeyError:
        raise UsageError(f"unknown quantization '{name}': choose one of {', '.join(QUANTIZATIONS)}") from None
