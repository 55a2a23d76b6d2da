// The ROCm device of TVM's runtime, its timer, and what mlcrt's Python side asks for.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <map>

#include "capture.h"
#include "memory.h"

namespace tvm {
namespace runtime {

// TVM's timers derive from this. The wheel's timer.h needs headers that the wheel leaves out; what counts is the type's
// key and the order of the virtual functions.
class TimerNode : public ffi::Object {
 public:
  virtual void Start() = 0;
  virtual void Stop() = 0;
  virtual int64_t SyncAndGetElapsedNanos() = 0;
  virtual ~TimerNode() {}
  static constexpr const bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO("runtime.TimerNode", TimerNode, ffi::Object);
};

}  // namespace runtime
}  // namespace tvm

namespace mlcrt {
namespace rocm {
namespace {

namespace ffi = tvm::ffi;
using tvm::Device;
using tvm::runtime::DeviceAttrKind;

hipStream_t stream_of(TVMStreamHandle handle) { return static_cast<hipStream_t>(handle); }

class RocmDevice final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(Device device) final { use_device(device.device_id); }

  void GetAttr(Device device, DeviceAttrKind kind, ffi::Any* result) final {
    namespace rt = tvm::runtime;
    const int id = device.device_id;
    const bool exists = id >= 0 && id < device_count();
    if (kind == rt::kExist) {
      *result = static_cast<int64_t>(exists);
      return;
    }
    if (!exists) return;  // None
    auto number = [&](hipDeviceAttribute_t which) { *result = static_cast<int64_t>(attribute(id, which)); };
    switch (kind) {
      case rt::kMaxThreadsPerBlock:
        // Not what the GPU can do (1024) but what TVM's code generator takes without a GPU: it asks here, and gives
        // each thread fewer registers the more threads a block may have.
        *result = int64_t{256};
        return;
      case rt::kWarpSize:
        return number(hipDeviceAttributeWarpSize);
      case rt::kMaxSharedMemoryPerBlock:
        return number(hipDeviceAttributeMaxSharedMemoryPerBlock);
      case rt::kComputeVersion:
        *result = ffi::String(std::to_string(attribute(id, hipDeviceAttributeComputeCapabilityMajor)) + "." +
                              std::to_string(attribute(id, hipDeviceAttributeComputeCapabilityMinor)));
        return;
      case rt::kDeviceName:
        *result = ffi::String(device_info(id).name);
        return;
      case rt::kGcnArch:
        *result = ffi::String(device_info(id).arch);
        return;
      case rt::kMaxClockRate:
        return number(hipDeviceAttributeClockRate);
      case rt::kMultiProcessorCount:
        return number(hipDeviceAttributeMultiprocessorCount);
      case rt::kMaxThreadDimensions:
        *result = ffi::String("[" + std::to_string(attribute(id, hipDeviceAttributeMaxBlockDimX)) + ", " +
                              std::to_string(attribute(id, hipDeviceAttributeMaxBlockDimY)) + ", " +
                              std::to_string(attribute(id, hipDeviceAttributeMaxBlockDimZ)) + "]");
        return;
      case rt::kMaxRegistersPerBlock:
        return number(hipDeviceAttributeMaxRegistersPerBlock);
      case rt::kL2CacheSizeBytes:
        return number(hipDeviceAttributeL2CacheSize);
      case rt::kApiVersion:
      case rt::kDriverVersion: {
        int version = 0;
        auto ask = kind == rt::kApiVersion ? hip().hipRuntimeGetVersion : hip().hipDriverGetVersion;
        check(ask(&version), id, "asking for a version");
        *result = static_cast<int64_t>(version);
        return;
      }
      case rt::kTotalGlobalMemory:
        *result = static_cast<int64_t>(memory_info(id).total);
        return;
      case rt::kAvailableGlobalMemory:
        *result = static_cast<int64_t>(memory_info(id).free);
        return;
      default:
        return;
    }
  }

  void* AllocDataSpace(Device device, size_t bytes, size_t, DLDataType) final {
    device_info(device.device_id);  // throws unless it is there
    return pool(device.device_id).Allocate(bytes);
  }

  void FreeDataSpace(Device device, void* address) final { pool(device.device_id).Free(address); }

  TVMStreamHandle CreateStream(Device device) final {
    use_device(device.device_id);
    hipStream_t stream = nullptr;
    check(hip().hipStreamCreateWithFlags(&stream, hipStreamNonBlocking), device.device_id, "creating a stream");
    return stream;
  }

  void FreeStream(Device device, TVMStreamHandle stream) final {
    use_device(device.device_id);
    check(hip().hipStreamDestroy(stream_of(stream)), device.device_id, "destroying a stream");
  }

  void StreamSync(Device device, TVMStreamHandle stream) final {
    use_device(device.device_id);
    check(hip().hipStreamSynchronize(stream_of(stream)), device.device_id, "work on the GPU");
  }

