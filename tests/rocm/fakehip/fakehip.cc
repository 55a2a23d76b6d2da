// A stand-in for libamdhip64: "device memory" is host memory, streams run late, and misuse is an error.
//
// What is queued in a stream runs when somebody waits for the stream, so that a missing wait shows as old data. Every
// handle is checked, memory accesses must lie in one live allocation, calls are logged, any call can be made to fail,
// and objects that are still alive can be counted. Kernels are handed to a function of the test: see fakehip_launcher.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "hip.h"

struct ihipStream_t {
  std::deque<std::function<hipError_t()>> queue;
  uint64_t done = 0, queued = 0;
  bool capturing = false, broken = false;
  hipStreamCaptureMode mode = hipStreamCaptureModeGlobal;
  std::vector<std::function<hipError_t()>> recorded;
};
struct ihipEvent_t {
  ihipStream_t* stream = nullptr;
  uint64_t number = 0;  // of the stream's work before it
  bool timing = true;
  double milliseconds = -1;  // when it happened; -1 not yet
};
struct ihipModule_t {
  std::string image;
  std::map<std::string, ihipModuleSymbol_t*> functions;
  int device = 0;
};
struct ihipModuleSymbol_t {
  ihipModule_t* module;
  std::string name;
};
struct ihipGraph {
  std::vector<std::function<hipError_t()>> work;
};
struct hipGraphExec {
  std::vector<std::function<hipError_t()>> work;
};

using Launcher = int (*)(const char* kernel, const void* image, size_t image_size, const unsigned* dims, unsigned lds,
                         const void* arguments, size_t size);
using MemoryHook = void (*)(int what, void* address, size_t size, const void* source);

