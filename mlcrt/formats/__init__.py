"""Model files in: Hugging Face folders, hub repositories and GGUF files become named tensors and one config dict."""

from __future__ import annotations

from mlcrt.formats.source import ModelSource, open_model
from mlcrt.formats.tensors import TensorInfo, TensorSource

__all__ = ["ModelSource", "TensorInfo", "TensorSource", "open_model"]