  void SyncStreamFromTo(Device device, TVMStreamHandle from, TVMStreamHandle to) final {
    use_device(device.device_id);
    const int id = device.device_id;
    hipEvent_t event = nullptr;
    check(hip().hipEventCreateWithFlags(&event, hipEventDisableTiming), id, "creating an event");
    hipError_t code = hip().hipEventRecord(event, stream_of(from));
    if (code == hipSuccess) code = hip().hipStreamWaitEvent(stream_of(to), event, 0);
    hip().hipEventDestroy(event);  // HIP keeps it for as long as it is waited for
    check(code, id, "ordering two streams");
  }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes, Device source,
                      Device target, DLDataType, TVMStreamHandle stream) final {
    if (bytes == 0) return;
    const void* begin = static_cast<const char*>(from) + from_offset;
    void* end = static_cast<char*>(to) + to_offset;
    const bool on_source = source.device_type == kDLROCM, on_target = target.device_type == kDLROCM;
    const bool other_host = (!on_source && source.device_type != kDLCPU && source.device_type != kDLROCMHost) ||
                            (!on_target && target.device_type != kDLCPU && target.device_type != kDLROCMHost);
    if (other_host) MLCRT_ROCM_THROW << "a copy between a ROCm device and another kind of device has to go by the host";
    const int device = on_target ? target.device_id : source.device_id;
    use_device(device);
    if (on_source) note_use(source.device_id, begin);
    if (on_target) note_use(target.device_id, end);
    hipError_t code;
    if (on_source && on_target && source.device_id != target.device_id) {
      code = hip().hipMemcpyPeerAsync(end, target.device_id, begin, source.device_id, bytes, stream_of(stream));
    } else {
      auto kind = on_source ? (on_target ? hipMemcpyDeviceToDevice : hipMemcpyDeviceToHost) : hipMemcpyHostToDevice;
      code = hip().hipMemcpyAsync(end, begin, bytes, kind, stream_of(stream));
    }
    check(code, device, "copying memory");
    // Host memory of a tensor may be gone when this returns.
    if (!on_source || !on_target) {
      check(hip().hipStreamSynchronize(stream_of(stream)), device, "copying memory");
    }
  }
};

// Device time between two events in a stream's order.
class RocmTimer final : public tvm::runtime::TimerNode {
 public:
  explicit RocmTimer(Device device) : device_(device.device_id) {
    use_device(device_);
    check(hip().hipEventCreateWithFlags(&start_, 0), device_, "creating an event");
    hipError_t code = hip().hipEventCreateWithFlags(&stop_, 0);
    if (code != hipSuccess) hip().hipEventDestroy(start_);  // no destructor runs after a constructor throws
    check(code, device_, "creating an event");
  }
  ~RocmTimer() {
    hip().hipEventDestroy(start_);
    hip().hipEventDestroy(stop_);
  }
  void Start() final { Record(start_); }
  void Stop() final { Record(stop_); }
  int64_t SyncAndGetElapsedNanos() final {
    use_device(device_);
    check(hip().hipEventSynchronize(stop_), device_, "work on the GPU");
    float milliseconds = 0;
    check(hip().hipEventElapsedTime(&milliseconds, start_, stop_), device_, "reading a timer");
    return static_cast<int64_t>(milliseconds * 1e6);
  }
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("mlcrt.RocmTimer", RocmTimer, tvm::runtime::TimerNode);

 private:
  void Record(hipEvent_t event) {
    use_device(device_);
    check(hip().hipEventRecord(event, stream_of(TVMFFIEnvGetStream(kDLROCM, device_))), device_, "recording an event");
  }

