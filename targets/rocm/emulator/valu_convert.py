"""Conversions, packing and the mixed-precision fma of the VALU."""

from __future__ import annotations

import numpy as np

from .fetch import DTYPES
from .parser import Instruction, Kernel
from .rounding import fma32, to_int, toward_zero16
from .table import handles
from .vector import ENTRIES, Entry, entry, prepare_entry

F32, F16, U32 = np.float32, np.float16, np.uint32

entry("v_cvt_f32_f16", "f32", "f16", lambda a: np.asarray(a).astype(F32))
entry("v_cvt_f16_f32", "f16", "f32", lambda a: np.asarray(a).astype(F16))
entry("v_cvt_f32_u32", "f32", "u32", lambda a: np.asarray(a).astype(F32))
entry("v_cvt_f32_i32", "f32", "i32", lambda a: np.asarray(a).astype(F32))
entry("v_cvt_f16_u16", "f16", "u16", lambda a: np.asarray(a).astype(F16))
entry("v_cvt_f16_i16", "f16", "i16", lambda a: np.asarray(a).astype(F16))
entry("v_cvt_u32_u16", "u32", "u16", lambda a: np.asarray(a).astype(U32), transparent=True)
entry("v_cvt_i32_i16", "i32", "i16", lambda a: np.asarray(a).astype(np.int32), transparent=True)


def _to(kind: str, prepare=None):
    info = np.iinfo(DTYPES[kind])

    def apply(a):
        wide = np.asarray(a, np.float64)
        return to_int(wide if prepare is None else prepare(wide), info.min, info.max).astype(DTYPES[kind])

    return apply


for _out, _in in (("i32", "f32"), ("u32", "f32"), ("i16", "f16"), ("u16", "f16")):
    entry(f"v_cvt_{_out}_{_in}", _out, _in, _to(_out))
entry("v_cvt_floor_i32_f32", "i32", "f32", _to("i32", np.floor))
entry("v_cvt_nearest_i32_f32", "i32", "f32", _to("i32", lambda x: np.floor(x + 0.5)))
for _byte in range(4):
    entry(f"v_cvt_f32_ubyte{_byte}", "f32", "u32", lambda a, s=8 * _byte: ((a >> U32(s)) & U32(0xFF)).astype(F32))
# four signed bits → sixteenths
entry("v_cvt_off_f32_i4", "f32", "u32", lambda a: (((a & U32(15)).astype(np.int32) ^ 8) - 8).astype(F32) / F32(16))


def _pack(low, high) -> np.ndarray:
    """Two 16-bit arrays → uint32."""
    low, high = (np.asarray(x).view(np.uint16).astype(U32) for x in (low, high))
    return low | (high << U32(16))


entry("v_pack_b32_f16", "u32", "b16 b16", _pack, transparent=True,
      halves=lambda masks, literals, arguments: (masks[0][0], masks[1][0]))  # fmt: skip
entry("v_cvt_pk_rtz_f16_f32", "u32", "f32 f32", lambda a, b: _pack(toward_zero16(a), toward_zero16(b)))
entry("v_cvt_pkrtz_f16_f32", "u32", "f32 f32", lambda a, b: _pack(toward_zero16(a), toward_zero16(b)))


def _saturate(kind: str):
    info = np.iinfo(DTYPES[kind])
    return lambda a, b: _pack(*(np.clip(x, info.min, info.max).astype(DTYPES[kind]) for x in (a, b)))


entry("v_cvt_pk_i16_i32", "u32", "i32 i32", _saturate("i16"))
entry("v_cvt_pk_u16_u32", "u32", "u32 u32", _saturate("u16"))
for _name, _kind, _scale in (("i16", "i16", 32767.0), ("u16", "u16", 65535.0)):
    entry(f"v_cvt_pk_norm_{_name}_f32", "u32", "f32 f32", lambda a, b, k=_kind, s=_scale: _pack(
        *(np.rint(np.clip(np.nan_to_num(np.asarray(x, np.float64)), -1.0 if k == "i16" else 0.0, 1.0) * s)
          .astype(DTYPES[k]) for x in (a, b))))  # fmt: skip


# fma with each source float32, or a half of a register as float16 --------------------------------------------------
def _mix(mnemonic: str, out: str, half: str | None):
    function = fma32
    if out == "f16":

        def function(a, b, c):
            return fma32(a, b, c).astype(F16)  # the guide: rounded to float32 first

    # the entry proper depends on op_sel_hi; this one names the mnemonic for the tables and tests
    ENTRIES[mnemonic] = Entry(out, ("f32", "f32", "f32"), function)

    @handles(mnemonic)
    def binder(instruction: Instruction, kernel: Kernel):
        low = instruction.modifiers.get("op_sel", (0, 0, 0))
        is_half = instruction.modifiers.get("op_sel_hi", (0, 0, 0))
        kinds = tuple("f16" if h else "f32" for h in is_half)
        options = {k: v for k, v in instruction.modifiers.items() if k not in ("op_sel", "op_sel_hi")}
        plain = Instruction(mnemonic, instruction.operands, options, instruction.text, instruction.line)
        parts = ["h" if pick else "l" for pick in low]
        compute, commit = prepare_entry(Entry(out, kinds, function), plain, kernel, parts, half)

        def step(waves):
            commit(waves, compute(waves))

        return step


_mix("v_fma_mix_f32", "f32", None)
_mix("v_fma_mixlo_f16", "f16", "l")
_mix("v_fma_mixhi_f16", "f16", "h")
