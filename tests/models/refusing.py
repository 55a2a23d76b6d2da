"""Make everything that compiles raise: TVM's code generators and callbacks, compilers as libraries and as programs."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

_LIBRARIES = ("nvrtc", "nvfatbin", "nvPTXCompiler", "LLVM", "clang")


def refuse() -> list[str]:
    """The names of what raises from now on."""
    import tvm  # noqa: F401  (registers them)
    import tvm_ffi
    from tvm_ffi.registry import list_global_func_names

    import mlcrt.targets.native as native

    def refusal(name: str):
        def call(*arguments, **options):
            raise AssertionError(f"{name} was called: something is compiled")

        return call

    names = [n for n in list_global_func_names() if n.startswith(("target.build.", "tvm_callback_")) or "codegen" in n]
    names = sorted({*names, "tvm_callback_cuda_compile", "tvm_callback_metal_compile", "tvm_callback_rocm_link"})
    for name in names:
        tvm_ffi.register_global_func(name, refusal(name), override=True)
    programs = (subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "fork"), (native, "build_native")
    for owner, name in programs:
        if hasattr(owner, name):
            setattr(owner, name, refusal(name))
    load = ctypes.CDLL.__init__

    def checked(self, name=None, *arguments, **options):
        if name and any(part in Path(str(name)).name for part in _LIBRARIES):
            refusal(str(name))()
        load(self, name, *arguments, **options)

    ctypes.CDLL.__init__ = checked
    return names


def mapped() -> list[str]:
    """Compilers among the libraries of this process."""
    maps = Path("/proc/self/maps").read_text()
    return [name for name in ("libnvrtc", "libnvfatbin", "libnvPTXCompiler") if name in maps]


USE = """
import os, sys
sys.path.insert(0, sys.argv[1])
import refusing
from mlcrt.targets import all_targets
from mlcrt.runtime.engine import Engine
from mlcrt.runtime.sampler import Sampler
from mlcrt.runtime.sampling import SamplingParams
all_targets()[sys.argv[3]].probe()  # a sidecar in C++ is built once, by whoever needs it first
refused = refusing.refuse()
assert any(n.startswith("target.build.") for n in refused) or os.environ.get("TVM_USE_RUNTIME_LIB"), refused
engine = Engine(sys.argv[2], sys.argv[3], context=64)
sampler = Sampler(SamplingParams(seed=1), engine.config.vocab)
tokens = [sampler.sample(engine.prefill([1, 5, 9]))]
drawing = engine.drawing(sampler)
for i in range(6):
    tokens.append(drawing.after(tokens[-1], i == 5) if drawing else sampler.sample(engine.decode(tokens[-1])))
engine.greedy(3)
assert refusing.mapped() == []
print("compiled nothing", tokens)
"""


def use(dist: Path, target: str, **environment: str) -> subprocess.CompletedProcess:
    """A process that loads a model and makes some tokens, in which whatever compiles raises."""
    import sys

    command = [sys.executable, "-c", USE, str(Path(__file__).parent), str(dist), target]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=170)