namespace {

struct Device {
  std::string name, arch;
  size_t memory = 0;
  bool integrated = false;
};
struct Allocation {
  size_t size;
  int device;
  bool host;
};
struct Signature {
  std::vector<size_t> offsets, sizes;
  size_t total = 0;
};
struct Failure {
  int after, code, times;
};

std::recursive_mutex mutex;
std::vector<Device> devices;
size_t host_memory = 0;
std::map<uintptr_t, Allocation> allocations;
std::set<ihipStream_t*> streams;
std::set<ihipEvent_t*> events;
std::set<ihipModule_t*> modules;
std::set<ihipModuleSymbol_t*> functions;
std::set<ihipGraph*> graphs;
std::set<hipGraphExec*> executables;
std::map<std::string, Signature> signatures;
std::map<std::string, Failure> failures;
std::string log_text;
ihipStream_t null_stream;
Launcher launcher = nullptr;
MemoryHook memory_hook = nullptr;
int lost = 0;          // the error after which the device is of no use
double clock_ms = 0;   // one tick per piece of work
thread_local int current = 0;

hipError_t as(int code) { return static_cast<hipError_t>(code); }

template <typename... Values>
hipError_t enter(const char* name, const char* format, Values... values) {
  char text[512];
  int at = std::snprintf(text, sizeof text, "%s ", name);
  std::snprintf(text + at, sizeof text - at, format, values...);
  log_text += text;
  log_text += '\n';
  auto failure = failures.find(name);
  if (failure == failures.end() || failure->second.times == 0) return hipSuccess;
  if (failure->second.after-- > 0) return hipSuccess;
  failure->second.after = 0;
  if (failure->second.times > 0) --failure->second.times;
  return as(failure->second.code);
}

#define ENTER(...)                                             \
  std::lock_guard<std::recursive_mutex> lock(mutex);           \
  if (hipError_t failed = enter(__func__, __VA_ARGS__)) return failed

hipError_t misuse(const char* what, hipError_t code = hipErrorInvalidValue) {
  log_text += std::string("MISUSE ") + what + '\n';
  return code;
}

// The live allocation that holds all of [address, address + size), or nullptr.
const Allocation* owner(const void* address, size_t size) {
  auto start = reinterpret_cast<uintptr_t>(address);
  auto found = allocations.upper_bound(start);
  if (found == allocations.begin()) return nullptr;
  --found;
  return start + size <= found->first + found->second.size ? &found->second : nullptr;
}

bool overlaps(const void* address, size_t size) {
  auto start = reinterpret_cast<uintptr_t>(address);
  return std::any_of(allocations.begin(), allocations.end(), [&](const auto& entry) {
    return !entry.second.host && start < entry.first + entry.second.size && entry.first < start + size;
  });
}

bool known(hipStream_t stream) { return stream == nullptr || streams.count(stream) != 0; }
ihipStream_t* real(hipStream_t stream) { return stream == nullptr ? &null_stream : stream; }

hipError_t run_one(ihipStream_t* stream) {
  auto work = std::move(stream->queue.front());
  stream->queue.pop_front();
  ++stream->done;
  clock_ms += 0.5;
  if (lost != 0) return as(lost);
  hipError_t code = work();
  if (code != hipSuccess) lost = code;
  return code;
}

// Run a stream's work up to its `number`-th piece.
hipError_t run_to(ihipStream_t* stream, uint64_t number) {
  while (stream->done < number && !stream->queue.empty()) run_one(stream);
  return as(lost);
}

hipError_t drain(ihipStream_t* stream) { return run_to(stream, UINT64_MAX); }

hipError_t drain_all() {
  drain(&null_stream);
  for (ihipStream_t* stream : streams) drain(stream);
  return as(lost);
}

// Work of a stream: recorded while it is captured, else queued.
hipError_t submit(hipStream_t handle, std::function<hipError_t()> work) {
  if (lost != 0) return as(lost);
  ihipStream_t* stream = real(handle);
  if (stream->capturing) {
    stream->recorded.push_back(std::move(work));
  } else {
    stream->queue.push_back(std::move(work));
    ++stream->queued;
  }
  return hipSuccess;
}

bool any_capture(bool relaxed_too) {
  return std::any_of(streams.begin(), streams.end(), [&](ihipStream_t* s) {
    return s->capturing && (relaxed_too || s->mode != hipStreamCaptureModeRelaxed);
  });
}

hipError_t break_captures() {
  for (ihipStream_t* stream : streams) stream->broken |= stream->capturing;
  return misuse("a call that waits, while a stream records", hipErrorStreamCaptureUnsupported);
}

size_t used(int device, bool host) {
  size_t sum = 0;
  for (const auto& entry : allocations) {
    if (entry.second.host == host && (host || entry.second.device == device)) sum += entry.second.size;
  }
  return sum;
}

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

template <typename T>
hipError_t destroy(std::set<T*>* alive, T* handle) {
  if (alive->erase(handle) == 0) return misuse("destroying a handle that is not alive", hipErrorInvalidHandle);
  delete handle;
  return hipSuccess;
}

const std::map<std::string, unsigned> kMachines = {
    {"gfx906", 0x2f},  {"gfx908", 0x30},  {"gfx90a", 0x3f},  {"gfx942", 0x4c},  {"gfx1010", 0x33}, {"gfx1030", 0x36},
    {"gfx1100", 0x41}, {"gfx1101", 0x46}, {"gfx1102", 0x47}, {"gfx1103", 0x44}, {"gfx1151", 0x4a}, {"gfx1200", 0x48},
    {"gfx1201", 0x4e}};

}  // namespace

