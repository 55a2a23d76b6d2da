"""Integer, bit and move instructions of the VALU."""

from __future__ import annotations

import numpy as np

from .state import pack_mask
from .vector import entry

U32, U64, I64 = np.uint32, np.uint64, np.int64


def _pure(name: str, out: str, ins: str, function, **options) -> None:
    """An instruction that hands undefined lanes on instead of stopping."""
    entry(name, out, ins, function, transparent=True, **options)


# which halves of a result are defined ------------------------------------------------------------------------------
def _by_half(masks, literals, arguments):
    low, high = masks[0]
    for l, h in masks[1:]:  # noqa: E741
        low, high = low & l, high & h
    return low, high


def _and_halves(masks, literals, arguments):
    """A half that a literal clears is defined whatever the other operand holds."""
    low, high = _by_half(masks, literals, arguments)
    for literal in literals:
        if literal is not None:
            low = low if literal & 0xFFFF else np.full_like(low, ~low.dtype.type(0))
            high = high if literal >> 16 else np.full_like(high, ~high.dtype.type(0))
    return low, high


def _chosen(masks, literals, arguments):
    """v_cndmask: of the operand each lane takes."""
    (l0, h0), (l1, h1) = masks[:2]
    take = arguments[2]
    take = pack_mask(np.broadcast_to(take, (len(l0), take.shape[1])))
    return (l1 & take) | (l0 & ~take), (h1 & take) | (h0 & ~take)


def _shift_halves(left: bool):
    """Operands (amount, value): a constant shift by 16 or more drops a half."""

    def halves(masks, literals, arguments):
        low, high = masks[1]
        both = low & high & masks[0][0] & masks[0][1]
        amount = None if literals[0] is None else literals[0] & 31
        if amount is None or amount == 0:
            return both, both
        if amount >= 16:
            full = np.full_like(low, ~low.dtype.type(0))
            kept = low if left else high
            return (full, kept) if left else (kept, full)
        return (low, both) if left else (both, high)

    return halves


def _shift_into(position: int):
    """lshl_or, lshl_add: value << literal, combined with another; `position` is the shift amount's."""

    def halves(masks, literals, arguments):
        amount, other = literals[position], 3 - position
        both = masks[0][0] & masks[0][1] & masks[1][0] & masks[1][1] & masks[2][0] & masks[2][1]
        if amount is not None and amount & 31 >= 16:
            low = masks[other][0]
            return low, masks[0][0] & masks[other][1] & low
        return both, both

    return halves


def _perm_halves(masks, literals, arguments):
    """v_perm_b32 with a constant selector: only the selected halves count. Selector bytes 0–3 name the second
    operand."""
    (l0, h0), (l1, h1), _ = masks
    if literals[2] is None:
        both = l0 & h0 & l1 & h1
        return both, both
    result = []
    for part in (literals[2] & 0xFFFF, literals[2] >> 16):
        mask = np.full_like(l0, ~l0.dtype.type(0))
        for byte in (part & 0xFF, part >> 8):
            if byte < 8:
                mask = mask & ((l1, h1, l0, h0)[byte >> 1])
            elif byte < 12:
                mask = mask & ((h1, h1, h0, h0)[byte - 8] if byte & 1 else (l1, h1, l0, h0)[byte - 8])
        result.append(mask)
    return tuple(result)


def _bfe_halves(masks, literals, arguments):
    low, high = masks[0]
    both = low & high
    if literals[1] is not None and literals[2] is not None:
        first, last = literals[1] & 31, (literals[1] & 31) + (literals[2] & 31) - 1
        if last < 16:
            both = low
        elif first >= 16:
            both = high
    return both, both


def _mad64(masks, literals, arguments):
    factors = masks[0][0] & masks[0][1] & masks[1][0] & masks[1][1]
    first = factors & masks[2][0]
    return first, first & masks[2][1]


