// The Vulkan loader, the physical devices and what each of them can do.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "vulkan_api.h"

namespace mlcrt {

#define MLCRT_INSTANCE_FUNCTIONS(X)                                                               \
  X(vkEnumeratePhysicalDevices) X(vkEnumerateDeviceExtensionProperties)                           \
  X(vkGetPhysicalDeviceProperties) X(vkGetPhysicalDeviceProperties2)                              \
  X(vkGetPhysicalDeviceFeatures2) X(vkGetPhysicalDeviceMemoryProperties2)                         \
  X(vkGetPhysicalDeviceQueueFamilyProperties) X(vkCreateDevice) X(vkGetDeviceProcAddr)

#define MLCRT_DEVICE_FUNCTIONS(X)                                                                 \
  X(vkGetDeviceQueue) X(vkCreateBuffer) X(vkDestroyBuffer) X(vkGetBufferMemoryRequirements)       \
  X(vkAllocateMemory) X(vkFreeMemory) X(vkBindBufferMemory) X(vkMapMemory)                        \
  X(vkGetBufferDeviceAddress) X(vkCreateCommandPool) X(vkAllocateCommandBuffers)                  \
  X(vkFreeCommandBuffers) X(vkBeginCommandBuffer) X(vkEndCommandBuffer) X(vkQueueSubmit)          \
  X(vkQueueBindSparse) X(vkQueueWaitIdle) X(vkCreateSemaphore) X(vkWaitSemaphores)        \
  X(vkGetSemaphoreCounterValue)                                                                  \
  X(vkCreateShaderModule) X(vkDestroyShaderModule) X(vkCreatePipelineLayout)                      \
  X(vkCreateComputePipelines) X(vkDestroyPipeline) X(vkCreatePipelineCache)                       \
  X(vkGetPipelineCacheData) X(vkCmdBindPipeline) X(vkCmdPushConstants) X(vkCmdDispatch)           \
  X(vkCmdPipelineBarrier) X(vkCmdCopyBuffer) X(vkCmdUpdateBuffer) X(vkCreateQueryPool)            \
  X(vkDestroyQueryPool) X(vkCmdResetQueryPool) X(vkCmdWriteTimestamp) X(vkGetQueryPoolResults)

struct InstanceFunctions {
#define X(f) PFN_##f f = nullptr;
  MLCRT_INSTANCE_FUNCTIONS(X)
#undef X
};

struct DeviceFunctions {
#define X(f) PFN_##f f = nullptr;
  MLCRT_DEVICE_FUNCTIONS(X)
#undef X
};

// What a kernel library is checked against, and what `mlcrt devices` prints.
struct PhysicalDevice {
  VkPhysicalDevice handle = nullptr;
  std::string name, driver, kind;  // kind: discrete, integrated, virtual, cpu or other
  VkPhysicalDeviceProperties properties{};
  VkPhysicalDeviceMemoryProperties memory{};
  uint64_t device_bytes = 0, max_allocation = 0, max_buffer = 0;
  uint32_t queue_family = 0, subgroup = 1, min_subgroup = 0, max_subgroup = 0;  // 0: the size cannot be chosen
  uint32_t timestamp_bits = 0;
  bool full_subgroups = false, memory_budget = false;
  std::map<std::string, bool> features;  // names as in codegen/metadata.py
  std::vector<std::string> extensions;   // to enable

  bool Has(const std::string& requirement) const;
  // Requirements of every library that this device lacks; empty where it can be used.
  std::vector<std::string> Missing() const;
};

// The devices in the order of their ids: the most capable kinds first, in the driver's order within a kind.
const std::vector<PhysicalDevice>& PhysicalDevices();
// Why there are none.
const std::string& LoaderProblem();
const InstanceFunctions& Instance();
// A JSON array with one object per device.
std::string DescribeDevices();

// Enabled feature structures for vkCreateDevice; `next` chains what the device has.
struct FeatureChain {
  VkPhysicalDeviceFeatures2 core{};
  VkPhysicalDeviceVulkan11Features v11{};
  VkPhysicalDeviceVulkan12Features v12{};
  VkPhysicalDeviceVulkan13Features v13{};
  VkPhysicalDeviceShaderAtomicFloatFeaturesEXT atomic_float{};
  VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix{};

  FeatureChain(const PhysicalDevice& device);
  FeatureChain(const FeatureChain&) = delete;
  // Calls visit(name, VkBool32&) for every feature that kernels or the runtime may ask for.
  template <typename F>
  void Each(F visit);
};

template <typename F>
void FeatureChain::Each(F visit) {
#define X(from, name) visit(#name, from.name);
  X(core.features, shaderInt64) X(core.features, shaderInt16) X(core.features, shaderFloat64)
  X(core.features, sparseBinding)
  X(v11, storageBuffer16BitAccess)
  X(v12, storageBuffer8BitAccess) X(v12, shaderFloat16) X(v12, shaderInt8) X(v12, bufferDeviceAddress)
  X(v12, timelineSemaphore) X(v12, shaderBufferInt64Atomics) X(v12, shaderSubgroupExtendedTypes)
  X(v12, vulkanMemoryModel)
  X(v13, subgroupSizeControl) X(v13, computeFullSubgroups) X(v13, shaderIntegerDotProduct) X(v13, maintenance4)
  X(atomic_float, shaderSharedFloat32AtomicAdd)
  X(matrix, cooperativeMatrix)
#undef X
}

}  // namespace mlcrt
