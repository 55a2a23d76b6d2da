"""Vulkan 1.2 and later: SPIR-V made by `mlcrt.targets.vulkan.codegen`."""
