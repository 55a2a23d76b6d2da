"""The engine on a Metal library whose host code is for this machine and whose kernels run on the CPU."""

from __future__ import annotations

from pathlib import Path

import msl

from mlcrt.compile.pipeline import compile_decoder
from mlcrt.dist import open_dist
from mlcrt.quant.model import float_kind
from mlcrt.quant.scheme import SCHEMES
from mlcrt.runtime.engine import Engine
from mlcrt.targets import metal
from mlcrt.targets.cpu.device import CpuRuntime


def compile_twin(folder: Path, dump: Path | None = None):
    """(executable with the Metal kernels as they are, those kernels) of a dist folder."""
    dist = open_dist(folder)
    arch = metal.attributes()
    library = metal.library(arch, arch.kv_dtype(float_kind(dist)))
    schemes = dist.manifest["schemes"]
    executable, _, _ = compile_decoder(
        dist.config, lambda p: SCHEMES[schemes[p]].row_major(), msl.twin(), library, library.chunk, dump
    )
    return executable, msl.kernels_of_module(executable.mod)


def engine(folder: Path, executable, monkeypatch) -> Engine:
    """An engine for the folder's metal library that runs `executable` instead, through `msl.run_here`."""
    msl.run_here(executable.mod)

    class Runtime(CpuRuntime):
        def load(self, library):
            return self._vm.VirtualMachine(executable, self.device)

    monkeypatch.setattr(metal, "runtime", Runtime)
    return Engine(folder, "metal")
