"""Every mnemonic the emulator knows has a test; every module stays independent of tvm."""

import re
import subprocess
import sys
from pathlib import Path

import test_rocm_compare
import test_rocm_dialects
import test_rocm_memory as memory
import test_rocm_races
import test_rocm_salu
from rocm_valu_cases import CASES
from test_rocm_packed import REFERENCE
from test_rocm_valu import APPROXIMATE_NAMES

from mlcrt.targets.rocm.emulator import launch  # noqa: F401  fills the table
from mlcrt.targets.rocm.emulator.salu_float import FLOAT_ROWS
from mlcrt.targets.rocm.emulator.table import BINDERS

HERE = Path(__file__).parent


def covered() -> set[str]:
    """Mnemonics in the tables of the tests, and those spelled out in their assembly."""
    names = set(CASES) | set(APPROXIMATE_NAMES) | set(REFERENCE) | set(test_rocm_salu.CASES)
    names |= set(test_rocm_salu.SAVE_NAMES)
    names |= {f"v_cmp{x}_{n}" for x in ("", "x") for n in [*test_rocm_compare.CASES, "class_f32", "class_f16"]}
    names |= {f"s_cmpk_{n}_{k}" for n in ("eq", "lg", "gt", "ge", "lt", "le") for k in ("i32", "u32")}
    names |= {f"v_wmma_f32_16x16x16_{k}" for k in ("f16", "bf16")} | {f"v_wmma_i32_16x16x16_iu{b}" for b in (4, 8)}
    names |= {f"v_wmma_{k}_16x16x16_{k}" for k in ("f16", "bf16")} | {"dual"}
    names |= {f"s_load_b{32 * n}" for n in (1, 2, 3, 4, 8, 16)}
    names |= set(FLOAT_ROWS) | {f"s_cmp_{n}_f32" for n in test_rocm_dialects.COMPARISONS}
    for space in ("global", "flat", "scratch"):
        names |= {f"{space}_load_{k}" for k in memory.WIDTHS} | {f"{space}_store_{k}" for k in memory.STORES}
        names |= {f"{space}_load_d16_{h}{k}" for k in memory.D16 for h in ("", "hi_")}
        names |= {f"{space}_store_d16_hi_{k}" for k in ("b8", "b16")}
    names |= {f"ds_load_{k}" for k in memory.WIDTHS} | {f"ds_store_{k}" for k in memory.STORES}
    names |= {f"ds_load_{k}_d16{h}" for k in ("u8", "i8", "u16") for h in ("", "_hi")}
    names |= {f"ds_store_{k}_d16_hi" for k in ("b8", "b16")}
    names |= {f"ds_{o}_2addr{s}_{k}" for o in ("load", "store") for s in ("", "_stride64") for k in ("b32", "b64")}
    for name, kind in test_rocm_races.ATOMICS:
        names |= {f"global_atomic_{name}_{kind}", f"flat_atomic_{name}_{kind}"}
        spelled = {"swap": "storexchg", "cmpswap": "cmpstore"}.get(name, name)
        names |= {f"ds_{spelled}_{kind}", f"ds_{spelled}_rtn_{kind}"}
    written = {*HERE.glob("test_rocm_*.py")} - {Path(__file__), HERE / "test_rocm_lint.py"}  # whose code never runs
    text = "".join(p.read_text() for p in written)
    spelled = re.findall(r"\b(?:[sv]|ds|buffer|global)_[a-z0-9_]+", text)
    return names | {re.sub(r"_(e32|e64|dpp)$", "", m) for m in spelled}


def test_every_mnemonic_is_tested():
    assert len(BINDERS) > 500
    assert not sorted(set(BINDERS) - covered())


def test_the_emulator_needs_numpy_only():
    code = "import sys, mlcrt.targets.rocm.emulator; print([m for m in ('tvm', 'scipy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