  const int device_;
  hipEvent_t start_ = nullptr, stop_ = nullptr;
};

using Names = ffi::Array<ffi::String>;

std::string open(const Names& candidates) {
  std::vector<std::string> names;
  for (const ffi::String& name : candidates) names.emplace_back(name);
  return open_hip(names);
}

ffi::Map<ffi::String, int64_t> memory(int device) {
  device_info(device);
  MemoryInfo info = memory_info(device);
  Pool::Statistics kept = pool(device).statistics();
  ffi::Map<ffi::String, int64_t> result;
  auto set = [&](const char* key, size_t value) { result.Set(key, static_cast<int64_t>(value)); };
  set("free", info.free);
  set("total", info.total);
  set("beyond", info.host);
  set("used", kept.used);
  set("cached", kept.cached);
  set("on_host", kept.host);
  set("blocks", kept.blocks);
  return result;
}

// destination[offset bytes …] = source, on the device and in the current stream's order.
void copy(ffi::TensorView destination, int64_t offset, ffi::TensorView source) {
  const int device = destination.device().device_id;
  const size_t bytes = ffi::GetDataSize(source);
  if (destination.device().device_type != kDLROCM || source.device().device_type != kDLROCM ||
      source.device().device_id != device || offset < 0 || bytes + offset > ffi::GetDataSize(destination)) {
    MLCRT_ROCM_THROW << "a copy within a device needs two of its tensors and room for " << bytes << " bytes at "
                     << offset;
  }
  char* to = static_cast<char*>(destination.data_ptr()) + destination.byte_offset() + offset;
  const char* from = static_cast<const char*>(source.data_ptr()) + source.byte_offset();
  use_device(device);
  note_use(device, to);
  note_use(device, from);
  hipStream_t stream = stream_of(TVMFFIEnvGetStream(kDLROCM, device));
  check(hip().hipMemcpyAsync(to, from, bytes, hipMemcpyDeviceToDevice, stream), device, "copying memory");
}

// The one int32 of a device tensor, set in the current stream's order without waiting.
void set_int(ffi::TensorView target, int64_t value) {
  const int device = target.device().device_id;
  if (target.device().device_type != kDLROCM || ffi::GetDataSize(target) != 4) {
    MLCRT_ROCM_THROW << "setting a number needs a device tensor of 4 bytes";
  }
  char* to = static_cast<char*>(target.data_ptr()) + target.byte_offset();
  use_device(device);
  note_use(device, to);
  hipStream_t stream = stream_of(TVMFFIEnvGetStream(kDLROCM, device));
  check(hip().hipMemsetD32Async(to, static_cast<int>(value), 1, stream), device, "writing a number");
}

// Numbers that the GPU hands to the host one by one; a few may be on their way.
class Posts {
 public:
  int64_t Post(ffi::TensorView source) {
    const int device = source.device().device_id;
    if (source.device().device_type != kDLROCM || ffi::GetDataSize(source) < 4) {
      MLCRT_ROCM_THROW << "handing over a number needs a device tensor of at least 4 bytes";
    }
    use_device(device);
    if (numbers_ == nullptr) {
      void* memory = nullptr;
      check(hip().hipHostMalloc(&memory, 4 * kCount, 0), device, "allocating host memory");
      numbers_ = static_cast<int32_t*>(memory);
    }
    const int64_t slot = next_++ % kCount;
    if (events_[slot] == nullptr) {
      check(hip().hipEventCreateWithFlags(&events_[slot], hipEventDisableTiming), device, "creating an event");
    }
    const char* from = static_cast<const char*>(source.data_ptr()) + source.byte_offset();
    hipStream_t stream = stream_of(TVMFFIEnvGetStream(kDLROCM, device));
    check(hip().hipMemcpyAsync(numbers_ + slot, from, 4, hipMemcpyDeviceToHost, stream), device, "copying memory");
    check(hip().hipEventRecord(events_[slot], stream), device, "recording an event");
    return slot;
  }
  int64_t Collect(int device, int64_t slot) {
    use_device(device);
    check(hip().hipEventSynchronize(events_[slot % kCount]), device, "work on the GPU");
    return numbers_[slot % kCount];
  }
  void Release(int device) {
    if (numbers_ == nullptr) return;
    use_device(device);
    hip().hipDeviceSynchronize();
    for (hipEvent_t& event : events_) {
      if (event != nullptr) hip().hipEventDestroy(event);
      event = nullptr;
    }
    hip().hipHostFree(numbers_);
    numbers_ = nullptr;
  }

 private:
  static constexpr int64_t kCount = 16;
  int32_t* numbers_ = nullptr;
  hipEvent_t events_[kCount] = {};
  int64_t next_ = 0;
};

Posts& posts(int device) {
  static auto* all = new std::map<int, Posts>();
  return (*all)[device];
}

}  // namespace
}  // namespace rocm
}  // namespace mlcrt

TVM_FFI_STATIC_INIT_BLOCK() {
  using namespace mlcrt::rocm;
  static RocmDevice* device = new RocmDevice();
  tvm::ffi::reflection::GlobalDef()
      .def_packed("device_api.rocm",
                  [](tvm::ffi::PackedArgs, tvm::ffi::Any* result) {
                    *result = static_cast<void*>(static_cast<tvm::runtime::DeviceAPI*>(device));
                  })
      .def("runtime.timer.rocm",
           [](tvm::Device which) { return tvm::ffi::ObjectRef(tvm::ffi::make_object<RocmTimer>(which)); })
      .def("mlcrt.rocm.open", [](const Names& names) { return tvm::ffi::String(open(names)); })
      .def("mlcrt.rocm.device_count", device_count)
      .def("mlcrt.rocm.memory", memory)
      .def("mlcrt.rocm.release",
           [](int id) {
             posts(id).Release(id);
             pool(id).Release();
           })
      .def("mlcrt.rocm.copy", copy)
      .def("mlcrt.rocm.set_int", set_int)
      .def("mlcrt.rocm.post", [](tvm::ffi::TensorView source) { return posts(source.device().device_id).Post(source); })
      .def("mlcrt.rocm.collect", [](int id, int64_t slot) { return posts(id).Collect(id, slot); })
      .def("mlcrt.rocm.capture", capture);
}
