// A stand-in for libamdhip64: "device memory" is host memory, streams run late, and misuse is an error.
//
// What is queued in a stream runs when somebody waits for the stream, so that a missing wait shows as old data. Every
// handle is checked, memory accesses must lie in one live allocation, calls are logged, any call can be made to fail,
// and objects that are still alive can be counted. Kernels are handed to a function of the test: see fakehip_launcher.
//
// This file: the tests' side, devices and memory; fakework.cc: streams, events, kernels and graphs.
#include "fake.h"

using namespace fake;

namespace {

hipError_t allocate(void** address, size_t size, bool host) {
  if (devices.empty()) return hipErrorNoDevice;
  if (any_capture(false)) return break_captures();
  if (address == nullptr || size == 0) return misuse("an allocation of nothing");
  if (used(current, host) + size > (host ? host_memory : devices[current].memory)) return hipErrorOutOfMemory;
  if (posix_memalign(address, 256, size) != 0) return hipErrorOutOfMemory;
  std::memset(*address, 0xa5, std::min(size, size_t{1} << 20));  // all of gigabytes would take seconds
  allocations[reinterpret_cast<uintptr_t>(*address)] = {size, current, host};
  if (memory_hook != nullptr) memory_hook(0, *address, size, nullptr);
  return hipSuccess;
}

hipError_t release(void* address, bool host) {
  if (any_capture(true)) return break_captures();
  auto found = allocations.find(reinterpret_cast<uintptr_t>(address));
  if (found == allocations.end() || found->second.host != host) return misuse("a free of what was not allocated so");
  hipError_t code = drain_all();
  if (memory_hook != nullptr) memory_hook(1, address, found->second.size, nullptr);
  allocations.erase(found);
  std::free(address);
  return code;
}

}  // namespace

