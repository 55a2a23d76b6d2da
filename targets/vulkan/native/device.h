// One device: a queue, commands in order, copies, recorded steps and timestamps.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "memory.h"

namespace mlcrt {

struct Pipeline {
  std::string name;
  VkPipeline handle = nullptr;
  VkPipelineLayout layout = nullptr;
  uint32_t push_bytes = 0;
};

// A dispatch argument that is an address.
struct Access {
  VkDeviceAddress address = 0;
  bool reads = false, writes = false;
};

// Commands recorded once. `arguments` holds argument blocks that are too large for push constants.
struct Recording {
  VkCommandBuffer commands = nullptr;
  std::vector<Block*> arguments;
  uint64_t argument_bytes = 0;
  uint32_t dispatches = 0, barriers = 0;
};

class Device {
 public:
  // The device with an index of PhysicalDevices(), opened at the first call. Throws with a sentence.
  static Device* Get(int index);

  VkDeviceAddress Allocate(uint64_t size);
  void Free(VkDeviceAddress address);
  void Upload(const char* from, VkDeviceAddress to, uint64_t size);
  void Download(VkDeviceAddress from, char* to, uint64_t size);
  void Copy(VkDeviceAddress from, VkDeviceAddress to, uint64_t size);
  // Begin to bring an int32 to the host; `Collect` waits for it, and not for what was started later.
  int64_t Post(VkDeviceAddress from);
  int64_t Collect(int64_t slot);
  // `block`: the arguments as the kernel lays them out; `in_buffer`: pass their address instead of them.
  void Dispatch(const Pipeline& pipeline, const char* block, uint32_t bytes, bool in_buffer,
                const std::vector<Access>& accesses, const uint32_t grid[3]);
  void Flush();  // hand everything so far to the device
  void Wait();   // until it is done, and its results can be read

  // Between these, dispatches and copies are kept instead of run; the number names them for Replay.
  void BeginRecording();
  int64_t EndRecording();
  void Replay(int64_t recording);
  void Forget(int64_t recording);
  std::string DescribeRecording(int64_t recording) const;

  // Device time by kernel since `on`, as JSON {"kernel": [nanoseconds, calls]}; turning it off forgets.
  void Profile(bool on);
  std::string Profiled();

  std::unique_ptr<Pipeline> MakePipeline(const std::string& name, const std::string& code, uint32_t push_bytes,
                                         uint32_t subgroup, bool full);
  void SavePipelineCache();

  const PhysicalDevice& physical() const { return physical_; }
  uint64_t Available();
  std::string DescribeMemory();

 private:
  explicit Device(const PhysicalDevice& physical);
  VkCommandBuffer Commands();
  VkCommandBuffer NewCommandBuffer();
  void Submit(std::vector<VkCommandBuffer> buffers);
  bool Busy();
  void NeedHostAccess(const char* what);
  // Order a coming access after the ones before it that it depends on.
  void Order(const Access* accesses, size_t count, bool transfer);
  void Barrier();
  void HostBarrier();
  void ResetArguments();
  VkDeviceAddress PutArguments(const char* block, uint32_t bytes);
  void CopyBuffers(VkBuffer from, uint64_t from_at, VkBuffer to, uint64_t to_at, uint64_t size);
  void CollectTimes();
  std::string CacheFile() const;

  struct Range {
    VkDeviceAddress begin, end;
    bool written;
  };
  struct Used {
    VkCommandBuffer commands;
    uint64_t tick;
  };
  struct Stage {
    Block* block = nullptr;
    uint64_t tick = 0;
  };

  const PhysicalDevice& physical_;
  std::recursive_mutex mutex_;
  DeviceFunctions fn_;
  VkDevice handle_ = nullptr;
  VkQueue queue_ = nullptr;
  VkCommandPool pool_ = nullptr;
  VkSemaphore semaphore_ = nullptr;
  VkPipelineCache cache_ = nullptr;
  std::vector<VkPipelineLayout> layouts_;  // by push constant bytes / 4
  std::unique_ptr<Allocator> memory_;
  uint64_t tick_ = 0;                      // of the last submission
  VkCommandBuffer open_ = nullptr;
  uint32_t unsent_ = 0;                    // dispatches in it
  std::vector<Used> submitted_;
  std::vector<VkCommandBuffer> spare_;
  std::vector<Range> pending_;             // accesses since the last barrier
  bool unknown_ = false, transfer_ = false;  // since then: work of unknown buffers, copies
  bool readable_ = false;                  // the last submission ended with a barrier for the host
  Stage up_[2], down_;
  int next_up_ = 0;
  static constexpr int64_t kPosts = 16;
  Block* posts_ = nullptr;  // numbers for the host, and the submission that brings each
  int64_t posted_ = 0;
  uint64_t post_ticks_[kPosts] = {};
  std::vector<Block*> arguments_;
  uint64_t argument_at_ = 0;
  std::vector<std::unique_ptr<Recording>> recordings_;
  std::unique_ptr<Recording> recording_;
  VkQueryPool queries_ = nullptr;
  std::vector<std::string> timed_;
  std::map<std::string, std::pair<double, int64_t>> times_;
  size_t cache_saved_ = 0;
};

}  // namespace mlcrt