# moves and bits ----------------------------------------------------------------------------------------------------
_pure("v_mov_b32", "b32", "b32", lambda a: a, halves=_by_half)
_pure("v_mov_b16", "b16", "b16", lambda a: a)
_pure("v_not_b32", "u32", "u32", np.invert, halves=_by_half)
_pure("v_not_b16", "u16", "u16", np.invert)
for _bits in ("32", "16"):
    _u = f"u{_bits}"
    _pure(f"v_and_b{_bits}", _u, f"{_u} {_u}", np.bitwise_and, halves=_and_halves if _bits == "32" else None)
    _pure(f"v_or_b{_bits}", _u, f"{_u} {_u}", np.bitwise_or, halves=_by_half if _bits == "32" else None)
    _pure(f"v_xor_b{_bits}", _u, f"{_u} {_u}", np.bitwise_xor, halves=_by_half if _bits == "32" else None)
    _pure(f"v_cndmask_b{_bits}", f"b{_bits}", f"b{_bits} b{_bits} mask", lambda a, b, m: np.where(m, b, a),
          halves=_chosen)  # fmt: skip
_pure("v_xnor_b32", "u32", "u32 u32", lambda a, b: ~(a ^ b), halves=_by_half)
_pure("v_and_or_b32", "u32", "u32 u32 u32", lambda a, b, c: (a & b) | c)
_pure("v_or3_b32", "u32", "u32 u32 u32", lambda a, b, c: a | b | c, halves=_by_half)
_pure("v_xor3_b32", "u32", "u32 u32 u32", lambda a, b, c: a ^ b ^ c, halves=_by_half)
_pure("v_bfi_b32", "u32", "u32 u32 u32", lambda a, b, c: (a & b) | (~a & c), halves=_by_half)


def _shift(a):
    return a & U32(31)


_pure("v_lshlrev_b32", "u32", "u32 u32", lambda a, b: b << _shift(a), halves=_shift_halves(True))
_pure("v_lshrrev_b32", "u32", "u32 u32", lambda a, b: b >> _shift(a), halves=_shift_halves(False))
_pure("v_ashrrev_i32", "i32", "u32 i32", lambda a, b: b >> _shift(a).view(np.int32))
for _name, _op, _kind in (("lshlrev_b16", np.left_shift, "u16"), ("lshrrev_b16", np.right_shift, "u16"),
                          ("ashrrev_i16", np.right_shift, "i16")):  # fmt: skip
    _pure(f"v_{_name}", _kind, f"{_kind} {_kind}", lambda a, b, op=_op: op(b, a & a.dtype.type(15)))


def _shift64(op, signed=False):
    dtype = I64 if signed else U64
    return lambda a, b: op(b, (np.asarray(a) & U32(63)).astype(dtype))


def _pair_left(masks, literals, arguments):
    (low, high), amount = masks[1], literals[0]
    if amount is None:
        both = low & high & masks[0][0] & masks[0][1]
        return both, both
    return (low, low & high) if amount & 63 < 32 else (np.full_like(low, ~low.dtype.type(0)), low)


_pure("v_lshlrev_b64", "u64", "u32 u64", _shift64(np.left_shift), halves=_pair_left)
_pure("v_lshrrev_b64", "u64", "u32 u64", _shift64(np.right_shift))
_pure("v_ashrrev_i64", "i64", "u32 i64", _shift64(np.right_shift, True))
_pure("v_lshl_add_u32", "u32", "u32 u32 u32", lambda a, b, c: (a << _shift(b)) + c, halves=_shift_into(1))
_pure("v_lshl_or_b32", "u32", "u32 u32 u32", lambda a, b, c: (a << _shift(b)) | c, halves=_shift_into(1))
_pure("v_add_lshl_u32", "u32", "u32 u32 u32", lambda a, b, c: (a + b) << _shift(c))
_pure("v_xad_u32", "u32", "u32 u32 u32", lambda a, b, c: (a ^ b) + c)
_pure("v_add3_u32", "u32", "u32 u32 u32", lambda a, b, c: a + b + c)


def _bfe_u32(a, b, c):
    return (a >> _shift(b)) & ((U32(1) << _shift(c)) - U32(1))


def _bfe_i32(a, b, c):
    """Sign-extended bits; a field that reaches past bit 31 finds copies of it there."""
    offset, width = _shift(b).astype(I64), _shift(c).astype(I64)
    field = (np.asarray(a).view(np.int32).astype(I64) >> offset) & ((I64(1) << width) - 1)
    sign = np.where(width > 0, I64(1) << np.maximum(width - 1, 0), 0)
    return ((field ^ sign) - sign).astype(np.int32)


