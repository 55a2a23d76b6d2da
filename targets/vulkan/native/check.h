// Results of Vulkan calls as errors in words.
#pragma once
#include <tvm/ffi/error.h>

#include "vulkan_api.h"

namespace mlcrt {

inline const char* Words(VkResult result) {
  switch (result) {
    case VK_ERROR_OUT_OF_HOST_MEMORY: return "the host is out of memory";
    case VK_ERROR_OUT_OF_DEVICE_MEMORY: return "the device is out of memory; choose a smaller --context or model";
    case VK_ERROR_DEVICE_LOST:
      return "the device was lost (the driver reset it, or a kernel ran too long); start again";
    case VK_ERROR_INITIALIZATION_FAILED: return "the driver could not start";
    case VK_ERROR_FEATURE_NOT_PRESENT: return "the driver refuses a feature that it reports";
    case VK_ERROR_TOO_MANY_OBJECTS: return "the driver has no more objects";
    default: return nullptr;
  }
}

inline void Check(VkResult result, const char* what) {
  if (result >= 0) return;
  const char* words = Words(result);
  if (words != nullptr) TVM_FFI_THROW(RuntimeError) << "Vulkan: " << what << " failed: " << words;
  TVM_FFI_THROW(RuntimeError) << "Vulkan: " << what << " failed with error " << result;
}

}  // namespace mlcrt
