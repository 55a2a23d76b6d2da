// State of the stand-in for HIP, and what its calls have in common.
#ifndef FAKEHIP_FAKE_H_
#define FAKEHIP_FAKE_H_

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

#define API __attribute__((visibility("default")))

namespace fake {

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

inline std::recursive_mutex mutex;
inline std::vector<Device> devices;
inline size_t host_memory = 0;
inline std::map<uintptr_t, Allocation> allocations;
inline std::set<ihipStream_t*> streams;
inline std::set<ihipEvent_t*> events;
inline std::set<ihipModule_t*> modules;
inline std::set<ihipModuleSymbol_t*> functions;
inline std::set<ihipGraph*> graphs;
inline std::set<hipGraphExec*> executables;
inline std::map<std::string, Signature> signatures;
inline std::map<std::string, Failure> failures;
inline std::string log_text;
inline ihipStream_t null_stream;
inline Launcher launcher = nullptr;
inline MemoryHook memory_hook = nullptr;
inline int lost = 0;          // the error after which the device is of no use
inline double clock_ms = 0;   // one tick per piece of work
inline thread_local int current = 0;

inline hipError_t as(int code) { return static_cast<hipError_t>(code); }

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

inline hipError_t misuse(const char* what, hipError_t code = hipErrorInvalidValue) {
  log_text += std::string("MISUSE ") + what + '\n';
  return code;
}

// The live allocation that holds all of [address, address + size), or nullptr.
inline const Allocation* owner(const void* address, size_t size) {
  auto start = reinterpret_cast<uintptr_t>(address);
  auto found = allocations.upper_bound(start);
  if (found == allocations.begin()) return nullptr;
  --found;
  return start + size <= found->first + found->second.size ? &found->second : nullptr;
}

inline bool overlaps(const void* address, size_t size) {
  auto start = reinterpret_cast<uintptr_t>(address);
  return std::any_of(allocations.begin(), allocations.end(), [&](const auto& entry) {
    return !entry.second.host && start < entry.first + entry.second.size && entry.first < start + size;
  });
}

inline bool known(hipStream_t stream) { return stream == nullptr || streams.count(stream) != 0; }
inline ihipStream_t* real(hipStream_t stream) { return stream == nullptr ? &null_stream : stream; }

inline hipError_t run_one(ihipStream_t* stream) {
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
inline hipError_t run_to(ihipStream_t* stream, uint64_t number) {
  while (stream->done < number && !stream->queue.empty()) run_one(stream);
  return as(lost);
}

inline hipError_t drain(ihipStream_t* stream) { return run_to(stream, UINT64_MAX); }

inline hipError_t drain_all() {
  drain(&null_stream);
  for (ihipStream_t* stream : streams) drain(stream);
  return as(lost);
}

// Work of a stream: recorded while it is captured, else queued.
inline hipError_t submit(hipStream_t handle, std::function<hipError_t()> work) {
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

inline bool any_capture(bool relaxed_too) {
  return std::any_of(streams.begin(), streams.end(), [&](ihipStream_t* s) {
    return s->capturing && (relaxed_too || s->mode != hipStreamCaptureModeRelaxed);
  });
}

inline hipError_t break_captures() {
  for (ihipStream_t* stream : streams) stream->broken |= stream->capturing;
  return misuse("a call that waits, while a stream records", hipErrorStreamCaptureUnsupported);
}

inline size_t used(int device, bool host) {
  size_t sum = 0;
  for (const auto& entry : allocations) {
    if (entry.second.host == host && (host || entry.second.device == device)) sum += entry.second.size;
  }
  return sum;
}

template <typename T>
hipError_t destroy(std::set<T*>* alive, T* handle) {
  if (alive->erase(handle) == 0) return misuse("destroying a handle that is not alive", hipErrorInvalidHandle);
  delete handle;
  return hipSuccess;
}

}  // namespace fake

#endif  // FAKEHIP_FAKE_H_