_pure("v_bfe_u32", "u32", "u32 u32 u32", _bfe_u32, halves=_bfe_halves)
_pure("v_bfe_i32", "i32", "u32 u32 u32", _bfe_i32, halves=_bfe_halves)
_pure("v_bfm_b32", "u32", "u32 u32", lambda a, b: ((U32(1) << _shift(a)) - U32(1)) << _shift(b))


def _wide(a, b):
    """64 bits with a above b."""
    return (np.asarray(a).astype(U64) << U64(32)) | np.asarray(b).astype(U64)


_pure("v_alignbit_b32", "u32", "u32 u32 u32", lambda a, b, c: (_wide(a, b) >> (c & U32(31)).astype(U64)).astype(U32))
_pure("v_alignbyte_b32", "u32", "u32 u32 u32",
      lambda a, b, c: (_wide(a, b) >> (U64(8) * (c & U32(3)).astype(U64))).astype(U32))  # fmt: skip


def _perm(a, b, selector):
    both, selector = _wide(a, b), np.asarray(selector)
    result = U32(0)
    for i in range(4):
        code = (selector >> U32(8 * i)) & U32(0xFF)
        byte = (both >> (U64(8) * (code & U32(7)).astype(U64))) & U64(0xFF)
        sign_of = U64(16) * (code - U32(8) & U32(3)).astype(U64) + U64(15)
        sign = ((both >> sign_of) & U64(1)) * U64(0xFF)
        byte = np.where(code < 8, byte, np.where(code < 12, sign, np.where(code == 12, U64(0), U64(0xFF))))
        result = result | (byte.astype(U32) << U32(8 * i))
    return result


_pure("v_perm_b32", "u32", "u32 u32 u32", _perm, halves=_perm_halves)


def _reverse(a):
    bits = np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(U32).reshape(np.shape(a))


def _length(a):
    """Bits up to the highest one: exact, since float64 holds every uint32."""
    return np.frexp(np.asarray(a).astype(np.float64))[1]


def _clz(a):
    return np.where(a == 0, -1, 32 - _length(a)).astype(np.int32)


def _ctz(a):
    a = np.asarray(a)
    return np.where(a == 0, -1, _length(a & (~a + U32(1))) - 1).astype(np.int32)


def _cls(a):
    a = np.asarray(a)
    same = np.where(a.view(np.int32) < 0, ~a, a)
    return np.where(same == 0, -1, 32 - _length(same)).astype(np.int32)


_pure("v_bfrev_b32", "u32", "u32", _reverse)
_pure("v_clz_i32_u32", "i32", "u32", _clz)
_pure("v_ctz_i32_b32", "i32", "u32", _ctz)
_pure("v_cls_i32", "i32", "u32", _cls)
_pure("v_bcnt_u32_b32", "u32", "u32 u32", lambda a, b: np.bitwise_count(a).astype(U32) + b)
_pure("v_mbcnt_lo_u32_b32", "u32", "u32 u32", needs_waves=True, function=lambda w, a, b: _mbcnt(w, a, b, 0))
_pure("v_mbcnt_hi_u32_b32", "u32", "u32 u32", needs_waves=True, function=lambda w, a, b: _mbcnt(w, a, b, 32))


def _mbcnt(waves, mask, base, first: int):
    """base + the number of mask bits below this lane; the mask covers 32 lanes from `first`."""
    below = np.clip(waves.lane_index.astype(I64) - first, 0, 32)
    bits = ((I64(1) << below) - 1).astype(U32)
    return np.bitwise_count(np.asarray(mask) & bits).astype(U32) + base


# arithmetic --------------------------------------------------------------------------------------------------------
_pure("v_add_nc_u32", "u32", "u32 u32", np.add, clamped=lambda a, b: np.where(a + b < a, U32(0xFFFFFFFF), a + b))
_pure("v_sub_nc_u32", "u32", "u32 u32", np.subtract, clamped=lambda a, b: np.where(a < b, U32(0), a - b))
_pure("v_subrev_nc_u32", "u32", "u32 u32", lambda a, b: b - a, clamped=lambda a, b: np.where(b < a, U32(0), b - a))
for _k in ("u16", "i16"):
    _pure(f"v_add_nc_{_k}", _k, f"{_k} {_k}", np.add)
    _pure(f"v_sub_nc_{_k}", _k, f"{_k} {_k}", np.subtract)
