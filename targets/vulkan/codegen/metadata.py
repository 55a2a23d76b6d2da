"""What a runtime must know about a compiled kernel besides its words."""

from __future__ import annotations

from dataclasses import dataclass

from .analysis import statements

# capability → what the device must report. Plain names are members of VkPhysicalDeviceFeatures and the Vulkan11/12/13
# and extension feature structures; "subgroup:X" is a bit of subgroupSupportedOperations; "property:X" is a member of
# VkPhysicalDeviceVulkan12Properties.
FEATURES_OF_CAPABILITY = {
    "Shader": (),
    "PhysicalStorageBufferAddresses": ("bufferDeviceAddress",),
    "Int64": ("shaderInt64",),
    "Int16": ("shaderInt16",),
    "Int8": ("shaderInt8",),
    "Float16": ("shaderFloat16",),
    "Float64": ("shaderFloat64",),
    "StorageBuffer16BitAccess": ("storageBuffer16BitAccess",),
    "StorageBuffer8BitAccess": ("storageBuffer8BitAccess",),
    "Int64Atomics": ("shaderBufferInt64Atomics",),
    "AtomicFloat32AddEXT": ("shaderSharedFloat32AtomicAdd",),
    "GroupNonUniform": ("subgroup:basic",),
    "GroupNonUniformVote": ("subgroup:vote",),
    "GroupNonUniformArithmetic": ("subgroup:arithmetic",),
    "GroupNonUniformBallot": ("subgroup:ballot",),
    "GroupNonUniformShuffle": ("subgroup:shuffle",),
    "DotProduct": ("shaderIntegerDotProduct",),
    "DotProductInput4x8BitPacked": ("shaderIntegerDotProduct",),
    "CooperativeMatrixKHR": ("cooperativeMatrix",),  # and the shape, which the emitter names
    "VulkanMemoryModel": ("vulkanMemoryModel",),
    "SignedZeroInfNanPreserve": (),  # per width: the emitter names the properties
}


@dataclass(frozen=True)
class Argument:
    """One kernel argument. dtype: 'pointer' (a 64-bit device address) or the type of the slot: int32, uint32, int64,
    uint64, float32 or float64 (narrower scalars are widened); offset: bytes into the argument block; reads, writes:
    what the kernel does behind a pointer."""

    name: str
    dtype: str
    offset: int
    reads: bool = False
    writes: bool = False

    @property
    def size(self) -> int:
        return 8 if self.dtype == "pointer" or self.dtype.endswith("64") else 4


@dataclass(frozen=True)
class ShaderModule:
    """A kernel as one SPIR-V module with the entry point 'main'.

    arguments: in call order; argument_bytes: size of their block. The block is the push constants, or, where
    `arguments_in_buffer`, a buffer whose device address is the only push constant (for more than
    `PUSH_CONSTANT_LIMIT` bytes). launch: the thread tags whose extents follow the arguments in a call.
    workgroup_size: threads in x, y, z. shared_bytes: workgroup memory. requirements: what the device must report (see
    FEATURES_OF_CAPABILITY). subgroup: the kernel uses subgroup operations, so its pipeline needs full subgroups;
    min_subgroup_size: the smallest subgroup it is correct for; subgroup_size: the one it was made for, or None.
    """

    name: str
    code: bytes
    arguments: tuple[Argument, ...]
    argument_bytes: int
    arguments_in_buffer: bool
    launch: tuple[str, ...]
    workgroup_size: tuple[int, int, int]
    shared_bytes: int
    capabilities: tuple[str, ...]
    requirements: tuple[str, ...]
    subgroup: bool
    min_subgroup_size: int
    subgroup_size: int | None

    @property
    def push_constant_bytes(self) -> int:
        return 8 if self.arguments_in_buffer else self.argument_bytes


PUSH_CONSTANT_LIMIT = 128  # bytes: what every Vulkan device has


def grid_extents(function) -> dict[str, str]:
    """blockIdx.* → extent of a lowered function, in words that two functions can be compared by."""
    return {
        str(s.node.thread_tag): str(s.value)
        for s in statements(function.body)
        if type(s).__name__ == "AttrStmt" and s.attr_key == "thread_extent" and str(s.node.thread_tag)[0] == "b"
    }
