"""Tool calls: how models write them, and how they are read out of an answer while it streams."""

from mlcrt.serve.tools.formats import ToolFormat, pick_format

__all__ = ["ToolFormat", "pick_format"]
