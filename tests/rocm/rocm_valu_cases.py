"""What each VALU instruction must give for one lane: mnemonic → (result type, source types, reference).

References work on Python ints and floats. A type with a size of 64 sits in two registers; 'mask' is one bit per lane.
An entry may give (value, bit) when the instruction also writes a mask.
"""

import math
from fractions import Fraction

import numpy as np
from rocm_exact import add, fma, larger, multiply, number, rounded, signed, smaller

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
CASES: dict[str, tuple] = {}


def case(name: str, out: str, ins: str, reference, accumulate: bool = False) -> None:
    CASES[name] = (out, ins.split(), reference, accumulate)


# integers ----------------------------------------------------------------------------------------------------------
case("v_mov_b32", "u32", "u32", lambda a: a)
case("v_mov_b16", "u16", "u16", lambda a: a)
for w in (32, 16):
    u = f"u{w}"
    case(f"v_not_b{w}", u, u, lambda a: ~a)
    case(f"v_and_b{w}", u, f"{u} {u}", lambda a, b: a & b)
    case(f"v_or_b{w}", u, f"{u} {u}", lambda a, b: a | b)
    case(f"v_xor_b{w}", u, f"{u} {u}", lambda a, b: a ^ b)
    case(f"v_cndmask_b{w}", u, f"{u} {u} mask", lambda a, b, m: b if m else a)
case("v_xnor_b32", "u32", "u32 u32", lambda a, b: ~(a ^ b))
case("v_and_or_b32", "u32", "u32 u32 u32", lambda a, b, c: (a & b) | c)
case("v_or3_b32", "u32", "u32 u32 u32", lambda a, b, c: a | b | c)
case("v_xor3_b32", "u32", "u32 u32 u32", lambda a, b, c: a ^ b ^ c)
case("v_bfi_b32", "u32", "u32 u32 u32", lambda a, b, c: (a & b) | (~a & c))
case("v_lshlrev_b32", "u32", "u32 u32", lambda a, b: b << a % 32)
case("v_lshrrev_b32", "u32", "u32 u32", lambda a, b: b >> a % 32)
case("v_ashrrev_i32", "i32", "u32 i32", lambda a, b: b >> a % 32)
case("v_lshlrev_b16", "u16", "u16 u16", lambda a, b: b << a % 16)
case("v_lshrrev_b16", "u16", "u16 u16", lambda a, b: b >> a % 16)
case("v_ashrrev_i16", "i16", "i16 i16", lambda a, b: b >> (a & 15))
case("v_lshlrev_b64", "u64", "u32 u64", lambda a, b: b << a % 64)
case("v_lshrrev_b64", "u64", "u32 u64", lambda a, b: b >> a % 64)
case("v_ashrrev_i64", "i64", "u32 i64", lambda a, b: b >> a % 64)
case("v_lshl_add_u32", "u32", "u32 u32 u32", lambda a, b, c: (a << b % 32) + c)
case("v_lshl_or_b32", "u32", "u32 u32 u32", lambda a, b, c: (a << b % 32) | c)
case("v_add_lshl_u32", "u32", "u32 u32 u32", lambda a, b, c: (a + b) << c % 32)
case("v_xad_u32", "u32", "u32 u32 u32", lambda a, b, c: (a ^ b) + c)
case("v_add3_u32", "u32", "u32 u32 u32", lambda a, b, c: a + b + c)
case("v_bfe_u32", "u32", "u32 u32 u32", lambda a, b, c: (a >> b % 32) & ((1 << c % 32) - 1))


def bfe_i32(a, b, c):
    offset, size = b % 32, c % 32
    return signed(signed(a, 32) >> offset, size) if size else 0


case("v_bfe_i32", "i32", "u32 u32 u32", bfe_i32)
case("v_bfm_b32", "u32", "u32 u32", lambda a, b: ((1 << a % 32) - 1) << b % 32)
case("v_alignbit_b32", "u32", "u32 u32 u32", lambda a, b, c: ((a << 32) | b) >> c % 32)
case("v_alignbyte_b32", "u32", "u32 u32 u32", lambda a, b, c: ((a << 32) | b) >> 8 * (c % 4))


