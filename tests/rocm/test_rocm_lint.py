"""The check of emitted assembly: races it must see on every path and in every dialect, occupancy, widths of loads."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import rocm_kernels as K
import tiny
import tvm

from mlcrt.compile import compile_model
from mlcrt.dist import open_dist
from mlcrt.errors import MlcrtError
from mlcrt.kernels.records import Linear
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.rocm import assembly, attributes, inspection, library
from mlcrt.targets.rocm.architecture import CHIPS
from mlcrt.targets.rocm.inspection import rows
from mlcrt.targets.rocm.lint import _instructions, _load_width, _loads, _racing, examine, occupancy
from mlcrt.targets.rocm.provenance import loads


def racing(*lines: str) -> tuple[int, ...]:
    return _racing(_instructions(["kernel:", *lines, "\ts_endpgm"], 1))


DIALECTS = {
    "gfx9": ("ds_write_b32 v0, v1", "s_waitcnt lgkmcnt(0)", "s_barrier"),
    "gfx11": ("ds_store_b32 v0, v1", "s_waitcnt vmcnt(3) lgkmcnt(0)", "s_barrier"),
    "gfx11 null": ("ds_store_b64 v0, v[1:2]", "s_waitcnt_lgkmcnt null, 0x0", "s_barrier"),
    "gfx12": ("ds_store_b32 v0, v1", "s_wait_dscnt 0x0", "s_barrier_signal -1"),
    "gfx12 both": ("ds_add_u32 v0, v1", "s_wait_loadcnt_dscnt 0x100", "s_barrier_signal -1"),
    "all": ("ds_store_b32 v0, v1", "s_waitcnt 0", "s_barrier"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_wait_between_store_and_barrier_is_needed(dialect):
    store, wait, barrier = DIALECTS[dialect]
    assert racing(store, wait, barrier) == ()
    assert racing(store, barrier) == (3,)
    assert racing(wait, store, barrier) == (4,)
    assert racing(store, "s_waitcnt vmcnt(0)", barrier) == (4,)


def test_loads_after_the_store_may_be_in_flight():
    assert racing("ds_store_b32 v0, v1", "ds_load_b32 v2, v0", "s_waitcnt lgkmcnt(1)", "s_barrier") == ()
    assert racing("ds_store_b32 v0, v1", "ds_load_b32 v2, v0", "s_waitcnt lgkmcnt(2)", "s_barrier") == (5,)
    scalar = ("ds_store_b32 v0, v1", "s_load_b32 s0, s[2:3], 0x0")  # finishes in any order
    assert racing(*scalar, "s_waitcnt lgkmcnt(1)", "s_barrier") == (5,)
    assert racing(*scalar, "s_waitcnt lgkmcnt(0)", "s_barrier") == ()


def test_every_path_to_a_barrier_counts():
    branch = ("s_cbranch_execz .LBB0_2", "ds_store_b32 v0, v1", ".LBB0_2:")
    assert racing(*branch, "s_barrier") == (5,)
    assert racing(*branch, "s_waitcnt lgkmcnt(0)", "s_barrier") == ()
    loop = (".LBB0_1:", "s_barrier", "ds_store_b32 v0, v1", "s_cbranch_scc1 .LBB0_1")
    assert racing(*loop) == (3,)  # only the second time round
    assert racing(".LBB0_1:", "s_barrier", "s_branch .LBB0_3", "ds_store_b32 v0, v1", ".LBB0_3:") == ()


@pytest.mark.parametrize("arch", ["gfx906", "gfx90a", "gfx1010", "gfx1030", "gfx1100", "gfx1200"])
def test_the_mended_barrier_waits_on_every_chip(arch):
    """Also where the store before it is that of the loop's last iteration."""
    (facts,) = examine(assembly.compile_assembly(K.gemm(64, 64, 64), arch).text, arch, {})
    assert facts.barriers == 2 and not facts.racing


@pytest.mark.parametrize("arch", ["gfx1100", "gfx1200", "gfx90a"])
def test_stock_barriers_are_found(arch):
    (facts,) = examine(assembly.compile_assembly(K.gemv(64, 512), arch, mend_barriers=False).text, arch, {})
    assert facts.racing


def test_a_library_that_races_is_refused(tmp_path):
    """One sentence, and no library."""
    model = tiny.make_tiny("llama_mha", tmp_path / "model")
    with assembly.stock_barriers(), pytest.raises(MlcrtError, match="races: the barrier at line") as error:
        compile_model(model, "q0f32", "rocm:gfx1100", dist_root=tmp_path, slots=0)
    assert "\n" not in str(error.value)
    assert open_dist(tmp_path / "model-q0f32").manifest["targets"] == {}
    assert not list(tmp_path.rglob("lib.so"))


@pytest.mark.parametrize(
    ("arch", "vgprs", "lds", "threads", "waves"),
    [  # what a SIMD holds: registers by the allocation granule, then LDS by workgroups of 4 SIMDs
        ("gfx1100", 96, 0, 256, 16), ("gfx1100", 97, 0, 256, 12), ("gfx1100", 256, 0, 256, 4),
        ("gfx1100", 256, 0, 32, 5), ("gfx1100", 32, 65536, 256, 4), ("gfx1100", 32, 16384, 256, 16),
        ("gfx1103", 96, 0, 256, 10), ("gfx1030", 64, 0, 256, 16), ("gfx1030", 65, 0, 128, 12),
        ("gfx1010", 48, 0, 128, 20), ("gfx90a", 128, 0, 256, 4), ("gfx90a", 129, 0, 256, 3),
        ("gfx942", 32, 65536, 256, 1), ("gfx906", 64, 0, 256, 4),
    ],
)  # fmt: skip
def test_occupancy(arch, vgprs, lds, threads, waves):
    assert occupancy(CHIPS[arch], vgprs, 16, lds, threads) == waves