extern "C" {

// Of the tests ------------------------------------------------------------------------------------------------------
API void fakehip_add_device(const char* name, const char* arch, size_t memory, int integrated) {
  devices.push_back({name, arch, memory, integrated != 0});
}
API void fakehip_set_memory(int device, size_t bytes) { devices[device].memory = bytes; }
API void fakehip_host_memory(size_t bytes) { host_memory = bytes; }
// Called when work runs; a result other than 0 is the error that the device has from then on.
API void fakehip_launcher(Launcher function) { launcher = function; }
// what: 0 allocated, 1 freed, 2 written by the host, 3 copied on the device from `source`.
API void fakehip_memory_hook(MemoryHook function) { memory_hook = function; }
API void fakehip_define_kernel(const char* name, int count, const size_t* offsets, const size_t* sizes, size_t total) {
  signatures[name] = {{offsets, offsets + count}, {sizes, sizes + count}, total};
}
// The call `name` fails with `code` after `after` good ones, `times` times (-1: always).
API void fakehip_fail(const char* name, int after, int code, int times) { failures[name] = {after, code, times}; }
API const char* fakehip_log() { return log_text.c_str(); }
API void fakehip_clear_log() { log_text.clear(); }
API int fakehip_alive() {
  return static_cast<int>(allocations.size() + streams.size() + events.size() + modules.size() + graphs.size() +
                          executables.size());
}
API const char* fakehip_alive_text() {
  static char text[160];
  std::snprintf(text, sizeof text, "%zu allocations, %zu streams, %zu events, %zu modules, %zu graphs, %zu executables",
                allocations.size(), streams.size(), events.size(), modules.size(), graphs.size(), executables.size());
  return text;
}
// Back to no failures and no functions of a test; devices and what is alive stay.
API void fakehip_reset() {
  failures.clear();
  signatures.clear();
  log_text.clear();
  null_stream.queue.clear();
  null_stream.done = null_stream.queued;
  launcher = nullptr;
  memory_hook = nullptr;
  lost = 0;
}

// Of HIP ------------------------------------------------------------------------------------------------------------
API const char* hipGetErrorString(hipError_t code) {
  switch (static_cast<int>(code)) {
    case 0: return "no error";
    case 1: return "invalid argument";
    case 2: return "out of memory";
    case 9: return "invalid configuration argument";
    case 100: return "no ROCm-capable device is detected";
    case 200: return "device kernel image is invalid";
    case 209: return "no kernel image is available for execution on the device";
    case 500: return "named symbol not found";
    case 719: return "unspecified launch failure";
    case 900: return "operation not permitted when stream is capturing";
    case 901: return "operation failed due to a previous error during capture";
    default: return "unknown error";
  }
}
API hipError_t hipGetLastError(void) { return hipSuccess; }
API hipError_t hipRuntimeGetVersion(int* version) {
  ENTER("");
  *version = 60342134;
  return hipSuccess;
}
API hipError_t hipDriverGetVersion(int* version) {
  ENTER("");
  *version = 60342134;
  return hipSuccess;
}
API hipError_t hipGetDeviceCount(int* count) {
  ENTER("");
  *count = static_cast<int>(devices.size());
  return devices.empty() ? hipErrorNoDevice : hipSuccess;
}
API hipError_t hipGetDevice(int* device) {
  ENTER("");
  *device = current;
  return hipSuccess;
}
API hipError_t hipSetDevice(int device) {
  ENTER("%d", device);
  if (device < 0 || device >= static_cast<int>(devices.size())) return hipErrorInvalidDevice;
  current = device;
  return hipSuccess;
}
API hipError_t hipDeviceGetAttribute(int* value, hipDeviceAttribute_t which, int device) {
  ENTER("%d %d", static_cast<int>(which), device);
  if (device < 0 || device >= static_cast<int>(devices.size())) return hipErrorInvalidDevice;
  const Device& d = devices[device];
  int major = std::atoi(d.arch.substr(3, d.arch.size() == 7 ? 2 : 1).c_str());
  switch (which) {
    case hipDeviceAttributeClockRate: *value = 2526000; break;
    case hipDeviceAttributeIntegrated: *value = d.integrated; break;
    case hipDeviceAttributeL2CacheSize: *value = 6 << 20; break;
    case hipDeviceAttributeComputeCapabilityMajor: *value = major; break;
    case hipDeviceAttributeComputeCapabilityMinor: *value = 0; break;
    case hipDeviceAttributeMaxBlockDimX:
    case hipDeviceAttributeMaxBlockDimY:
    case hipDeviceAttributeMaxBlockDimZ:
    case hipDeviceAttributeMaxThreadsPerBlock: *value = 1024; break;
    case hipDeviceAttributeMultiprocessorCount: *value = 48; break;
    case hipDeviceAttributeMaxRegistersPerBlock:
    case hipDeviceAttributeMaxSharedMemoryPerBlock: *value = 65536; break;
    case hipDeviceAttributeWarpSize: *value = major >= 10 ? 32 : 64; break;
    default: return misuse("an attribute that nobody needs");
  }
  return hipSuccess;
}
API hipError_t hipDeviceGetName(char* name, int size, int device) {
  ENTER("%d", device);
  if (device < 0 || device >= static_cast<int>(devices.size())) return hipErrorInvalidDevice;
  std::snprintf(name, size, "%s", devices[device].name.c_str());
  return hipSuccess;
}
API hipError_t hipDeviceTotalMem(size_t* bytes, int device) {
  ENTER("%d", device);
  if (device < 0 || device >= static_cast<int>(devices.size())) return hipErrorInvalidDevice;
  *bytes = devices[device].memory;
  return hipSuccess;
}
static hipError_t fill_properties(char* all, size_t size, size_t arch, int device) {
  if (device < 0 || device >= static_cast<int>(devices.size())) return hipErrorInvalidDevice;
  std::memset(all, 0, size);
  std::snprintf(all, 256, "%s", devices[device].name.c_str());
  std::snprintf(all + arch, 256, "%s:sramecc+:xnack-", devices[device].arch.c_str());
  return hipSuccess;
}
API hipError_t hipGetDevicePropertiesR0600(void* all, int device) {
  ENTER("%d", device);
  return fill_properties(static_cast<char*>(all), 1472, mlcrt::rocm::kArchNameOffsetR0600, device);
}
#ifdef MLCRT_HIP_HEADER
using Properties = hipDeviceProp_t;
#else
using Properties = void;
#endif
API hipError_t hipGetDeviceProperties(Properties* all, int device) {
  ENTER("%d", device);
  return fill_properties(reinterpret_cast<char*>(all), 792, mlcrt::rocm::kArchNameOffset, device);
}
API hipError_t hipDeviceSynchronize(void) {
  ENTER("");
  if (any_capture(true)) return break_captures();
  return drain_all();
}
API hipError_t hipMemGetInfo(size_t* free, size_t* total) {
  ENTER("");
  if (devices.empty()) return hipErrorNoDevice;
  *total = devices[current].memory;
  *free = *total - used(current, false);
  return hipSuccess;
}
API hipError_t hipMalloc(void** address, size_t size) {
  ENTER("%zu", size);
  return allocate(address, size, false);
}
API hipError_t hipFree(void* address) {
  ENTER("");
  return release(address, false);
}
API hipError_t hipHostMalloc(void** address, size_t size, unsigned int flags) {
  ENTER("%zu %#x", size, flags);
  return allocate(address, size, true);
}
API hipError_t hipHostGetDevicePointer(void** device, void* host, unsigned int flags) {
  ENTER("%u", flags);
  if (owner(host, 1) == nullptr) return misuse("the device's address of unknown host memory");
  *device = host;
  return hipSuccess;
}
API hipError_t hipHostFree(void* address) {
  ENTER("");
  return release(address, true);
}
static hipError_t copy(void* to, const void* from, size_t size, hipMemcpyKind kind, hipStream_t stream) {
  if (!known(stream)) return misuse("an unknown stream", hipErrorInvalidHandle);
  bool to_device = kind == hipMemcpyHostToDevice || kind == hipMemcpyDeviceToDevice;
  bool from_device = kind == hipMemcpyDeviceToHost || kind == hipMemcpyDeviceToDevice;
  if (to_device ? owner(to, size) == nullptr : overlaps(to, size)) return misuse("a copy to beyond an allocation");
  if (from_device ? owner(from, size) == nullptr : overlaps(from, size)) return misuse("a copy from beyond an allocation");
  return submit(stream, [=] {
    if ((to_device && owner(to, size) == nullptr) || (from_device && owner(from, size) == nullptr)) {
      return misuse("memory was freed before the copy ran");
    }
    std::memmove(to, from, size);
    if (memory_hook != nullptr && to_device) memory_hook(from_device ? 3 : 2, to, size, from);
    return hipSuccess;
  });
}
API hipError_t hipMemcpyAsync(void* to, const void* from, size_t size, hipMemcpyKind kind, hipStream_t stream) {
  ENTER("%zu kind %d stream %d", size, static_cast<int>(kind), stream != nullptr);
  return copy(to, from, size, kind, stream);
}
API hipError_t hipMemsetD32Async(hipDeviceptr_t to, int value, size_t count, hipStream_t stream) {
  ENTER("%d count %zu stream %d", value, count, stream != nullptr);
  if (!known(stream)) return misuse("an unknown stream", hipErrorInvalidHandle);
  if (owner(to, 4 * count) == nullptr) return misuse("a fill beyond an allocation");
  return submit(stream, [=] {
    std::fill_n(static_cast<int*>(to), count, value);
    if (memory_hook != nullptr) memory_hook(2, to, 4 * count, nullptr);
    return hipSuccess;
  });
}
API hipError_t hipMemcpyPeerAsync(void* to, int target, const void* from, int source, size_t size, hipStream_t stream) {
  ENTER("%zu from %d to %d", size, source, target);
  const Allocation *a = owner(to, size), *b = owner(from, size);
  if (a == nullptr || b == nullptr || a->device != target || b->device != source) return misuse("a copy between devices");
  return copy(to, from, size, hipMemcpyDeviceToDevice, stream);
}

}  // extern "C"

#ifdef MLCRT_HIP_HEADER
// AMD's header must declare every function of the table with the table's type.
#define SAME_TYPE(name, result, arguments) result(*const same_##name) arguments __attribute__((unused)) = &::name;
MLCRT_HIP_FUNCTIONS(SAME_TYPE)
static_assert(offsetof(hipDeviceProp_t, gcnArchName) == mlcrt::rocm::kArchNameOffset, "gcnArchName");
static_assert(sizeof(hipDeviceProp_t) <= mlcrt::rocm::kPropertiesBytes, "hipDeviceProp_t");
#endif
