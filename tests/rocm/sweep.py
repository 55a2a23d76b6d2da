"""python tests/rocm/sweep.py [CHIP,CHIP…]: compile the products of one token at the row lengths of known models, in
every scheme, and experts, and name each whose machine code `mlcrt compile` would refuse or warn of. Some minutes a
chip; not part of the test suite.
"""

from __future__ import annotations

import sys

import tvm

from mlcrt.errors import MlcrtError
from mlcrt.kernels.records import Linear, Moe
from mlcrt.quant.scheme import SCHEMES
from mlcrt.targets.rocm import assembly, attributes, library
from mlcrt.targets.rocm.inspection import rows

COLUMNS = (576, 896, 1536, 2048, 2304, 3072, 3584, 4096, 5120, 8192, 11008, 13824, 14336, 18944, 28672)
EXPERTS = ((2048, 768, 128, 8), (4096, 14336, 8, 2), (2880, 2880, 32, 4), (2048, 1408, 60, 4), (6144, 16384, 8, 2))
FORMS = ((1e-5, True, "silu", False), (None, False, None, True))  # norm, bias, gate, residual


def main(chips: str) -> int:
    arch, found = attributes(chips), 0
    kernels = library(arch, "float16")

    def check(what: str, function) -> None:
        nonlocal found
        said: list[str] = []
        function = function.with_attr("global_symbol", what.split()[0])
        with assembly.quiet(), tvm.transform.PassContext(opt_level=3, disabled_pass=list(kernels.skipped_passes)):
            built = tvm.compile(function, arch.tvm_target())
        try:
            rows(built.mod, said.append)
        except MlcrtError as error:
            said.append(str(error))
        found += len(said)
        print(what, *said or ["good"], sep=": ", flush=True)

    for scheme in (s for s in SCHEMES.values() if s.layout == "NK"):
        for columns in COLUMNS:
            for form in FORMS:
                op = Linear(scheme, 8192, columns, 1, *form)
                check(f"linear {scheme.name} {columns} {form[2]}", kernels.build_linear(op, "linear"))
        for shape in EXPERTS:
            op = Moe(scheme, scheme, *shape, True, "silu", 1, 1e-5, True)
            check(f"moe {scheme.name} {shape}", kernels.build_moe(op, "moe"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(",".join(sys.argv[1:])))
