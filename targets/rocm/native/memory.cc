#include "memory.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace mlcrt {
namespace rocm {
namespace {

constexpr size_t kSmallest = 256, kStep = 64 << 10;

thread_local int device_of_thread = -1;

// MLCRT_POOL=0: every block exactly as large as asked for and returned at once, for memory checkers.
bool pooling() {
  const char* chosen = std::getenv("MLCRT_POOL");
  return chosen == nullptr || std::strcmp(chosen, "0") != 0;
}

// Powers of two up to 64 KiB, then its multiples: a model's large tensors lose next to nothing.
size_t size_class(size_t bytes) {
  if (bytes > kStep) return (bytes + kStep - 1) / kStep * kStep;
  size_t size = kSmallest;
  while (size < bytes) size *= 2;
  return size;
}

std::string gibibytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  return text;
}

// The kernel lets a GPU hold half of the host's memory; of that, what is free now.
size_t available_host_memory() {
  size_t total = 0, available = 0;
  if (FILE* file = std::fopen("/proc/meminfo", "r")) {
    char line[128];
    while (std::fgets(line, sizeof line, file) != nullptr) {
      std::sscanf(line, "MemTotal: %zu kB", &total);
      std::sscanf(line, "MemAvailable: %zu kB", &available);
    }
    std::fclose(file);
  }
  return std::min(total / 2, available) << 10;
}

}  // namespace

int device_count() {
  const Hip* hip = hip_if_open();
  int count = 0;
  if (hip == nullptr || hip->hipGetDeviceCount(&count) != hipSuccess) return 0;
  return std::min(count, kMaxDevices);
}

int attribute(int device, hipDeviceAttribute_t which) {
  int value = 0;
  check(hip().hipDeviceGetAttribute(&value, which, device), device, "asking for a device attribute");
  return value;
}

const DeviceInfo& device_info(int device) {
  static std::mutex mutex;
  static std::array<std::unique_ptr<DeviceInfo>, kMaxDevices> known;
  std::lock_guard<std::mutex> lock(mutex);
  if (device < 0 || device >= kMaxDevices || (known[device] == nullptr && device >= device_count())) {
    MLCRT_ROCM_THROW << "there is no device rocm:" << device;
  }
  if (known[device] == nullptr) {
    auto info = std::make_unique<DeviceInfo>();
    char name[256] = "";
    check(hip().hipDeviceGetName(name, sizeof name, device), device, "asking for the device's name");
    std::vector<char> properties(kPropertiesBytes);
    check(hip().properties(properties.data(), device), device, "asking for the device's properties");
    info->name = name;
    info->arch = std::string(properties.data() + hip().arch_name_offset);
    info->arch = info->arch.substr(0, info->arch.find(':'));  // gfx90a:sramecc+:xnack-
    info->integrated = attribute(device, hipDeviceAttributeIntegrated) != 0;
    known[device] = std::move(info);
  }
  return *known[device];
}

void use_device(int device) {
  if (device < 0 || device >= kMaxDevices) MLCRT_ROCM_THROW << "there is no device rocm:" << device;
  check(hip().hipSetDevice(device), device, "choosing the device");
  device_of_thread = device;
}

int current_device() { return device_of_thread < 0 ? 0 : device_of_thread; }

MemoryInfo memory_info(int device) {
  MemoryInfo info;
  use_device(device);
  check(hip().hipMemGetInfo(&info.free, &info.total), device, "asking for free memory");
  if (device_info(device).integrated) info.host = available_host_memory();
  return info;
}

void* Pool::Allocate(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  const bool pooled = pooling();
  const size_t size = pooled ? size_class(bytes) : std::max<size_t>(bytes, 1);
  if (auto found = kept_.find(size); pooled && found != kept_.end() && !found->second.empty()) {
    uintptr_t start = found->second.back();
    found->second.pop_back();
    blocks_[start].freed = false;
    return reinterpret_cast<void*>(start);
  }
  bool on_host = false;
  void* start = TryAllocate(size, &on_host);
  if (start == nullptr) {
    MemoryInfo info = memory_info(device_);
    MLCRT_ROCM_THROW << "rocm:" << device_ << " (" << device_info(device_).name << ") is out of memory: "
                     << gibibytes(bytes) << " are needed and " << gibibytes(info.free) << " of "
                     << gibibytes(info.total) << " are free"
                     << (info.host != 0 ? ", and the host's memory does not have it either" : "")
                     << "; choose a smaller --context or --quantization, or close other programs that use the GPU";
  }
  Block& block = blocks_[reinterpret_cast<uintptr_t>(start)];
  block = Block();
  block.size = size;
  block.on_host = on_host;
  return start;
}

