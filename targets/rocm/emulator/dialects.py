"""Assembly of other generations in the words of gfx11: the same instructions under older or newer names.

What a generation does differently is not here but where it happens, by `Kernel.generation`: gfx9's 16-bit results clear
the upper half, its permutes cross all 64 lanes, and it selects halves by SDWA (`vector`, `ds`); gfx12 counts LDS
accesses and scalar loads apart and has workgroup numbers in trap registers (`control`, `launch`).
"""

from __future__ import annotations

import re

_SIZES = {
    "dword": "b32", "dwordx2": "b64", "dwordx3": "b96", "dwordx4": "b128", "dwordx8": "b256", "dwordx16": "b512",
    "ubyte": "u8", "sbyte": "i8", "ushort": "u16", "sshort": "i16", "byte": "b8", "short": "b16",
    "ubyte_d16": "d16_u8", "sbyte_d16": "d16_i8", "short_d16": "d16_b16", "ubyte_d16_hi": "d16_hi_u8",
    "sbyte_d16_hi": "d16_hi_i8", "short_d16_hi": "d16_hi_b16", "byte_d16_hi": "d16_hi_b8",
}  # fmt: skip
_BEFORE_11 = {
    "v_dot2c_f32_f16": "v_dot2acc_f32_f16", "v_ffbh_u32": "v_clz_i32_u32", "v_ffbl_b32": "v_ctz_i32_b32",
    "s_ff1_i32_b32": "s_ctz_i32_b32", "s_flbit_i32_b32": "s_clz_i32_u32",
}  # fmt: skip
_BEFORE_10 = {
    "v_addc_co_u32": "v_add_co_ci_u32", "v_subb_co_u32": "v_sub_co_ci_u32", "v_subbrev_co_u32": "v_subrev_co_ci_u32",
    "v_mad_legacy_u16": "v_mad_u16", "v_mad_legacy_i16": "v_mad_i16", "v_fma_legacy_f16": "v_fma_f16",
    **{f"v_{op}_{kind}": f"v_{op}_nc_{kind}" for op in ("add", "sub", "subrev") for kind in ("u32", "u16")},
}  # fmt: skip
_SINCE_12 = {
    "s_add_co_u32": "s_add_u32", "s_add_co_ci_u32": "s_addc_u32", "s_sub_co_u32": "s_sub_u32",
    "s_sub_co_ci_u32": "s_subb_u32", "s_add_co_i32": "s_add_i32", "s_sub_co_i32": "s_sub_i32",
    "s_addk_co_i32": "s_addk_i32", "v_mad_co_u64_u32": "v_mad_u64_u32", "v_mad_co_i64_i32": "v_mad_i64_i32",
}  # fmt: skip


def generation(text: str) -> int:
    """9 to 12, from the target that an assembly file names; 11 if it names none."""
    found = re.search(r'\.amdgcn_target\s+"[^"]*gfx(\d+)[0-9a-f]{2}\b', text)
    return int(found[1]) if found else 11


def translated(mnemonic: str, generation: int) -> str:
    """gfx11's name of an instruction; unchanged if it has the same one or none."""
    if generation == 11:
        return mnemonic
    if generation >= 12:
        return _SINCE_12.get(mnemonic) or mnemonic.replace("_num_f", "_f")
    if mnemonic.startswith("ds_"):
        for old, new in (("read", "load"), ("write", "store")):
            found = re.fullmatch(rf"ds_{old}(2)?(st64)?_(\w+)", mnemonic)
            if found:
                return f"ds_{new}_" + "2addr_" * bool(found[1]) + "stride64_" * bool(found[2]) + found[3]
        return mnemonic
    found = re.fullmatch(r"(global|flat|scratch|s)_(load|store)_(\w+)", mnemonic)
    if found and found[3] in _SIZES:
        return f"{found[1]}_{found[2]}_{_SIZES[found[3]]}"
    if re.match(r"s_(and|or)n2_", mnemonic):
        return re.sub(r"^s_(and|or)n2_", r"s_\1_not1_", mnemonic)
    older = {**_BEFORE_11, **_BEFORE_10} if generation == 9 else _BEFORE_11
    return older.get(mnemonic, mnemonic)
