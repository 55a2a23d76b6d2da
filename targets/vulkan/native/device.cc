#include "device.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <sstream>
#include <thread>

#include "check.h"

namespace mlcrt {
namespace {

constexpr uint64_t kStage = 32 << 20, kArguments = 1 << 16, kInlineUpload = 16384;
constexpr uint32_t kQueries = 4096;
constexpr size_t kManyRanges = 64;
constexpr uint32_t kSend = 16;  // dispatches after which the device gets them, so that it works while more are recorded
constexpr uint64_t kSplitCopy = 4 << 20;  // bytes from which on threads share a copy

// memcpy by several threads: one alone does not keep a bus busy, and pages of a file are read in as they are touched.
void CopyOnHost(char* to, const char* from, uint64_t size) {
  uint64_t count = std::min<uint64_t>({4, std::thread::hardware_concurrency(), size / kSplitCopy});
  if (count < 2) {
    std::memcpy(to, from, size);
    return;
  }
  uint64_t part = (size / count + 4095) / 4096 * 4096;
  std::vector<std::thread> others;
  for (uint64_t at = part; at < size; at += part) {
    others.emplace_back([=] { std::memcpy(to + at, from + at, std::min(part, size - at)); });
  }
  std::memcpy(to, from, part);
  for (std::thread& other : others) other.join();
}

}  // namespace

Device* Device::Get(int index) {
  static std::mutex mutex;
  static std::map<int, Device*>* open = new std::map<int, Device*>();
  std::lock_guard<std::mutex> guard(mutex);
  Device*& device = (*open)[index];
  if (device == nullptr) {
    const auto& all = PhysicalDevices();
    if (all.empty()) TVM_FFI_THROW(RuntimeError) << "Vulkan: " << LoaderProblem();
    if (index < 0 || index >= static_cast<int>(all.size())) {
      TVM_FFI_THROW(RuntimeError) << "Vulkan: there is no device " << index << " (there are " << all.size() << ")";
    }
    device = new Device(all[index]);
  }
  return device;
}

Device::Device(const PhysicalDevice& physical) : physical_(physical) {
  auto missing = physical.Missing();
  if (!missing.empty()) TVM_FFI_THROW(RuntimeError) << "Vulkan: " << physical.name << " lacks " << missing[0];
  FeatureChain features(physical);
  features.Each([&](const char* name, VkBool32& value) { value = physical.Has(name); });
  float priority = 1;
  VkDeviceQueueCreateInfo queue{};
  queue.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO;
  queue.queueFamilyIndex = physical.queue_family;
  queue.queueCount = 1;
  queue.pQueuePriorities = &priority;
  std::vector<const char*> extensions;
  for (const std::string& name : physical.extensions) extensions.push_back(name.c_str());
  VkDeviceCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO;
  info.pNext = &features.core;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue;
  info.enabledExtensionCount = static_cast<uint32_t>(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();
  Check(Instance().vkCreateDevice(physical.handle, &info, nullptr, &handle_), "opening the device");
#define X(f) fn_.f = reinterpret_cast<PFN_##f>(Instance().vkGetDeviceProcAddr(handle_, #f));
  MLCRT_DEVICE_FUNCTIONS(X)
#undef X
  fn_.vkGetDeviceQueue(handle_, physical.queue_family, 0, &queue_);
  VkCommandPoolCreateInfo pool{};
  pool.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO;
  pool.flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT;
  pool.queueFamilyIndex = physical.queue_family;
  Check(fn_.vkCreateCommandPool(handle_, &pool, nullptr, &pool_), "making a command pool");
  VkSemaphoreTypeCreateInfo type{};
  type.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO;
  type.semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE;
  VkSemaphoreCreateInfo semaphore{};
  semaphore.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO;
  semaphore.pNext = &type;
  Check(fn_.vkCreateSemaphore(handle_, &semaphore, nullptr, &semaphore_), "making a semaphore");
  memory_ = std::make_unique<Allocator>(physical, handle_, fn_, queue_, [this] { Wait(); });
}

// ---- memory

VkDeviceAddress Device::Allocate(uint64_t size) {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  return memory_->Allocate(size);
}

void Device::Free(VkDeviceAddress address) {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  memory_->Free(address);
}

uint64_t Device::Available() {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  return memory_->Available();
}

std::string Device::DescribeMemory() {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  return memory_->Describe();
}

// ---- order

void Device::Barrier() {
  constexpr VkFlags writes = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  constexpr VkFlags reads = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_TRANSFER_READ_BIT;
  VkMemoryBarrier barrier{};
  barrier.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER;
  VkFlags before = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, after = before;
  barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT;
  barrier.dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT;
  if (transfer_ || unknown_) {
    before = after = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
    barrier.srcAccessMask = writes;
    barrier.dstAccessMask = reads | writes;
  }
  fn_.vkCmdPipelineBarrier(Commands(), before, after, 0, 1, &barrier, 0, nullptr, 0, nullptr);
  if (recording_) ++recording_->barriers;
  pending_.clear();
  unknown_ = transfer_ = false;
}

void Device::Order(const Access* accesses, size_t count, bool transfer) {
  Range ranges[32];
  count = std::min<size_t>(count, 32);
  bool wait = unknown_ || pending_.size() > kManyRanges;
  for (size_t i = 0; i < count; ++i) {
    uint64_t offset;
    const Piece& piece = memory_->Find(accesses[i].address, &offset);
    VkDeviceAddress begin = accesses[i].address - offset;
    ranges[i] = {begin, begin + piece.size, accesses[i].writes};
    for (const Range& before : pending_) {
      bool apart = ranges[i].end <= before.begin || before.end <= ranges[i].begin;
      wait |= !apart && (before.written || ranges[i].written);
    }
  }
  bool either = transfer_ || transfer;
  if (wait) {
    transfer_ = either;
    Barrier();
  }
  transfer_ |= transfer;
  pending_.insert(pending_.end(), ranges, ranges + count);
}

// ---- commands

VkCommandBuffer Device::NewCommandBuffer() {
  if (!spare_.empty()) {
    VkCommandBuffer commands = spare_.back();
    spare_.pop_back();
    return commands;
  }
  VkCommandBufferAllocateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO;
  info.commandPool = pool_;
  info.commandBufferCount = 1;
  VkCommandBuffer commands = nullptr;
  Check(fn_.vkAllocateCommandBuffers(handle_, &info, &commands), "making a command buffer");
  return commands;
}

VkCommandBuffer Device::Commands() {
  if (recording_) return recording_->commands;
  if (open_ == nullptr) {
    Busy();
    VkCommandBuffer fresh = NewCommandBuffer();
    VkCommandBufferBeginInfo info{};
    info.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO;
    info.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
    Check(fn_.vkBeginCommandBuffer(fresh, &info), "starting commands");
    open_ = fresh;
  }
  return open_;
}

// Whether the device has unfinished work; takes back the command buffers of finished work.
bool Device::Busy() {
  uint64_t done = 0;
  Check(fn_.vkGetSemaphoreCounterValue(handle_, semaphore_, &done), "asking for progress");
  auto finished = [&](const Used& used) {
    if (used.tick > done) return false;
    spare_.push_back(used.commands);
    return true;
  };
  submitted_.erase(std::remove_if(submitted_.begin(), submitted_.end(), finished), submitted_.end());
  return done < tick_ || open_ != nullptr;
}

void Device::Submit(std::vector<VkCommandBuffer> buffers) {
  uint64_t next = tick_ + 1;
  VkTimelineSemaphoreSubmitInfo timeline{};
  timeline.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO;
  timeline.signalSemaphoreValueCount = 1;
  timeline.pSignalSemaphoreValues = &next;
  VkSubmitInfo info{};
  info.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO;
  info.pNext = &timeline;
  info.commandBufferCount = static_cast<uint32_t>(buffers.size());
  info.pCommandBuffers = buffers.data();
  info.signalSemaphoreCount = 1;
  info.pSignalSemaphores = &semaphore_;
  Check(fn_.vkQueueSubmit(queue_, 1, &info, nullptr), "handing commands to the device");
  tick_ = next;
}

void Device::Flush() {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  if (open_ == nullptr) return;
  VkCommandBuffer commands = open_;
  open_ = nullptr;
  unsent_ = 0;
  Check(fn_.vkEndCommandBuffer(commands), "ending commands");
  Submit({commands});
  submitted_.push_back({commands, tick_});
  readable_ = false;
}

// What was written becomes readable by the host once it is done.
void Device::HostBarrier() {
  VkMemoryBarrier barrier{};
  barrier.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER;
  barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
  barrier.dstAccessMask = VK_ACCESS_HOST_READ_BIT | VK_ACCESS_HOST_WRITE_BIT;
  VkFlags before = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
  fn_.vkCmdPipelineBarrier(Commands(), before, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, nullptr, 0, nullptr);
}

void Device::Wait() {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  NeedHostAccess("waits for the device");
  if (!Busy()) return;
  if (open_ != nullptr || !readable_) HostBarrier();
  Flush();
  VkSemaphoreWaitInfo info{};
  info.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO;
  info.semaphoreCount = 1;
  info.pSemaphores = &semaphore_;
  info.pValues = &tick_;
  Check(fn_.vkWaitSemaphores(handle_, &info, ~0ull), "waiting for the device");
  Busy();
  pending_.clear();
  unknown_ = transfer_ = false;
  ResetArguments();
}

void Device::NeedHostAccess(const char* what) {
  if (recording_) TVM_FFI_THROW(RuntimeError) << "Vulkan: a step that " << what << " cannot be recorded";
}

// ---- copies

void Device::CopyBuffers(VkBuffer from, uint64_t from_at, VkBuffer to, uint64_t to_at, uint64_t size) {
  VkBufferCopy region{from_at, to_at, size};
  fn_.vkCmdCopyBuffer(Commands(), from, to, 1, &region);
}

void Device::Upload(const char* from, VkDeviceAddress to, uint64_t size) {
  if (size == 0) return;
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  NeedHostAccess("takes values from the host");
  uint64_t offset;
  const Piece& piece = memory_->Find(to, &offset);
  uint64_t at = piece.offset + offset;
  Block* target = piece.block;
  Access access{to, false, true};
  if (size <= kInlineUpload && size % 4 == 0 && at % 4 == 0) {
    Order(&access, 1, true);
    fn_.vkCmdUpdateBuffer(Commands(), target->buffer, at, size, from);
    return;
  }
  if (target->map != nullptr) {
    Wait();
    CopyOnHost(target->map + at, from, size);
    return;
  }
  Order(&access, 1, true);
  for (uint64_t done = 0; done < size; done += kStage) {  // the device copies one part while the host fills the other
    Stage& stage = up_[next_up_ ^= 1];
    if (stage.block == nullptr) stage.block = memory_->Staging(kStage, false);
    VkSemaphoreWaitInfo info{};
    info.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO;
    info.semaphoreCount = 1;
    info.pSemaphores = &semaphore_;
    info.pValues = &stage.tick;
    Check(fn_.vkWaitSemaphores(handle_, &info, ~0ull), "waiting for a copy");
    uint64_t part = std::min(kStage, size - done);
    CopyOnHost(stage.block->map, from + done, part);
    CopyBuffers(stage.block->buffer, 0, target->buffer, at + done, part);
    Flush();
    stage.tick = tick_;
  }
}

void Device::Download(VkDeviceAddress from, char* to, uint64_t size) {
  if (size == 0) return;
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  NeedHostAccess("gives values to the host");
  uint64_t offset;
  const Piece& piece = memory_->Find(from, &offset);
  uint64_t at = piece.offset + offset;
  Block* source = piece.block;
  if (source->map != nullptr && source->place->cached) {
    Wait();
    CopyOnHost(to, source->map + at, size);
    return;
  }
  if (down_.block == nullptr) down_.block = memory_->Staging(kStage, true);
  Access access{from, true, false};
  for (uint64_t done = 0; done < size; done += kStage) {
    uint64_t part = std::min(kStage, size - done);
    Order(&access, 1, true);
    CopyBuffers(source->buffer, at + done, down_.block->buffer, 0, part);
    Wait();
    CopyOnHost(to + done, down_.block->map, part);
  }
}

void Device::Copy(VkDeviceAddress from, VkDeviceAddress to, uint64_t size) {
  if (size == 0) return;
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  uint64_t from_at, to_at;
  const Piece& source = memory_->Find(from, &from_at);
  const Piece& target = memory_->Find(to, &to_at);
  Access accesses[] = {{from, true, false}, {to, false, true}};
  Order(accesses, 2, true);
  CopyBuffers(source.block->buffer, source.offset + from_at, target.block->buffer, target.offset + to_at, size);
}

// ---- numbers handed over one by one

int64_t Device::Post(VkDeviceAddress from) {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  NeedHostAccess("gives a number to the host");
  if (posts_ == nullptr) posts_ = memory_->Staging(4 * kPosts, true);
  uint64_t offset;
  const Piece& piece = memory_->Find(from, &offset);
  int64_t slot = posted_++ % kPosts;
  Access access{from, true, false};
  Order(&access, 1, true);
  CopyBuffers(piece.block->buffer, piece.offset + offset, posts_->buffer, 4 * slot, 4);
  HostBarrier();
  Flush();
  post_ticks_[slot] = tick_;
  return slot;
}

int64_t Device::Collect(int64_t slot) {
  uint64_t tick;
  {
    std::lock_guard<std::recursive_mutex> guard(mutex_);
    tick = post_ticks_[slot % kPosts];
  }
  VkSemaphoreWaitInfo info{};
  info.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO;
  info.semaphoreCount = 1;
  info.pSemaphores = &semaphore_;
  info.pValues = &tick;
  Check(fn_.vkWaitSemaphores(handle_, &info, ~0ull), "waiting for a number");
  int32_t value;
  std::memcpy(&value, posts_->map + 4 * (slot % kPosts), 4);
  return value;
}

// ---- kernels

void Device::ResetArguments() { argument_at_ = 0; }

VkDeviceAddress Device::PutArguments(const char* block, uint32_t bytes) {
  std::vector<Block*>& blocks = recording_ ? recording_->arguments : arguments_;
  uint64_t& at = recording_ ? recording_->argument_bytes : argument_at_;
  at = (at + 15) / 16 * 16;
  if (at / kArguments != (at + bytes - 1) / kArguments) at = (at / kArguments + 1) * kArguments;
  uint64_t index = at / kArguments, inside = at % kArguments;
  while (blocks.size() <= index) blocks.push_back(memory_->Staging(kArguments, false));
  std::memcpy(blocks[index]->map + inside, block, bytes);
  at += bytes;
  return blocks[index]->address + inside;
}

void Device::Dispatch(const Pipeline& pipeline, const char* block, uint32_t bytes, bool in_buffer,
                      const std::vector<Access>& accesses, const uint32_t grid[3]) {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return;
  for (int i = 0; i < 3; ++i) {
    uint32_t limit = physical_.properties.limits.maxComputeWorkGroupCount[i];
    if (grid[i] > limit) {
      TVM_FFI_THROW(RuntimeError) << "Vulkan: " << pipeline.name << " needs " << grid[i] << " workgroups, "
                                  << physical_.name << " takes " << limit;
    }
  }
  Order(accesses.data(), accesses.size(), false);
  VkCommandBuffer commands = Commands();
  bool timed = queries_ != nullptr && !recording_;
  if (timed) {
    Barrier();
    if (timed_.size() * 2 + 2 > kQueries) {
      CollectTimes();
      commands = Commands();
    }
    if (timed_.empty()) fn_.vkCmdResetQueryPool(commands, queries_, 0, kQueries);
    fn_.vkCmdWriteTimestamp(commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, queries_, timed_.size() * 2);
  }
  fn_.vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline.handle);
  VkDeviceAddress address = 0;
  if (in_buffer) {
    address = PutArguments(block, bytes);
    block = reinterpret_cast<const char*>(&address);
    bytes = 8;
  }
  if (bytes > 0) fn_.vkCmdPushConstants(commands, pipeline.layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, bytes, block);
  fn_.vkCmdDispatch(commands, grid[0], grid[1], grid[2]);
  if (recording_) ++recording_->dispatches;
  if (timed) {
    fn_.vkCmdWriteTimestamp(commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, queries_, timed_.size() * 2 + 1);
    timed_.push_back(pipeline.name);
  }
  if (!recording_ && !timed && ++unsent_ >= kSend) Flush();
}

// ---- recordings

void Device::BeginRecording() {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  NeedHostAccess("is being recorded");
  Flush();
  auto fresh = std::make_unique<Recording>();
  fresh->commands = NewCommandBuffer();
  VkCommandBufferBeginInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO;
  info.flags = VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT;
  Check(fn_.vkBeginCommandBuffer(fresh->commands, &info), "starting a recording");
  recording_ = std::move(fresh);
  unknown_ = true;  // whatever ran before a replay
  Barrier();
}

int64_t Device::EndRecording() {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  if (!recording_) TVM_FFI_THROW(RuntimeError) << "Vulkan: nothing is being recorded";
  HostBarrier();
  std::unique_ptr<Recording> done = std::move(recording_);
  unknown_ = true;
  Check(fn_.vkEndCommandBuffer(done->commands), "ending a recording");
  recordings_.push_back(std::move(done));
  return static_cast<int64_t>(recordings_.size()) - 1;
}

void Device::Replay(int64_t recording) {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  NeedHostAccess("replays another");
  const auto& found = recordings_.at(recording);
  if (!found) TVM_FFI_THROW(RuntimeError) << "Vulkan: recording " << recording << " was forgotten";
  if (open_ == nullptr) {
    Submit({found->commands});
  } else {
    VkCommandBuffer before = open_;
    open_ = nullptr;
    unsent_ = 0;
    Check(fn_.vkEndCommandBuffer(before), "ending commands");
    Submit({before, found->commands});
    submitted_.push_back({before, tick_});
  }
  pending_.clear();
  unknown_ = readable_ = true;
}

void Device::Forget(int64_t recording) {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  if (recordings_.at(recording)) {
    Wait();
    spare_.push_back(recordings_[recording]->commands);
    recordings_[recording].reset();
  }
}

std::string Device::DescribeRecording(int64_t recording) const {
  const auto& found = recordings_.at(recording);
  std::ostringstream out;
  out << "{\"dispatches\":" << (found ? found->dispatches : 0) << ",\"barriers\":" << (found ? found->barriers : 0)
      << "}";
  return out.str();
}

// ---- times

void Device::Profile(bool on) {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  Wait();
  times_.clear();
  timed_.clear();
  if (on && queries_ == nullptr) {
    if (physical_.timestamp_bits == 0) {
      TVM_FFI_THROW(RuntimeError) << "Vulkan: " << physical_.name << " has no timestamps";
    }
    VkQueryPoolCreateInfo info{};
    info.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO;
    info.queryType = VK_QUERY_TYPE_TIMESTAMP;
    info.queryCount = kQueries;
    Check(fn_.vkCreateQueryPool(handle_, &info, nullptr, &queries_), "making timestamps");
  }
  if (!on && queries_ != nullptr) {
    fn_.vkDestroyQueryPool(handle_, queries_, nullptr);
    queries_ = nullptr;
  }
}

void Device::CollectTimes() {
  Wait();
  if (timed_.empty()) return;
  std::vector<uint64_t> stamps(timed_.size() * 2);
  VkFlags flags = VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT;
  Check(fn_.vkGetQueryPoolResults(handle_, queries_, 0, stamps.size(), stamps.size() * 8, stamps.data(), 8, flags),
        "reading timestamps");
  uint64_t mask = physical_.timestamp_bits >= 64 ? ~0ull : (1ull << physical_.timestamp_bits) - 1;
  for (size_t i = 0; i < timed_.size(); ++i) {
    auto& entry = times_[timed_[i]];
    entry.first += ((stamps[2 * i + 1] - stamps[2 * i]) & mask) * physical_.properties.limits.timestampPeriod;
    ++entry.second;
  }
  timed_.clear();
}

std::string Device::Profiled() {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  if (queries_ != nullptr) CollectTimes();
  std::ostringstream out;
  out << "{";
  for (const auto& entry : times_) {
    out << (out.tellp() > 1 ? "," : "") << "\"" << entry.first << "\":[" << static_cast<int64_t>(entry.second.first)
        << "," << entry.second.second << "]";
  }
  out << "}";
  return out.str();
}

}  // namespace mlcrt
