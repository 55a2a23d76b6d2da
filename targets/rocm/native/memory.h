// Devices and their memory.
#ifndef MLCRT_ROCM_MEMORY_H_
#define MLCRT_ROCM_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "hip.h"

namespace mlcrt {
namespace rocm {

constexpr int kMaxDevices = 32;

// What does not change while the process lives. integrated: it shares the host's memory.
struct DeviceInfo {
  std::string name, arch;  // as people say it; "gfx1100" without features
  bool integrated = false;
};

int device_count();  // 0 when there is no HIP or no device
const DeviceInfo& device_info(int device);
int attribute(int device, hipDeviceAttribute_t which);

// HIP's current device is a property of the thread, and other libraries may set it too.
void use_device(int device);
int current_device();

// Bytes that can still be allocated, and all there are. On an integrated device `host` more can be taken from the
// host's memory beyond the carve-out; 0 elsewhere.
struct MemoryInfo {
  size_t free = 0, total = 0, host = 0;
};
MemoryInfo memory_info(int device);

// Memory of one device. Blocks come in size classes; a freed block is kept for the next request of its class.
//
// Reuse is safe without waiting, because all work of a device is in one stream's order. Blocks whose addresses a
// recorded graph holds are pinned: freed ones are neither reused nor returned before the graph is gone.
class Pool {
 public:
  struct Statistics {
    size_t used = 0, cached = 0, host = 0;  // bytes: handed out, kept for reuse, of both those in host memory
    size_t blocks = 0;                      // that HIP knows of
  };

  explicit Pool(int device) : device_(device) {}

  // At least `bytes`, aligned to 256. Out of memory: the kept blocks go back to HIP and it is tried once more; an
  // integrated device then takes host memory; then the error says how much there is.
  void* Allocate(size_t bytes);
  void Free(void* address);  // never throws: destructors call it
  void Release();            // kept blocks back to HIP
  Statistics statistics();

  // The start of the block that holds `address`, kept until Unpin; nullptr for memory that is not the pool's.
  void* Pin(const void* address);
  void Unpin(void* start);

 private:
  struct Block {
    size_t size = 0;
    bool on_host = false, freed = false;
    int pins = 0;
  };
  using Blocks = std::map<uintptr_t, Block>;

  void* TryAllocate(size_t size, bool* on_host);
  void ReturnToHip(Blocks::iterator block);
  void Keep(Blocks::iterator block);
  void ReleaseKept();

  const int device_;
  std::mutex mutex_;
  Blocks blocks_;
  std::map<size_t, std::vector<uintptr_t>> kept_;  // by class
};

Pool& pool(int device);

}  // namespace rocm
}  // namespace mlcrt

#endif  // MLCRT_ROCM_MEMORY_H_
