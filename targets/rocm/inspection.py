"""The check and the table of `mlcrt compile`: every kernel of a built library, on every chip it was built for."""

from __future__ import annotations

from collections.abc import Callable

from mlcrt.errors import MlcrtError

from .assembly import listings
from .lint import KernelFacts, examine

WIDE_SHARE = 0.95  # of a weight's bytes, in 128-bit loads


def rows(module, report: Callable[[str], None]) -> list[dict]:
    """One row per kernel and chip; report(line) is told of a kernel that keeps registers in memory.

    Raises MlcrtError for a barrier that LDS stores may cross, for a kernel that no chip could start, and for a product
    of one token that keeps registers in memory or should load its weight 16 bytes at a time and does not.
    """
    found = []
    for made in listings(module):
        for arch, text in made.texts.items():
            found += examine(text, arch, made.threads, made.gemvs)
    for facts in found:
        if facts.racing:
            raise MlcrtError(
                f"{facts.kernel} for {facts.chip} was compiled into code that races: the barrier at line "
                f"{facts.racing[0]} of its assembly can be reached with LDS stores in flight; this is a fault of mlcrt"
            )
        if facts.threads > facts.most_threads or facts.lds > 65536 or not facts.occupancy:
            raise MlcrtError(
                f"{facts.kernel} cannot run on {facts.chip}: it takes {facts.threads} threads and {facts.lds} bytes of "
                f"LDS, where {facts.most_threads} and 65536 are allowed; compile this model for cpu"
            )
        if facts.wide and (facts.weights or 0) < WIDE_SHARE:
            raise MlcrtError(
                f"{facts.kernel} for {facts.chip} loads {100 * (facts.weights or 0):.0f} % of its weight 16 bytes at a "
                f"time, where {100 * WIDE_SHARE:.0f} % is the least; this is a fault of mlcrt"
            )
        if facts.scratch:  # scalar registers that spill to lanes of others cost next to nothing
            kept = f"{facts.kernel} for {facts.chip} keeps {facts.scratch} bytes a thread in memory"
            if facts.weights is not None:
                raise MlcrtError(f"{kept} ({facts.spills} spilled registers); this is a fault of mlcrt")
            report(f"warning: {kept} ({facts.spills} spilled registers), which makes it slow")
    return [_row(f) for f in sorted(found, key=lambda f: f.kernel)]


def _row(f: KernelFacts) -> dict:
    share = f.weights
    return {
        "kernel": f.kernel.removesuffix("_kernel"),
        "chip": f.chip,
        "threads": f.threads,
        "VGPRs": f.vgprs,
        "SGPRs": f.sgprs,
        "LDS bytes": f.lds,
        "spills": f.spills,
        "scratch bytes": f.scratch,
        "waves/SIMD": f.occupancy,
        "load widths": " ".join(f"{count}x{8 * width}" for width, count in sorted(f.loads.items(), reverse=True)),
        "128-bit weights": "" if share is None else f"{100 * share:.0f} %",
        "barriers": f.barriers,
    }
