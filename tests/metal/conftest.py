"""Metal checks on Linux share the CPU kernels' harness, and need a CPU with half-precision conversion."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "kernels"))


@pytest.fixture(scope="session", autouse=True)
def able():
    import msl

    from mlcrt.targets import cpu

    missing = cpu.missing_features(list(cpu.attributes(msl.LEVEL).features))
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"Metal kernels are executed on {msl.LEVEL}, and this machine lacks {', '.join(missing)}")
