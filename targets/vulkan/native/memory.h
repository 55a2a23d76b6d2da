// Device memory: large blocks, cut into pieces that TVM's tensors own.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "loader.h"

namespace mlcrt {

// A kind of memory to allocate from, best first: what the device calls its own, then what it shares with the host.
struct Place {
  uint32_t type = 0, heap = 0;
  bool mapped = false;  // visible to the host, coherent
  bool cached = false;  // fast for the host to read
  bool local = false;
  uint64_t cap = ~0ull, used = 0;
};

struct Block {
  VkBuffer buffer = nullptr;
  std::vector<VkDeviceMemory> memory;
  VkDeviceAddress address = 0;
  uint64_t size = 0;
  char* map = nullptr;
  Place* place = nullptr;
  std::map<uint64_t, uint64_t> free;  // offset → bytes
};

struct Piece {
  Block* block = nullptr;
  uint64_t offset = 0, size = 0;
};

class Allocator {
 public:
  // `idle` waits until the device uses nothing. Limits for tests: MLCRT_VULKAN_HEAP (bytes of the device's own memory,
  // the rest comes from host-visible memory) and MLCRT_VULKAN_ALLOCATION (largest single allocation, bytes).
  Allocator(const PhysicalDevice& device, VkDevice handle, const DeviceFunctions& fn, VkQueue queue,
            std::function<void()> idle);

  // Address of `size` bytes, a multiple of 256. Throws when there is no room.
  VkDeviceAddress Allocate(uint64_t size);
  void Free(VkDeviceAddress address);
  // The piece that an address lies in; throws for an address that was not allocated here.
  const Piece& Find(VkDeviceAddress address, uint64_t* offset) const;
  // A buffer of its own for the host to read or write through.
  Block* Staging(uint64_t size, bool reading);
  // Bytes that can still be had.
  uint64_t Available() const;
  // {"blocks":…,"used":…,"fallback":…}: allocations of the driver, bytes handed out, of these not in the device's own
  // memory.
  std::string Describe() const;

 private:
  Block* Make(uint64_t size, Place* place);
  Block* MakeSparse(uint64_t size, Place* place);
  VkBuffer MakeBuffer(uint64_t size, VkFlags flags, VkResult* result);
  VkResult Reserve(uint64_t size, Place* place, VkDeviceMemory* memory);
  void Destroy(Block* block);
  [[noreturn]] void Fail(uint64_t size) const;

  const PhysicalDevice& device_;
  VkDevice handle_;
  const DeviceFunctions& fn_;
  VkQueue queue_;
  std::function<void()> idle_;
  std::vector<std::unique_ptr<Place>> places_;
  std::vector<std::unique_ptr<Block>> blocks_, staging_;
  std::map<VkDeviceAddress, Piece> pieces_;
  uint64_t largest_ = 0, block_ = 0, used_ = 0;
};

}  // namespace mlcrt
