"""TensorIR → SPIR-V binaries for Vulkan.

    lowered = lower(module)              # stock TVM lowering; the device half of the module
    shaders = compile_kernels(lowered)   # one ShaderModule per kernel: words, arguments, needs

Pointers are buffer device addresses and travel with the scalars in push constants; there are no descriptors.
From here on: dtypes, spirv (numbers of the specification), builder (ids, types, constants, sections), analysis
(what is known about a kernel before it is emitted), arithmetic, mathlib, memory, expressions, intrinsics, statements,
compile (a whole kernel), metadata (what the runtime needs to know).
"""

from __future__ import annotations

from .compile import compile_kernels, lower, vulkan_target
from .errors import CodegenError
from .metadata import Argument, ShaderModule

__all__ = ["Argument", "CodegenError", "ShaderModule", "compile_kernels", "lower", "vulkan_target"]