def perm(a, b, selector):
    data = ((a << 32) | b).to_bytes(8, "little")
    result = []
    for code in selector.to_bytes(4, "little"):
        if code < 8:
            result.append(data[code])
        elif code < 12:
            result.append(0xFF if data[2 * (code - 8) + 1] & 0x80 else 0)
        else:
            result.append(0 if code == 12 else 0xFF)
    return int.from_bytes(bytes(result), "little")


case("v_perm_b32", "u32", "u32 u32 u32", perm)
case("v_bfrev_b32", "u32", "u32", lambda a: int(f"{a:032b}"[::-1], 2))
case("v_clz_i32_u32", "i32", "u32", lambda a: 32 - a.bit_length() if a else -1)
case("v_ctz_i32_b32", "i32", "u32", lambda a: (a & -a).bit_length() - 1)


def cls(a):
    text = f"{a:032b}"
    return -1 if len(set(text)) == 1 else next(i for i, c in enumerate(text) if c != text[0])


case("v_cls_i32", "i32", "u32", cls)
case("v_bcnt_u32_b32", "u32", "u32 u32", lambda a, b: a.bit_count() + b)
case("v_add_nc_u32", "u32", "u32 u32", lambda a, b: a + b)
case("v_sub_nc_u32", "u32", "u32 u32", lambda a, b: a - b)
case("v_subrev_nc_u32", "u32", "u32 u32", lambda a, b: b - a)
case("v_add_nc_i32", "i32", "i32 i32", lambda a, b: a + b)
case("v_sub_nc_i32", "i32", "i32 i32", lambda a, b: a - b)
for k in ("u16", "i16"):
    case(f"v_add_nc_{k}", k, f"{k} {k}", lambda a, b: a + b)
    case(f"v_sub_nc_{k}", k, f"{k} {k}", lambda a, b: a - b)
    case(f"v_mad_{k}", k, f"{k} {k} {k}", lambda a, b, c: a * b + c)
case("v_mul_lo_u32", "u32", "u32 u32", lambda a, b: a * b)
case("v_mul_lo_u16", "u16", "u16 u16", lambda a, b: a * b)
case("v_mul_hi_u32", "u32", "u32 u32", lambda a, b: a * b >> 32)
case("v_mul_hi_i32", "i32", "i32 i32", lambda a, b: a * b >> 32)
case("v_mul_u32_u24", "u32", "u32 u32", lambda a, b: a % 2**24 * (b % 2**24))
case("v_mul_hi_u32_u24", "u32", "u32 u32", lambda a, b: a % 2**24 * (b % 2**24) >> 32)
case("v_mad_u32_u24", "u32", "u32 u32 u32", lambda a, b, c: a % 2**24 * (b % 2**24) + c)
case("v_mul_i32_i24", "i32", "u32 u32", lambda a, b: signed(a, 24) * signed(b, 24))
case("v_mad_i32_i24", "i32", "u32 u32 i32", lambda a, b, c: signed(a, 24) * signed(b, 24) + c)
case("v_mad_u32_u16", "u32", "u16 u16 u32", lambda a, b, c: a * b + c)
case("v_mad_i32_i16", "i32", "i16 i16 i32", lambda a, b, c: a * b + c)
case("v_mad_u64_u32", "u64", "u32 u32 u64", lambda a, b, c: (a * b + c, a * b + c > U64))


def mad_i64(a, b, c):
    total = a * b + c
    return total, not -(2**63) <= total < 2**63


case("v_mad_i64_i32", "i64", "i32 i32 i64", mad_i64)
case("v_add_co_u32", "u32", "u32 u32", lambda a, b: (a + b, a + b > U32))
case("v_sub_co_u32", "u32", "u32 u32", lambda a, b: (a - b, b > a))
case("v_subrev_co_u32", "u32", "u32 u32", lambda a, b: (b - a, a > b))
case("v_add_co_ci_u32", "u32", "u32 u32 mask", lambda a, b, c: (a + b + c, a + b + c > U32))
case("v_sub_co_ci_u32", "u32", "u32 u32 mask", lambda a, b, c: (a - b - c, b + c > a))
case("v_subrev_co_ci_u32", "u32", "u32 u32 mask", lambda a, b, c: (b - a - c, a + c > b))
for k in ("u32", "i32", "u16", "i16"):
    case(f"v_min_{k}", k, f"{k} {k}", min)
    case(f"v_max_{k}", k, f"{k} {k}", max)
    case(f"v_min3_{k}", k, f"{k} {k} {k}", min)
    case(f"v_max3_{k}", k, f"{k} {k} {k}", max)
    case(f"v_med3_{k}", k, f"{k} {k} {k}", lambda a, b, c: sorted((a, b, c))[1])
    if "32" in k:
        case(f"v_minmax_{k}", k, f"{k} {k} {k}", lambda a, b, c: max(min(a, b), c))
        case(f"v_maxmin_{k}", k, f"{k} {k} {k}", lambda a, b, c: min(max(a, b), c))


