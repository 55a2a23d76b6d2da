"""The engine on a Metal library whose host code is for this machine and whose kernels run on the CPU."""

from __future__ import annotations

from pathlib import Path

import msl

from mlcrt.compile import compile_model, pipeline
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
    library.batch = dist.manifest["targets"]["metal"]["batch"]
    schemes = dist.manifest["schemes"]
    executable, _, _ = compile_decoder(
        dist.config, lambda p: SCHEMES[schemes[p]].row_major(), msl.twin(), library, dump
    )
    return executable, msl.kernels_of_module(executable.mod)


class _Kept:
    """In place of an executable that is about to be linked for a Mac."""

    def __init__(self, executable):
        self.executable = executable

    def export_library(self, file: str, **_) -> None:
        Path(file).write_bytes(b"for this machine")


def engine(model: Path, scheme: str, root: Path, monkeypatch, targets: str = "metal", flags=()) -> Engine:
    """An engine for `model` compiled for metal (and more) with this machine as host, kernels run by `msl.run_here`;
    flags: more options for the compiler of the kernels."""
    made = []

    def compile_here(config, scheme_of, target, *rest):
        if target.kind.name != "metal":
            return compile_decoder(config, scheme_of, target, *rest)
        executable, *signature = compile_decoder(config, scheme_of, msl.twin(), *rest)
        made.append(executable)
        return _Kept(executable), *signature

    class Runtime(CpuRuntime):
        def load(self, library):
            return self._vm.VirtualMachine(made[0], self.device)

    monkeypatch.setattr(pipeline, "compile_decoder", compile_here)
    monkeypatch.setattr(metal, "runtime", Runtime)
    for target in targets.split(","):  # several at once would be compiled in other processes
        folder = compile_model(model, scheme, target, dist_root=root, slots=0)
    kernels, _ = msl.run_here(made[0].mod, flags)
    assert msl.check(list(kernels.values())) == []
    return Engine(folder, "metal")