def test_widths_of_loads():
    lines = ["kernel:", "global_load_b128 v[0:3], v4, s[0:1]", "global_load_d16_hi_b16 v5, v6, off",
             "global_load_dwordx4 v[0:3], v[4:5], off", "flat_load_ubyte v0, v[2:3]",
             "global_load_short_d16 v1, v2, s[0:1]", "global_store_b32 v0, v1, off",
             "ds_load_b128 v[0:3], v4", "global_load_dword v1, v2, off"]  # fmt: skip
    assert _loads(_instructions(lines, 1)) == {16: 2, 2: 2, 1: 1, 4: 1}


@pytest.mark.parametrize("arch", ["gfx1100", "gfx90a"])
def test_facts_are_those_of_the_metadata(arch):
    text = assembly.compile_assembly(K.gemm(64, 64, 64), arch).text
    (facts,) = examine(text, arch, {"gemm_kernel": 256})
    assert facts.vgprs == int(re.search(r"\.vgpr_count: +(\d+)", text)[1])
    assert facts.lds == 2 * 32 * 16 * 4  # TVM drops the padding column, which nobody touches
    assert (facts.spills, facts.scratch, facts.threads) == (0, 0, 256)
    assert facts.weights is None


NAMES = {0: "x", 8: "w_codes", 16: "w_scales"}
POINTERS = ("s_load_b128 s[4:7], s[0:1], 0x0", "s_load_b64 s[2:3], s[0:1], 0x10")


def traced(*lines: str) -> dict:
    return loads(_instructions(["kernel:", *POINTERS, *lines, "s_endpgm"], 1), NAMES, _load_width)


def test_loads_are_traced_to_their_arguments():
    assert traced("global_load_b128 v[0:3], v4, s[6:7]", "global_load_u16 v5, v6, s[2:3]") == {
        "w_codes": {16: 1}, "w_scales": {2: 1},
    }  # fmt: skip
    through_registers = (
        "v_add_co_u32 v1, vcc_lo, s6, v0", "v_add_co_ci_u32_e64 v2, null, s7, 0, vcc_lo",
        "v_dual_mov_b32 v8, v1 :: v_dual_mov_b32 v9, v2", "global_load_b64 v[1:2], v[8:9], off offset:16",
        "global_load_b32 v3, v[1:2], off",  # by then v[1:2] are data
    )  # fmt: skip
    assert traced(*through_registers) == {"w_codes": {8: 1}}


def test_loads_are_traced_along_both_paths():
    lines = ("s_mov_b64 s[8:9], s[6:7]", "s_cbranch_scc1 .LBB0_2", "s_mov_b64 s[8:9], s[2:3]", ".LBB0_2:",
             "global_load_b32 v3, v0, s[8:9]")  # fmt: skip
    assert traced(*lines) == {"w_codes": {4: 1}, "w_scales": {4: 1}}


def test_a_weight_in_narrow_loads_is_refused(monkeypatch):
    """A row of an odd number of 3-bit groups allows 8 bytes at a time; here the kernel claims more."""
    kernels = library(attributes("gfx1100"), "float16")
    function = kernels.build_linear(Linear(SCHEMES["q3f16_1"], 64, 96, 1), "linear")
    function = function.with_attr("global_symbol", "linear")

    def compiled():
        return tvm.compile(function, assembly.target("gfx1100")).mod

    (row,) = rows(compiled(), print)
    assert row["128-bit weights"] == "43 %"  # high planes and scales
    monkeypatch.setattr(assembly, "_gemv", lambda f: (3, True))
    with pytest.raises(MlcrtError, match="loads 43 % of its weight 16 bytes at a time"):
        rows(compiled(), print)


def test_registers_in_memory_are_refused_or_said(monkeypatch):
    """A product of too many rows at once for the registers of a lane."""
    kernels = library(attributes("gfx1100"), "float16")
    kernels.tiles = replace(kernels.tiles, linear=replace(kernels.tiles.linear, gemv_rows=40, gemv_fill=1))
    function = kernels.build_linear(Linear(SCHEMES["q0f32"], 320, 256, 1), "linear")
    built = tvm.compile(function.with_attr("global_symbol", "linear"), assembly.target("gfx1100")).mod
    with pytest.raises(MlcrtError, match=r"linear_kernel for gfx1100 keeps \d+ bytes a thread in memory \(\d+ sp"):
        rows(built, print)
    monkeypatch.setattr(inspection, "examine", lambda *a: [replace(f, weights=None, wide=False) for f in examine(*a)])
    said = []
    (row,) = rows(built, said.append)
    assert row["spills"] > 0 < row["scratch bytes"] and len(said) == 1 and said[0].startswith("warning: linear_kernel")


@pytest.mark.parametrize("arch", ["gfx1030", "gfx1200", "gfx942"])
def test_weights_come_in_wide_loads_on_every_chip(arch):
    kernels = library(attributes(arch), "float16")
    function = kernels.build_linear(Linear(SCHEMES["q3f16_1"], 256, 512, 1, 1e-5, True, None, True), "linear")
    function = function.with_attr("global_symbol", "linear")
    (made,) = assembly.listings(tvm.compile(function, assembly.target(arch)).mod)
    (facts,) = examine(made.texts[arch], arch, made.threads, made.gemvs)
    assert facts.wide and facts.weights == 1.0
