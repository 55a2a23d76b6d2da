#include "memory.h"

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "check.h"

namespace mlcrt {
namespace {

constexpr uint64_t kAlign = 256, kUsualBlock = 256ull << 20;
constexpr VkFlags kUsage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                           VK_BUFFER_USAGE_TRANSFER_DST_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT;

uint64_t Environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

uint64_t RoundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

}  // namespace

Allocator::Allocator(const PhysicalDevice& device, VkDevice handle, const DeviceFunctions& fn, VkQueue queue,
                     std::function<void()> idle)
    : device_(device), handle_(handle), fn_(fn), queue_(queue), idle_(std::move(idle)) {
  constexpr VkFlags unusual = VK_MEMORY_PROPERTY_LAZILY_ALLOCATED_BIT | VK_MEMORY_PROPERTY_PROTECTED_BIT |
                              VK_MEMORY_PROPERTY_DEVICE_UNCACHED_BIT_AMD;
  constexpr VkFlags shared = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  VkResult result = VK_SUCCESS;
  VkBuffer sample = MakeBuffer(1 << 16, 0, &result);
  Check(result, "creating a buffer");
  VkMemoryRequirements needs{};
  fn_.vkGetBufferMemoryRequirements(handle_, sample, &needs);
  fn_.vkDestroyBuffer(handle_, sample, nullptr);
  for (uint32_t i = 0; i < device_.memory.memoryTypeCount; ++i) {
    const VkMemoryType& type = device_.memory.memoryTypes[i];
    bool local = type.propertyFlags & VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
    bool mapped = (type.propertyFlags & shared) == shared;
    if (!(needs.memoryTypeBits >> i & 1) || type.propertyFlags & unusual || !(local || mapped)) continue;
    auto place = std::make_unique<Place>();
    place->type = i;
    place->heap = type.heapIndex;
    place->local = local;
    place->mapped = mapped;
    place->cached = mapped && type.propertyFlags & VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
    places_.push_back(std::move(place));
  }
  bool discrete = device_.kind == "discrete";
  auto score = [&](const Place& p) {  // where host and device share memory, mapped memory saves a copy
    return (p.local ? 0 : 4) + (p.mapped == discrete ? 2 : 0) + (p.cached == discrete ? 1 : 0);
  };
  std::stable_sort(places_.begin(), places_.end(), [&](const auto& a, const auto& b) { return score(*a) < score(*b); });
  if (places_.empty()) TVM_FFI_THROW(RuntimeError) << "Vulkan: " << device_.name << " has no memory for buffers";
  uint64_t cap = Environment("MLCRT_VULKAN_HEAP", ~0ull);
  if (cap != ~0ull) {
    for (auto& place : places_) {
      if (place->local) place->cap = cap;
    }
    auto host = std::find_if(places_.rbegin(), places_.rend(), [](const auto& p) { return p->mapped; });
    if (host != places_.rend()) {
      auto copy = std::make_unique<Place>(**host);
      copy->cap = ~0ull;
      copy->local = false;
      places_.push_back(std::move(copy));
    }
  }
  largest_ = std::min(device_.max_allocation, Environment("MLCRT_VULKAN_ALLOCATION", ~0ull)) / kAlign * kAlign;
  uint64_t heap = device_.memory.memoryHeaps[places_[0]->heap].size;
  block_ = std::min({kUsualBlock, largest_, std::max<uint64_t>(heap / 16, 16 << 20)}) / kAlign * kAlign;
}

VkBuffer Allocator::MakeBuffer(uint64_t size, VkFlags flags, VkResult* result) {
  VkBufferCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO;
  info.flags = flags;
  info.size = size;
  info.usage = kUsage;
  VkBuffer buffer = nullptr;
  *result = fn_.vkCreateBuffer(handle_, &info, nullptr, &buffer);
  return buffer;
}

VkResult Allocator::Reserve(uint64_t size, Place* place, VkDeviceMemory* memory) {
  if (place->used + size > place->cap) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
  VkMemoryAllocateFlagsInfo flags{};
  flags.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO;
  flags.flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT;
  VkMemoryAllocateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO;
  info.pNext = &flags;
  info.allocationSize = size;
  info.memoryTypeIndex = place->type;
  return fn_.vkAllocateMemory(handle_, &info, nullptr, memory);
}

Block* Allocator::Make(uint64_t size, Place* place) {
  if (size > largest_) return MakeSparse(size, place);
  auto block = std::make_unique<Block>();
  VkResult result = VK_SUCCESS;
  block->buffer = MakeBuffer(size, 0, &result);
  if (result != VK_SUCCESS) return nullptr;
  block->place = place;
  VkMemoryRequirements needs{};
  fn_.vkGetBufferMemoryRequirements(handle_, block->buffer, &needs);
  block->size = size;
  VkDeviceMemory memory = nullptr;
  result = Reserve(needs.size, place, &memory);
  if (result == VK_SUCCESS) {
    block->memory.push_back(memory);
    result = fn_.vkBindBufferMemory(handle_, block->buffer, memory, 0);
  }
  if (result == VK_SUCCESS && place->mapped) {
    result = fn_.vkMapMemory(handle_, memory, 0, ~0ull, 0, reinterpret_cast<void**>(&block->map));
  }
  if (result != VK_SUCCESS) {
    for (VkDeviceMemory m : block->memory) fn_.vkFreeMemory(handle_, m, nullptr);
    fn_.vkDestroyBuffer(handle_, block->buffer, nullptr);
    bool room = result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY ||
                result == VK_ERROR_TOO_MANY_OBJECTS || result == VK_ERROR_MEMORY_MAP_FAILED;
    if (!room) Check(result, "allocating memory");
    return nullptr;
  }
  VkBufferDeviceAddressInfo info{};
  info.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO;
  info.buffer = block->buffer;
  block->address = fn_.vkGetBufferDeviceAddress(handle_, &info);
  place->used += size;
  return block.release();
}

// One buffer over several allocations, for tensors above the driver's largest.
Block* Allocator::MakeSparse(uint64_t size, Place* place) {
  if (!device_.Has("queue:sparse") || largest_ == 0) return nullptr;
  auto block = std::make_unique<Block>();
  VkResult result = VK_SUCCESS;
  block->buffer = MakeBuffer(size, VK_BUFFER_CREATE_SPARSE_BINDING_BIT, &result);
  if (result != VK_SUCCESS) return nullptr;
  VkMemoryRequirements needs{};
  fn_.vkGetBufferMemoryRequirements(handle_, block->buffer, &needs);
  uint64_t step = largest_ / needs.alignment * needs.alignment;
  std::vector<VkSparseMemoryBind> binds;
  for (uint64_t at = 0; at < needs.size && result == VK_SUCCESS; at += step) {
    VkSparseMemoryBind bind{};
    bind.resourceOffset = at;
    bind.size = std::min(step, needs.size - at);
    result = Reserve(bind.size, place, &bind.memory);
    if (result == VK_SUCCESS) {
      block->memory.push_back(bind.memory);
      binds.push_back(bind);
    }
  }
  if (result == VK_SUCCESS) {
    VkSparseBufferMemoryBindInfo whole{};
    whole.buffer = block->buffer;
    whole.bindCount = static_cast<uint32_t>(binds.size());
    whole.pBinds = binds.data();
    VkBindSparseInfo info{};
    info.sType = VK_STRUCTURE_TYPE_BIND_SPARSE_INFO;
    info.bufferBindCount = 1;
    info.pBufferBinds = &whole;
    idle_();
    result = fn_.vkQueueBindSparse(queue_, 1, &info, nullptr);
    if (result == VK_SUCCESS) result = fn_.vkQueueWaitIdle(queue_);
  }
  if (result != VK_SUCCESS) {
    fn_.vkDestroyBuffer(handle_, block->buffer, nullptr);
    for (VkDeviceMemory m : block->memory) fn_.vkFreeMemory(handle_, m, nullptr);
    return nullptr;
  }
  VkBufferDeviceAddressInfo info{};
  info.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO;
  info.buffer = block->buffer;
  block->address = fn_.vkGetBufferDeviceAddress(handle_, &info);
  block->place = place;
  block->size = size;
  place->used += size;
  return block.release();
}

VkDeviceAddress Allocator::Allocate(uint64_t size) {
  size = RoundUp(std::max<uint64_t>(size, 1), kAlign);
  auto take = [&](Block* block, std::map<uint64_t, uint64_t>::iterator hole) {
    uint64_t offset = hole->first, room = hole->second;
    block->free.erase(hole);
    if (room > size) block->free[offset + size] = room - size;
    pieces_[block->address + offset] = {block, offset, size};
    used_ += size;
    return block->address + offset;
  };
  for (auto& place : places_) {
    for (auto& block : blocks_) {
      if (block->place != place.get()) continue;
      auto hole = std::find_if(block->free.begin(), block->free.end(), [&](auto& f) { return f.second >= size; });
      if (hole != block->free.end()) return take(block.get(), hole);
    }
    Block* made = nullptr;
    if (size <= block_ / 4) made = Make(block_, place.get());
    if (made == nullptr) made = Make(size, place.get());
    if (made == nullptr) continue;
    made->free[0] = made->size;
    blocks_.emplace_back(made);
    return take(made, made->free.begin());
  }
  Fail(size);
}

void Allocator::Fail(uint64_t size) const {
  std::ostringstream why;
  if (size > largest_ && !device_.Has("queue:sparse")) {
    why << "the largest buffer it can have is " << largest_ / 1000000 << " MB";
  } else {
    why << used_ / 1000000 << " MB are in use; choose a smaller --context or model";
  }
  TVM_FFI_THROW(RuntimeError) << "Vulkan: " << device_.name << " has no room for " << size / 1000000 << " MB: "
                              << why.str();
  TVM_FFI_UNREACHABLE();
}

void Allocator::Free(VkDeviceAddress address) {
  auto found = pieces_.find(address);
  if (found == pieces_.end()) return;
  Piece piece = found->second;
  pieces_.erase(found);
  used_ -= piece.size;
  auto& free = piece.block->free;
  auto here = free.emplace(piece.offset, piece.size).first;
  auto next = std::next(here);
  if (next != free.end() && here->first + here->second == next->first) {
    here->second += next->second;
    free.erase(next);
  }
  if (here != free.begin()) {
    auto before = std::prev(here);
    if (before->first + before->second == here->first) {
      before->second += here->second;
      free.erase(here);
      here = before;
    }
  }
  if (here->second != piece.block->size) return;
  idle_();
  Destroy(piece.block);
}

void Allocator::Destroy(Block* block) {
  block->place->used -= block->size;
  fn_.vkDestroyBuffer(handle_, block->buffer, nullptr);
  for (VkDeviceMemory memory : block->memory) fn_.vkFreeMemory(handle_, memory, nullptr);
  auto own = std::find_if(blocks_.begin(), blocks_.end(), [&](const auto& b) { return b.get() == block; });
  blocks_.erase(own);
}

const Piece& Allocator::Find(VkDeviceAddress address, uint64_t* offset) const {
  auto after = pieces_.upper_bound(address);
  if (after != pieces_.begin()) {
    auto found = std::prev(after);
    if (address < found->first + found->second.size) {
      *offset = address - found->first;
      return found->second;
    }
  }
  TVM_FFI_THROW(RuntimeError) << "Vulkan: an address was used that no tensor has";
  TVM_FFI_UNREACHABLE();
}

Block* Allocator::Staging(uint64_t size, bool reading) {
  Place* chosen = nullptr;
  auto better = [&](const Place& p) { return chosen == nullptr || (reading && p.cached && !chosen->cached); };
  for (auto place = places_.rbegin(); place != places_.rend(); ++place) {  // from the host's end of the list
    if ((*place)->mapped && better(**place)) chosen = place->get();
  }
  Block* block = chosen == nullptr ? nullptr : Make(size, chosen);
  if (block == nullptr) TVM_FFI_THROW(RuntimeError) << "Vulkan: there is no host memory to copy through";
  staging_.emplace_back(block);
  return block;
}

uint64_t Allocator::Available() const {
  VkPhysicalDeviceMemoryBudgetPropertiesEXT budget{};
  VkPhysicalDeviceMemoryProperties2 all{};
  budget.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT;
  all.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2;
  if (device_.memory_budget) all.pNext = &budget;
  Instance().vkGetPhysicalDeviceMemoryProperties2(device_.handle, &all);
  uint64_t total = 0;
  std::vector<bool> counted(device_.memory.memoryHeapCount, false);
  for (const auto& place : places_) {
    if (counted[place->heap] || (!place->local && device_.kind == "discrete")) continue;
    counted[place->heap] = true;
    uint64_t size = device_.memory.memoryHeaps[place->heap].size, used = 0;
    for (const auto& other : places_) used += other->heap == place->heap ? other->used : 0;
    uint64_t room = size > used ? size - used : 0;
    if (device_.memory_budget) {
      uint64_t limit = budget.heapBudget[place->heap], taken = budget.heapUsage[place->heap];
      room = std::min(room, limit > taken ? limit - taken : 0);
    }
    total += room;
  }
  for (const auto& block : blocks_) {
    for (const auto& hole : block->free) total += hole.second;
  }
  return total;
}

std::string Allocator::Describe() const {
  uint64_t fallback = 0;
  for (const auto& piece : pieces_) fallback += piece.second.block->place->local ? 0 : piece.second.size;
  std::ostringstream out;
  out << "{\"blocks\":" << blocks_.size() << ",\"used\":" << used_ << ",\"fallback\":" << fallback << "}";
  return out.str();
}

}  // namespace mlcrt