void* Pool::TryAllocate(size_t size, bool* on_host) {
  use_device(device_);
  void* start = nullptr;
  hipError_t code = hip().hipMalloc(&start, size);
  if (code == hipErrorOutOfMemory) {
    hip().hipGetLastError();  // else the next caller who looks would find it
    ReleaseKept();
    code = hip().hipMalloc(&start, size);
  }
  if (code == hipErrorOutOfMemory && device_info(device_).integrated) {
    hip().hipGetLastError();
    void* memory = nullptr;
    // Not coherent: the GPU may cache it, and sees the host's writes from the next launch on.
    code = hip().hipHostMalloc(&memory, size, hipHostMallocMapped | hipHostMallocNonCoherent);
    if (code == hipSuccess) {
      code = hip().hipHostGetDevicePointer(&start, memory, 0);
      if (code == hipSuccess && start != memory) code = hipErrorInvalidValue;  // one address is needed on both sides
      if (code != hipSuccess) hip().hipHostFree(memory);
    }
    *on_host = true;
  }
  if (code == hipErrorOutOfMemory) {
    hip().hipGetLastError();
    return nullptr;
  }
  check(code, device_, "allocating memory");
  return start;
}

void Pool::Free(void* address) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto block = blocks_.find(reinterpret_cast<uintptr_t>(address));
  if (block == blocks_.end() || block->second.freed) return;
  block->second.freed = true;
  if (block->second.pins == 0) Keep(block);
}

void Pool::Keep(Blocks::iterator block) {
  if (pooling()) {
    kept_[block->second.size].push_back(block->first);
  } else {
    ReturnToHip(block);
  }
}

void Pool::ReturnToHip(Blocks::iterator block) {
  void* start = reinterpret_cast<void*>(block->first);
  // A failure here is that of earlier work, which whoever waited for that work was told.
  if (hip().hipSetDevice(device_) == hipSuccess) device_of_thread = device_;
  hipError_t code = block->second.on_host ? hip().hipHostFree(start) : hip().hipFree(start);
  if (code != hipSuccess) hip().hipGetLastError();
  blocks_.erase(block);
}

void Pool::ReleaseKept() {
  for (auto& [size, starts] : kept_) {
    for (uintptr_t start : starts) ReturnToHip(blocks_.find(start));
  }
  kept_.clear();
}

void Pool::Release() {
  std::lock_guard<std::mutex> lock(mutex_);
  ReleaseKept();
}

Pool::Statistics Pool::statistics() {
  std::lock_guard<std::mutex> lock(mutex_);
  Statistics s;
  for (const auto& [start, block] : blocks_) {
    (block.freed ? s.cached : s.used) += block.size;
    if (block.on_host) s.host += block.size;
  }
  s.blocks = blocks_.size();
  return s;
}

void* Pool::Pin(const void* address) {
  std::lock_guard<std::mutex> lock(mutex_);
  uintptr_t wanted = reinterpret_cast<uintptr_t>(address);
  auto block = blocks_.upper_bound(wanted);
  if (block == blocks_.begin()) return nullptr;
  --block;
  if (wanted >= block->first + block->second.size || block->second.freed) return nullptr;
  ++block->second.pins;
  return reinterpret_cast<void*>(block->first);
}

void Pool::Unpin(void* start) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto block = blocks_.find(reinterpret_cast<uintptr_t>(start));
  if (block == blocks_.end() || --block->second.pins != 0) return;
  if (block->second.freed) Keep(block);
}

Pool& pool(int device) {
  // Never destroyed: tensors may outlive static destructors.
  static auto* pools = [] {
    auto* all = new std::array<std::unique_ptr<Pool>, kMaxDevices>();
    for (int i = 0; i < kMaxDevices; ++i) (*all)[i] = std::make_unique<Pool>(i);
    return all;
  }();
  return *(*pools)[device];
}

}  // namespace rocm
}  // namespace mlcrt