# floats ------------------------------------------------------------------------------------------------------------
def whole(function):
    def apply(x):
        if not math.isfinite(x) or x == 0:
            return x
        return math.copysign(float(function(x)), x)

    return apply


def fract(kind):
    least = {"f32": 1 - 2.0**-24, "f16": 1 - 2.0**-11}[kind]

    def apply(x):
        if not math.isfinite(x):
            return math.nan
        return min(rounded(Fraction(x) - math.floor(x), kind), least)

    return apply


def med3(a, b, c):
    if any(map(math.isnan, (a, b, c))):
        return smaller(smaller(a, b), c)
    return sorted((a, b, c), key=lambda x: (x, math.copysign(1, x)))[1]


def ldexp(kind):
    def apply(x, e):
        if not math.isfinite(x) or x == 0:
            return x
        return rounded(Fraction(x) * Fraction(2) ** max(min(e, 400), -400), kind) or math.copysign(0.0, x)

    return apply


def class_bit(bits, kind):
    x = number(bits, kind)
    if math.isnan(x):
        return 1 if bits >> {"f32": 22, "f16": 9}[kind] & 1 else 0
    tiny = {"f32": 2.0**-126, "f16": 2.0**-14}[kind]
    size = 0 if math.isinf(x) else 3 if x == 0 else 2 if abs(x) < tiny else 1
    return 2 + size if math.copysign(1, x) < 0 else 9 - size


for k in ("f32", "f16"):
    two, three = f"{k} {k}", f"{k} {k} {k}"
    case(f"v_add_{k}", k, two, lambda a, b, k=k: add(a, b, k))
    case(f"v_sub_{k}", k, two, lambda a, b, k=k: add(a, -b, k))
    case(f"v_subrev_{k}", k, two, lambda a, b, k=k: add(b, -a, k))
    case(f"v_mul_{k}", k, two, lambda a, b, k=k: multiply(a, b, k))
    case(f"v_min_{k}", k, two, smaller)
    case(f"v_max_{k}", k, two, larger)
    case(f"v_min3_{k}", k, three, lambda a, b, c: smaller(smaller(a, b), c))
    case(f"v_max3_{k}", k, three, lambda a, b, c: larger(larger(a, b), c))
    case(f"v_minmax_{k}", k, three, lambda a, b, c: larger(smaller(a, b), c))
    case(f"v_maxmin_{k}", k, three, lambda a, b, c: smaller(larger(a, b), c))
    case(f"v_med3_{k}", k, three, med3)
    case(f"v_floor_{k}", k, k, whole(math.floor))
    case(f"v_ceil_{k}", k, k, whole(math.ceil))
    case(f"v_trunc_{k}", k, k, whole(math.trunc))
    case(f"v_rndne_{k}", k, k, whole(round))
    case(f"v_fract_{k}", k, k, fract(k))
    for name in ("fma", "fmamk", "fmaak"):
        case(f"v_{name}_{k}", k, three, lambda a, b, c, k=k: fma(a, b, c, k))
    case(f"v_fmac_{k}", k, three, lambda a, b, c, k=k: fma(a, b, c, k), accumulate=True)
    case(f"v_ldexp_{k}", k, f"{k} i{k[1:]}", ldexp(k))
    case(f"v_frexp_mant_{k}", k, k, lambda x: math.frexp(x)[0] if math.isfinite(x) else x)
case("v_frexp_exp_i32_f32", "i32", "f32", lambda x: math.frexp(x)[1] if math.isfinite(x) else 0)
case("v_frexp_exp_i16_f16", "i16", "f16", lambda x: math.frexp(x)[1] if math.isfinite(x) else 0)
case("v_mul_dx9_zero_f32", "f32", "f32 f32", lambda a, b: 0.0 if a == 0 or b == 0 else multiply(a, b, "f32"))
case("v_fma_dx9_zero_f32", "f32", "f32 f32 f32",
     lambda a, b, c: add(0.0, c, "f32") if a == 0 or b == 0 else fma(a, b, c, "f32"))  # fmt: skip