extern "C" {

#define API __attribute__((visibility("default")))

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
API hipError_t hipStreamCreateWithFlags(hipStream_t* stream, unsigned int flags) {
  ENTER("%u", flags);
  *stream = *streams.insert(new ihipStream_t()).first;
  return hipSuccess;
}
API hipError_t hipStreamDestroy(hipStream_t stream) {
  ENTER("");
  if (!streams.count(stream)) return misuse("destroying an unknown stream", hipErrorInvalidHandle);
  if (stream->capturing) misuse("destroying a stream that records");
  drain(stream);
  return destroy(&streams, stream);
}
API hipError_t hipStreamSynchronize(hipStream_t stream) {
  ENTER("stream %d", stream != nullptr);
  if (!known(stream)) return misuse("an unknown stream", hipErrorInvalidHandle);
  if (real(stream)->capturing) return break_captures();
  return drain(real(stream));
}
API hipError_t hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned int) {
  ENTER("");
  if (!known(stream) || !events.count(event)) return misuse("an unknown stream or event", hipErrorInvalidHandle);
  ihipStream_t* source = event->stream;
  uint64_t number = event->number;
  return submit(stream, [=] {
    return source == nullptr ? as(lost) : run_to(source, number);
  });
}
API hipError_t hipEventCreateWithFlags(hipEvent_t* event, unsigned int flags) {
  ENTER("%u", flags);
  *event = *events.insert(new ihipEvent_t()).first;
  (*event)->timing = (flags & hipEventDisableTiming) == 0;
  return hipSuccess;
}
API hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream) {
  ENTER("stream %d", stream != nullptr);
  if (!known(stream) || !events.count(event)) return misuse("an unknown stream or event", hipErrorInvalidHandle);
  event->stream = real(stream);
  event->milliseconds = -1;
  hipError_t code = submit(stream, [event] {
    if (events.count(event)) event->milliseconds = clock_ms;
    return hipSuccess;
  });
  event->number = real(stream)->queued;
  return code;
}
API hipError_t hipEventSynchronize(hipEvent_t event) {
  ENTER("");
  if (!events.count(event)) return misuse("an unknown event", hipErrorInvalidHandle);
  return event->stream == nullptr ? as(lost) : run_to(event->stream, event->number);
}
API hipError_t hipEventElapsedTime(float* milliseconds, hipEvent_t start, hipEvent_t stop) {
  ENTER("");
  if (!events.count(start) || !events.count(stop) || !start->timing || !stop->timing) return hipErrorInvalidHandle;
  if (start->milliseconds < 0 || stop->milliseconds < 0) return misuse("reading a timer before it stopped");
  *milliseconds = static_cast<float>(stop->milliseconds - start->milliseconds);
  return hipSuccess;
}
API hipError_t hipEventDestroy(hipEvent_t event) {
  ENTER("");
  return destroy(&events, event);
}
API hipError_t hipModuleLoadData(hipModule_t* module, const void* image) {
  ENTER("");
  if (devices.empty()) return hipErrorNoDevice;
  const auto* bytes = static_cast<const unsigned char*>(image);
  if (std::memcmp(bytes, "\177ELF", 4) != 0 || bytes[18] != 224) return hipErrorInvalidImage;
  uint64_t sections;
  uint32_t flags;
  uint16_t size, count;
  std::memcpy(&sections, bytes + 40, 8);
  std::memcpy(&flags, bytes + 48, 4);
  std::memcpy(&size, bytes + 58, 2);
  std::memcpy(&count, bytes + 60, 2);
  auto machine = kMachines.find(devices[current].arch);
  if (machine == kMachines.end() || (flags & 0xff) != machine->second) return hipErrorNoBinaryForGpu;
  *module = *modules.insert(new ihipModule_t()).first;
  (*module)->image.assign(static_cast<const char*>(image), sections + size_t{size} * count);
  (*module)->device = current;
  return hipSuccess;
}
API hipError_t hipModuleGetFunction(hipFunction_t* function, hipModule_t module, const char* name) {
  ENTER("%s", name);
  if (!modules.count(module)) return misuse("an unknown module", hipErrorInvalidHandle);
  if (module->image.find(std::string(name) + ".kd") == std::string::npos) return hipErrorNotFound;
  ihipModuleSymbol_t*& found = module->functions[name];
  if (found == nullptr) found = *functions.insert(new ihipModuleSymbol_t{module, name}).first;
  *function = found;
  return hipSuccess;
}
API hipError_t hipModuleUnload(hipModule_t module) {
  ENTER("");
  if (!modules.count(module)) return misuse("an unknown module", hipErrorInvalidHandle);
  drain_all();
  for (auto& [name, function] : module->functions) destroy(&functions, function);
  return destroy(&modules, module);
}
API hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned int gx, unsigned int gy, unsigned int gz,
                                     unsigned int bx, unsigned int by, unsigned int bz, unsigned int lds,
                                     hipStream_t stream, void** values, void** extra) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (!functions.count(function)) return misuse("launching an unknown function", hipErrorInvalidHandle);
  if (hipError_t failed = enter(__func__, "%s grid %u %u %u block %u %u %u lds %u stream %d", function->name.c_str(), gx,
                                gy, gz, bx, by, bz, lds, stream != nullptr)) {
    return failed;
  }
  if (!known(stream)) return misuse("an unknown stream", hipErrorInvalidHandle);
  if (function->module->device != current) return misuse("a kernel of another device", hipErrorInvalidHandle);
  if (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > 1024 || lds > 65536) return hipErrorInvalidConfiguration;
  auto signature = signatures.find(function->name);
  if (signature == signatures.end() || extra != nullptr) return misuse("a kernel whose arguments are not known");
  const Signature& s = signature->second;
  std::string packed(s.total, '\0');
  for (size_t i = 0; i < s.sizes.size(); ++i) std::memcpy(&packed[s.offsets[i]], values[i], s.sizes[i]);
  return submit(stream, [=] {
    if (!functions.count(function)) return misuse("a module was unloaded before its kernel ran");
    if (launcher == nullptr) return hipSuccess;
    const unsigned dims[6] = {gx, gy, gz, bx, by, bz};
    const std::string& image = function->module->image;
    return as(launcher(function->name.c_str(), image.data(), image.size(), dims, lds, packed.data(), packed.size()));
  });
}
API hipError_t hipStreamBeginCapture(hipStream_t stream, hipStreamCaptureMode mode) {
  ENTER("mode %d", static_cast<int>(mode));
  if (stream == nullptr || !known(stream)) return misuse("recording the null stream", hipErrorStreamCaptureUnsupported);
  if (stream->capturing) return misuse("a stream that records already");
  stream->capturing = true;
  stream->broken = false;
  stream->mode = mode;
  stream->recorded.clear();
  return hipSuccess;
}
API hipError_t hipStreamEndCapture(hipStream_t stream, hipGraph_t* graph) {
  ENTER("");
  if (stream == nullptr || !known(stream) || !stream->capturing) return misuse("ending what was not begun");
  stream->capturing = false;
  *graph = nullptr;
  if (stream->broken) return as(901);
  *graph = *graphs.insert(new ihipGraph{std::move(stream->recorded)}).first;
  return hipSuccess;
}
API hipError_t hipGraphInstantiate(hipGraphExec_t* executable, hipGraph_t graph, hipGraphNode_t*, char*, size_t) {
  ENTER("%zu nodes", graphs.count(graph) ? graph->work.size() : 0);
  if (!graphs.count(graph)) return misuse("an unknown graph", hipErrorInvalidHandle);
  *executable = *executables.insert(new hipGraphExec{graph->work}).first;
  return hipSuccess;
}
API hipError_t hipGraphLaunch(hipGraphExec_t executable, hipStream_t stream) {
  ENTER("%zu nodes", executables.count(executable) ? executable->work.size() : 0);
  if (!executables.count(executable) || !known(stream)) return misuse("an unknown graph", hipErrorInvalidHandle);
  for (const auto& work : executable->work) {
    if (hipError_t code = submit(stream, work)) return code;
  }
  return hipSuccess;
}
API hipError_t hipGraphDestroy(hipGraph_t graph) {
  ENTER("");
  return destroy(&graphs, graph);
}
API hipError_t hipGraphExecDestroy(hipGraphExec_t executable) {
  ENTER("");
  drain_all();
  return destroy(&executables, executable);
}

}  // extern "C"

#ifdef MLCRT_HIP_HEADER
// AMD's header must declare every function of the table with the table's type.
#define SAME_TYPE(name, result, arguments) result(*const same_##name) arguments __attribute__((unused)) = &::name;
MLCRT_HIP_FUNCTIONS(SAME_TYPE)
static_assert(offsetof(hipDeviceProp_t, gcnArchName) == mlcrt::rocm::kArchNameOffset, "gcnArchName");
static_assert(sizeof(hipDeviceProp_t) <= mlcrt::rocm::kPropertiesBytes, "hipDeviceProp_t");
#endif