_pure("v_add_nc_i32", "i32", "i32 i32", np.add)
_pure("v_sub_nc_i32", "i32", "i32 i32", np.subtract)
_pure("v_mul_lo_u32", "u32", "u32 u32", np.multiply)
_pure("v_mul_lo_u16", "u16", "u16 u16", np.multiply)
_pure("v_mad_u16", "u16", "u16 u16 u16", lambda a, b, c: a * b + c)
_pure("v_mad_i16", "i16", "i16 i16 i16", lambda a, b, c: a * b + c)
for _k, _wide_type in (("u32", U64), ("i32", I64)):
    _pure(f"v_mul_hi_{_k}", _k, f"{_k} {_k}",
          lambda a, b, t=_wide_type: ((a.astype(t) * b.astype(t)) >> t(32)).astype(U32).view(a.dtype))  # fmt: skip


def _low24(a):
    return a & U32(0xFFFFFF)


def _signed24(a):
    return (a << np.int32(8)) >> np.int32(8)


_pure("v_mul_u32_u24", "u32", "u32 u32", lambda a, b: _low24(a) * _low24(b))
_pure("v_mad_u32_u24", "u32", "u32 u32 u32", lambda a, b, c: _low24(a) * _low24(b) + c)
_pure("v_mul_i32_i24", "i32", "i32 i32", lambda a, b: _signed24(a) * _signed24(b))
_pure("v_mad_i32_i24", "i32", "i32 i32 i32", lambda a, b, c: _signed24(a) * _signed24(b) + c)
_pure("v_mul_hi_u32_u24", "u32", "u32 u32",
      lambda a, b: ((_low24(a).astype(U64) * _low24(b).astype(U64)) >> U64(32)).astype(U32))  # fmt: skip
_pure("v_mad_u32_u16", "u32", "u16 u16 u32", lambda a, b, c: a.astype(U32) * b.astype(U32) + c)
_pure("v_mad_i32_i16", "i32", "i16 i16 i32", lambda a, b, c: a.astype(np.int32) * b.astype(np.int32) + c)


def _mad_u64(a, b, c):
    total = a.astype(U64) * b.astype(U64) + c
    return total, total < c


def _mad_i64(a, b, c):
    product = a.astype(I64) * b.astype(I64)
    total = product + c
    return total, ((product < 0) == (c < 0)) & ((total < 0) != (c < 0))


_pure("v_mad_u64_u32", "u64", "u32 u32 u64", _mad_u64, mask_out=True, halves=_mad64)
_pure("v_mad_i64_i32", "i64", "i32 i32 i64", _mad_i64, mask_out=True, halves=_mad64)


def _add_carry(a, b, carry=False):
    total = a.astype(U64) + b.astype(U64) + np.asarray(carry).astype(U64)
    return total.astype(U32), total >> U64(32) != 0


def _sub_borrow(a, b, borrow=False):
    taken = b.astype(U64) + np.asarray(borrow).astype(U64)
    return (a.astype(U64) - taken).astype(U32), taken > a


for _name, _function in (("add", _add_carry), ("sub", _sub_borrow),
                         ("subrev", lambda a, b, c=False: _sub_borrow(b, a, c))):  # fmt: skip
    _pure(f"v_{_name}_co_u32", "u32", "u32 u32", _function, mask_out=True)
    _pure(f"v_{_name}_co_ci_u32", "u32", "u32 u32 mask", _function, mask_out=True)

for _k in ("u32", "i32", "u16", "i16"):
    _pure(f"v_min_{_k}", _k, f"{_k} {_k}", np.minimum)
    _pure(f"v_max_{_k}", _k, f"{_k} {_k}", np.maximum)
    for _name, _function in (
        ("min3", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
        ("max3", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
        ("med3", lambda a, b, c: np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))),
    ):
        _pure(f"v_{_name}_{_k}", _k, f"{_k} {_k} {_k}", _function)
for _k in ("u32", "i32"):
    _pure(f"v_minmax_{_k}", _k, f"{_k} {_k} {_k}", lambda a, b, c: np.maximum(np.minimum(a, b), c))
    _pure(f"v_maxmin_{_k}", _k, f"{_k} {_k} {_k}", lambda a, b, c: np.minimum(np.maximum(a, b), c))
