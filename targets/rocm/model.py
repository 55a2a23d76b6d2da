"""A performance model of decoding on an RDNA3 card: arithmetic on what the emulator counts, and no measurement.

Every kernel of one token's step is run on the emulator at its real shape. For each the model takes the longest of

    memory   bytes of distinct 64-byte lines touched / memory bandwidth (nothing is assumed to stay in a cache)
    VALU     vector instructions / (SIMDs x clock), one a cycle, transcendental ones four cycles, WMMA 32
    LDS      bytes / (128 a cycle and compute unit) + bank conflicts
    L0       bytes of the lines each load touches / (64 a cycle and compute unit)

and adds the kernels of the step up. It is a bound: launches, latencies, tails and contention come on top of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Card:
    """bandwidth: bytes/s; cus: compute units of two SIMDs with 32 lanes; clock: Hz, the one AMD calls game clock."""

    name: str
    bandwidth: float
    cus: int
    clock: float

    @property
    def simds(self) -> int:
        return 2 * self.cus


# AMD's product pages: memory bandwidth, compute units, game frequency
CARDS = {
    "rx7900xtx": Card("RX 7900 XTX", 960e9, 96, 2.3e9),
    "rx7800xt": Card("RX 7800 XT", 624e9, 60, 2.124e9),
    "8060s": Card("Radeon 8060S", 256e9, 40, 2.5e9),
    "780m": Card("Radeon 780M", 89.6e9, 12, 2.5e9),
}
_SLOW = ("v_exp", "v_log", "v_rcp", "v_rsq", "v_sqrt", "v_sin", "v_cos")  # a quarter of the rate
_WMMA_CYCLES = 32  # 16 x 16 x 16 multiplications and additions at 512 a cycle and compute unit


@dataclass
class KernelEstimate:
    """One kernel of the step. count: launches a token; bytes: of distinct lines; weight_bytes: of a linear layer's
    parameters; valu: VALU issue cycles of all waves; instructions: wave instructions; times in seconds of one
    launch; bound: which of them is the longest."""

    name: str
    count: int
    bytes: int
    weight_bytes: int
    valu: int
    instructions: int
    memory_s: float
    valu_s: float
    lds_s: float
    l0_s: float

    @property
    def seconds(self) -> float:
        return max(self.memory_s, self.valu_s, self.lds_s, self.l0_s)

    @property
    def bound(self) -> str:
        return max(("memory", "valu", "lds", "l0"), key=lambda n: getattr(self, f"{n}_s"))


@dataclass(frozen=True)
class Call:
    """One kind of launch in the step: a PrimFunc, (shape, dtype) of its arguments, how many of them are inputs, which
    of those are parameters of the model, and how often it is called."""

    name: str
    function: object
    arguments: tuple[tuple[tuple[int, ...], str], ...]
    inputs: int
    parameters: frozenset[int]
    count: int


def decode_calls(config, scheme_of: Callable[[str], object], library, context: int) -> list[Call]:
    """What one decode step launches, with `context` positions in the cache."""
    from tvm import relax

    from mlcrt.compile.pipeline import phases
    from mlcrt.models.decoder import build_module

    mod, _ = build_module(config, scheme_of, library.kv_shapes, library.kv_dtype)
    for name, phase in phases(library):
        mod = phase(mod)
        if name == "schedule-remaining":
            break
    found: dict[tuple, list] = {}

    def visit(call) -> None:
        if not isinstance(call, relax.Call) or getattr(call.op, "name", "") not in (
            "relax.call_tir", "relax.call_tir_inplace",
        ):  # fmt: skip
            return
        args = list(call.args[1])
        outputs = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]
        if call.op.name == "relax.call_tir_inplace":
            places = [int(i) for i in call.attrs.inplace_indices]
            outputs = [o for o, at in zip(outputs, places, strict=True) if at < 0]
        shapes = tuple(_concrete(a.ty if hasattr(a, "ty") else a, context) for a in (*args, *outputs))
        weights = frozenset(i for i, a in enumerate(args) if _is_parameter(a, bindings))
        key = (call.args[0].name_hint, shapes)
        found.setdefault(key, [len(args), weights, 0])[2] += 1

    function = mod["decode"]
    bindings = {hash(b.var): b.value for block in function.body.blocks for b in block.bindings}
    for value in bindings.values():
        visit(value)
    return [Call(name, mod[name], shapes, *rest) for (name, shapes), rest in found.items()]


def _concrete(kind, context: int) -> tuple[tuple[int, ...], str]:
    from mlcrt.kernels.arguments import BLOCK

    blocks = -(-(context + 1) // BLOCK)
    return tuple(int(d) if hasattr(d, "value") else blocks for d in kind.shape), str(kind.dtype)


def _is_parameter(expression, bindings: dict) -> bool:
    """Whether a tensor is taken out of the packed parameters."""
    return str(bindings.get(hash(expression))).startswith("packed_params[")


def estimate(call: Call, card: Card, context: int) -> list[KernelEstimate]:
    """The kernels of one call."""
    from .emulate import Emulated
    from .emulator import Unwritten

    rng, arrays = np.random.default_rng(0), []
    for i, (shape, dtype) in enumerate(call.arguments):
        if dtype == "int32":
            array = np.full(shape, context if shape == (1,) and call.name != "embed" else 0, np.int32)
        elif dtype == "uint32":
            array = rng.integers(0, 2**32, shape, np.uint32)
        else:
            array = np.full(shape, 0.01, dtype)
        arrays.append(array if i < call.inputs else Unwritten(array))
    kernel = Emulated(call.function)
    reports = kernel(*arrays)
    weights = sum(arrays[i].nbytes for i in call.parameters) if call.name.startswith("linear") else 0
    largest = max(reports, key=lambda r: r.touched_bytes)
    names = [call.name, *(f"{call.name}, kernel {i}" for i in range(2, len(reports) + 1))]
    return [
        _of(name, call.count, r, card, weights if r is largest else 0) for name, r in zip(names, reports, strict=True)
    ]  # fmt: skip


def _of(name: str, count: int, report, card: Card, weights: int) -> KernelEstimate:
    slow = sum(n for name, n in report.mnemonics.items() if name.startswith(_SLOW))
    classes = report.classes
    valu = classes["VALU"] + classes["VOPD"] + 3 * slow + _WMMA_CYCLES * classes["WMMA"]
    lds = report.bytes("lds") / 128 + sum(t.conflict_cycles for k, t in report.traffic.items() if k[0] == "lds")
    l0 = sum(t.lines64 for k, t in report.traffic.items() if k[0] == "global")
    return KernelEstimate(
        name, count, report.touched_bytes, weights, valu, report.instructions, report.touched_bytes / card.bandwidth,
        valu / (card.simds * card.clock), lds / (card.cus * card.clock), l0 / (card.cus * card.clock),
    )  # fmt: skip


def step_estimate(shape: str, quantization: str, card: Card, context: int, progress=lambda text: None) -> list:
    """KernelEstimates of a decode step of a known shape (mlcrt.measure.synthetic) or a config.json."""
    import tvm

    from mlcrt.measure.synthetic import synthetic_config
    from mlcrt.quant.scheme import scheme

    from . import attributes, library

    _, config = synthetic_config(shape)
    chosen, kernels = scheme(quantization).row_major(), library(attributes("gfx1100"), "float16")
    with tvm.target.Target(attributes("gfx1100").tvm_target()):
        calls = decode_calls(config, lambda name: chosen, kernels, context)
    found = []
    for call in calls:
        progress(f"emulating {call.name} x{call.count}")
        found += estimate(call, card, context)
    return found


def summary(kernels: list[KernelEstimate]) -> dict:
    """Totals of a token. bound: tokens/s if nothing but the longest of each kernel's four times counted."""
    seconds = sum(k.count * k.seconds for k in kernels)
    weights = sum(k.count * k.weight_bytes for k in kernels)
    gemv = [k for k in kernels if k.weight_bytes]
    return {
        "launches": sum(k.count for k in kernels),
        "bytes": sum(k.count * k.bytes for k in kernels),
        "weight_bytes": weights,
        "instructions": sum(k.count * k.instructions for k in kernels),
        "seconds": seconds,
        "tokens_per_second_bound": 1 / seconds,
        "memory_share": sum(k.count * k.memory_s for k in kernels) / seconds,
        "valu_per_weight_byte": 32 * sum(k.count * k.valu for k in gemv) / weights if weights else 0.0,
        "valu_over_memory": sum(k.count * k.valu_s for k in gemv) / max(sum(k.count * k.memory_s for k in gemv), 1e-30),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="llama2-7b, llama3-8b, llama3.2-1b, smollm2-135m or a config.json")
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--card", default="rx7900xtx", choices=CARDS)
    parser.add_argument("--context", type=int, default=16, help="positions in the cache")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    from mlcrt.commands import options

    card = CARDS[args.card]
    kernels = step_estimate(args.shape, args.quantization, card, args.context, options.report)
    total = summary(kernels)
    if args.json:
        print(json.dumps({"model": True, "card": asdict(card), "total": total, "kernels": list(map(asdict, kernels))}))
        return
    rows = [
        {
            "kernel": k.name, "a token": k.count, "MB": f"{k.bytes / 1e6:.2f}",
            "instructions": f"{k.instructions:,}", "memory us": f"{1e6 * k.memory_s:.2f}",
            "VALU us": f"{1e6 * k.valu_s:.2f}", "LDS us": f"{1e6 * k.lds_s:.2f}", "L0 us": f"{1e6 * k.l0_s:.2f}",
            "bound": k.bound,
        }
        for k in kernels
    ]  # fmt: skip
    options.report_rows(f"performance model (not a measurement): {args.shape} on {card.name}", rows)
    print(
        f"{total['bytes'] / 1e9:.3f} GB and {total['instructions'] / 1e6:.1f} M wave instructions a token in "
        f"{total['launches']} launches; at most {total['tokens_per_second_bound']:.0f} tokens/s, of which memory binds "
        f"{100 * total['memory_share']:.0f} %; GEMVs issue {total['valu_per_weight_byte']:.2f} VALU instructions of a "
        f"lane a weight byte, {100 * total['valu_over_memory']:.0f} % of what their memory time allows"
    )


if __name__ == "__main__":
    main()
