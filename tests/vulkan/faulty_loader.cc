// A Vulkan loader that passes everything to the real one (REAL_VULKAN names its file) and lets some calls fail:
// FAULT=FUNCTION:N:RESULT makes calls of FUNCTION return RESULT from the N-th on, counted from 0. LACKS=FEATURE hides a
// feature of every device.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "vulkan_api.h"

namespace {

PFN_vkGetInstanceProcAddr real_instance = nullptr;
PFN_vkGetDeviceProcAddr real_device = nullptr;
int calls = 0;

// The result that this call of `name` is to have, or 0.
VkResult Fault(const char* name) {
  const char* text = std::getenv("FAULT");
  std::string wanted = text == nullptr ? "" : text;
  size_t first = wanted.find(':'), second = wanted.rfind(':');
  if (first == std::string::npos || wanted.substr(0, first) != name) return VK_SUCCESS;
  if (calls++ < std::atoi(wanted.c_str() + first + 1)) return VK_SUCCESS;
  return static_cast<VkResult>(std::atoi(wanted.c_str() + second + 1));
}

#define WRAP(name, arguments, values)                 \
  PFN_##name real_##name = nullptr;                   \
  VkResult name##Faulty arguments {                   \
    VkResult fault = Fault(#name);                    \
    return fault < 0 ? fault : real_##name values;    \
  }
WRAP(vkQueueSubmit, (VkQueue q, uint32_t n, const VkSubmitInfo* s, VkFence f), (q, n, s, f))
WRAP(vkWaitSemaphores, (VkDevice d, const VkSemaphoreWaitInfo* i, uint64_t t), (d, i, t))
WRAP(vkAllocateMemory,
     (VkDevice d, const VkMemoryAllocateInfo* i, const VkAllocationCallbacks* a, VkDeviceMemory* m), (d, i, a, m))
#undef WRAP

PFN_vkGetPhysicalDeviceFeatures2 real_features = nullptr;

void FewerFeatures(VkPhysicalDevice device, VkPhysicalDeviceFeatures2* features) {
  real_features(device, features);
  const char* text = std::getenv("LACKS");
  std::string lacks = text == nullptr ? "" : text;
  if (lacks == "shaderInt64") features->features.shaderInt64 = 0;
  struct Link {
    VkStructureType type;
    Link* next;
  };
  for (auto* link = static_cast<Link*>(features->pNext); link != nullptr; link = link->next) {
    if (link->type != VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES) continue;
    auto* v11 = reinterpret_cast<VkPhysicalDeviceVulkan11Features*>(link);
    if (lacks == "storageBuffer16BitAccess") v11->storageBuffer16BitAccess = 0;
  }
}

PFN_vkVoidFunction FromDevice(VkDevice device, const char* name) {
  PFN_vkVoidFunction found = real_device(device, name);
#define WRAPPED(f)                                       \
  if (std::strcmp(name, #f) == 0) {                      \
    real_##f = reinterpret_cast<PFN_##f>(found);         \
    return reinterpret_cast<PFN_vkVoidFunction>(f##Faulty); \
  }
  WRAPPED(vkQueueSubmit)
  WRAPPED(vkWaitSemaphores)
  WRAPPED(vkAllocateMemory)
#undef WRAPPED
  return found;
}

}  // namespace

extern "C" PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance, const char* name) {
  if (real_instance == nullptr) {
    void* library = dlopen(std::getenv("REAL_VULKAN"), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return nullptr;
    real_instance = reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(library, "vkGetInstanceProcAddr"));
  }
  PFN_vkVoidFunction found = real_instance(instance, name);
  if (std::strcmp(name, "vkGetPhysicalDeviceFeatures2") == 0) {
    real_features = reinterpret_cast<PFN_vkGetPhysicalDeviceFeatures2>(found);
    return reinterpret_cast<PFN_vkVoidFunction>(FewerFeatures);
  }
  if (std::strcmp(name, "vkGetDeviceProcAddr") != 0) return found;
  real_device = reinterpret_cast<PFN_vkGetDeviceProcAddr>(found);
  return reinterpret_cast<PFN_vkVoidFunction>(FromDevice);
}
