#include "hip.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>

namespace mlcrt {
namespace rocm {
namespace {

std::mutex mutex;
std::atomic<const Hip*> opened{nullptr};  // never closed: HIP keeps threads of its own

thread_local char last_kernel[128] = "";

// The first function that the library lacks, or nullptr.
const char* fill(void* library, Hip* hip) {
#define MLCRT_LOOK_UP(name, result, arguments)                              \
  hip->name = reinterpret_cast<result(*) arguments>(dlsym(library, #name)); \
  if (hip->name == nullptr) return #name;
  MLCRT_HIP_FUNCTIONS(MLCRT_LOOK_UP)
#undef MLCRT_LOOK_UP
  hip->arch_name_offset = kArchNameOffsetR0600;
  void* properties = dlsym(library, "hipGetDevicePropertiesR0600");
  if (properties == nullptr) {
    hip->arch_name_offset = kArchNameOffset;
    properties = dlsym(library, "hipGetDeviceProperties");
  }
  hip->properties = reinterpret_cast<hipError_t (*)(void*, int)>(properties);
  return properties == nullptr ? "hipGetDeviceProperties" : nullptr;
}

}  // namespace

std::string open_hip(const std::vector<std::string>& candidates) {
  std::lock_guard<std::mutex> lock(mutex);
  if (opened != nullptr) return "";
  std::string tried;
  for (const std::string& name : candidates) {
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      tried += (tried.empty() ? "" : ", ") + name;
      continue;
    }
    Hip* hip = new Hip();
    if (const char* lacking = fill(library, hip)) {
      delete hip;
      return name + " has no " + lacking + ": this HIP runtime is too old, install ROCm 5.2 or later";
    }
    opened = hip;
    return "";
  }
  return "no AMD HIP runtime on this machine (looked for " + tried +
         "); install ROCm's HIP runtime and AMD's GPU driver, or set MLCRT_HIP to its libamdhip64.so";
}

const Hip* hip_if_open() { return opened; }

const Hip& hip() {
  const Hip* found = hip_if_open();
  if (found == nullptr) MLCRT_ROCM_THROW << "the AMD HIP runtime (libamdhip64.so) is not loaded";
  return *found;
}

void note_kernel(const std::string& name) {
  size_t size = std::min(name.size(), sizeof last_kernel - 1);
  std::memcpy(last_kernel, name.data(), size);
  last_kernel[size] = 0;
}

void check(hipError_t code, int device, const char* what) {
  if (code == hipSuccess) return;
  if ((code == hipErrorLaunchFailure || code == hipErrorIllegalAddress) && last_kernel[0] != 0) {
    MLCRT_ROCM_THROW << "rocm:" << device << ": a kernel failed on the GPU (" << describe(code)
                     << "); the one started last was " << last_kernel;
  }
  MLCRT_ROCM_THROW << "rocm:" << device << ": " << what << " failed (" << describe(code) << ")";
}

std::string describe(hipError_t code) {
  const char* text = hip().hipGetErrorString(code);
  return "HIP error " + std::to_string(static_cast<int>(code)) + ": " + (text != nullptr ? text : "unknown");
}

}  // namespace rocm
}  // namespace mlcrt