# conversions -------------------------------------------------------------------------------------------------------
def to_int(low, high, prepare=math.trunc):
    def apply(x):
        if math.isnan(x):
            return 0
        if math.isinf(x):
            return high if x > 0 else low
        return max(low, min(high, prepare(x)))

    return apply


def float_to(kind):
    def apply(x):
        if isinstance(x, float) and not math.isfinite(x):
            return x
        return rounded(Fraction(x), kind, math.copysign(0.0, x)) or math.copysign(0.0, x)

    return apply


def half_bits(x) -> int:
    with np.errstate(all="ignore"):
        return int(np.float16(x).view(np.uint16))


def toward_zero(x):
    if math.isnan(x):
        return 0x7E00
    if math.isinf(x):
        return half_bits(x)
    result = float_to("f16")(x)
    if abs(result) > abs(x):
        result = math.copysign(float(np.nextafter(np.float16(abs(result)), np.float16(0))), x)
    return half_bits(result)


case("v_cvt_f32_f16", "f32", "f16", lambda x: x)
case("v_cvt_f16_f32", "f16", "f32", float_to("f16"))
case("v_cvt_f32_u32", "f32", "u32", float_to("f32"))
case("v_cvt_f32_i32", "f32", "i32", float_to("f32"))
case("v_cvt_f16_u16", "f16", "u16", float_to("f16"))
case("v_cvt_f16_i16", "f16", "i16", float_to("f16"))
case("v_cvt_u32_u16", "u32", "u16", lambda x: x)
case("v_cvt_i32_i16", "i32", "i16", lambda x: x)
case("v_cvt_i32_f32", "i32", "f32", to_int(-(2**31), 2**31 - 1))
case("v_cvt_u32_f32", "u32", "f32", to_int(0, U32))
case("v_cvt_i16_f16", "i16", "f16", to_int(-(2**15), 2**15 - 1))
case("v_cvt_u16_f16", "u16", "f16", to_int(0, 2**16 - 1))
case("v_cvt_floor_i32_f32", "i32", "f32", to_int(-(2**31), 2**31 - 1, math.floor))
case("v_cvt_nearest_i32_f32", "i32", "f32",
     to_int(-(2**31), 2**31 - 1, lambda x: math.floor(Fraction(x) + Fraction(1, 2))))  # fmt: skip
for byte in range(4):
    case(f"v_cvt_f32_ubyte{byte}", "f32", "u32", lambda x, b=byte: float(x >> 8 * b & 255))
case("v_cvt_off_f32_i4", "f32", "u32", lambda x: signed(x & 15, 4) / 16)
case("v_pack_b32_f16", "u32", "u16 u16", lambda a, b: a | b << 16)
for name in ("v_cvt_pk_rtz_f16_f32", "v_cvt_pkrtz_f16_f32"):
    case(name, "u32", "f32 f32", lambda a, b: toward_zero(a) | toward_zero(b) << 16)
case("v_cvt_pk_i16_i32", "u32", "i32 i32",
     lambda a, b: sum((max(-32768, min(32767, x)) & 0xFFFF) << s for x, s in ((a, 0), (b, 16))))  # fmt: skip
case("v_cvt_pk_u16_u32", "u32", "u32 u32", lambda a, b: min(a, 65535) | min(b, 65535) << 16)


def norm(low, scale):
    def one(x):
        if math.isnan(x):
            return 0
        return round(Fraction(max(low, min(1.0, x))) * scale) & 0xFFFF

    return lambda a, b: one(a) | one(b) << 16


case("v_cvt_pk_norm_i16_f32", "u32", "f32 f32", norm(-1.0, 32767))
case("v_cvt_pk_norm_u16_f32", "u32", "f32 f32", norm(0.0, 65535))


def dot2(a, b, c):
    halves = [[number(x >> s & 0xFFFF, "f16") for s in (0, 16)] for x in (a, b)]
    for x, y in zip(*halves, strict=True):
        c = add(multiply(x, y, "f32"), c, "f32")
    return c


case("v_dot2_f32_f16", "f32", "u32 u32 f32", dot2)
case("v_dot2acc_f32_f16", "f32", "u32 u32 f32", dot2, accumulate=True)
