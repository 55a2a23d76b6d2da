// What TVM and the engine see: the device API, the module class of kind "vulkan" and a few functions.
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <unordered_map>

#include "module.h"

namespace mlcrt {

namespace ffi = tvm::ffi;

namespace {

thread_local int current_device = 0;  // TVM names it before every launch

class VulkanDeviceAPI final : public tvm::runtime::DeviceAPI {
 public:
  static VulkanDeviceAPI* Global() {
    static auto* api = new VulkanDeviceAPI();
    return api;
  }
  void SetDevice(tvm::Device device) final { current_device = device.device_id; }
  void GetAttr(tvm::Device device, tvm::runtime::DeviceAttrKind kind, ffi::Any* result) final {
    const auto& all = PhysicalDevices();
    bool there = device.device_id >= 0 && device.device_id < static_cast<int>(all.size());
    if (kind == tvm::runtime::kExist) {
      *result = static_cast<int64_t>(there && all[device.device_id].Missing().empty());
      return;
    }
    if (!there) return;
    const PhysicalDevice& physical = all[device.device_id];
    const VkPhysicalDeviceLimits& limits = physical.properties.limits;
    switch (kind) {
      case tvm::runtime::kMaxThreadsPerBlock: *result = int64_t{limits.maxComputeWorkGroupInvocations}; break;
      case tvm::runtime::kWarpSize: *result = int64_t{physical.subgroup}; break;
      case tvm::runtime::kMaxSharedMemoryPerBlock: *result = int64_t{limits.maxComputeSharedMemorySize}; break;
      case tvm::runtime::kDeviceName: *result = ffi::String(physical.name); break;
      case tvm::runtime::kTotalGlobalMemory: *result = static_cast<int64_t>(physical.device_bytes); break;
      case tvm::runtime::kAvailableGlobalMemory:
        *result = static_cast<int64_t>(Device::Get(device.device_id)->Available());
        break;
      default: break;
    }
  }
  void* AllocDataSpace(tvm::Device device, size_t size, size_t, DLDataType) final {
    return reinterpret_cast<void*>(Device::Get(device.device_id)->Allocate(size));
  }
  void FreeDataSpace(tvm::Device device, void* address) final {
    try {
      Device::Get(device.device_id)->Free(reinterpret_cast<VkDeviceAddress>(address));
    } catch (const std::exception&) {  // a lost device: tensors end in destructors, where nothing may be thrown
    }
  }
  void StreamSync(tvm::Device device, TVMStreamHandle) final { Device::Get(device.device_id)->Wait(); }
  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

 protected:
  void CopyDataFromTo(const void* from, size_t from_at, void* to, size_t to_at, size_t size, tvm::Device source,
                      tvm::Device target, DLDataType, TVMStreamHandle) final {
    const char* read = static_cast<const char*>(from) + from_at;
    char* written = static_cast<char*>(to) + to_at;
    bool reads = source.device_type == kDLVulkan, writes = target.device_type == kDLVulkan;
    if (reads && writes && source.device_id != target.device_id) {
      TVM_FFI_THROW(RuntimeError) << "Vulkan: copy through the host from one device to another";
    }
    if (reads && writes) {
      Device::Get(source.device_id)->Copy(Address(read), Address(written), size);
    } else if (writes) {
      Device::Get(target.device_id)->Upload(read, Address(written), size);
    } else {
      Device::Get(source.device_id)->Download(Address(read), written, size);
    }
  }

 private:
  static VkDeviceAddress Address(const void* pointer) { return reinterpret_cast<VkDeviceAddress>(pointer); }
};

// The kernels of one library on one device.
class LoadedKernels {
 public:
  LoadedKernels(const std::vector<Kernel>& kernels, Device* device) : device_(device) {
    std::vector<const Kernel*> chosen = Choose(kernels, device->physical());
    std::vector<std::unique_ptr<Pipeline>> made(chosen.size());
    std::atomic<size_t> next{0};
    std::vector<std::string> problems(chosen.size());
    auto work = [&] {
      for (size_t i = next++; i < chosen.size(); i = next++) {
        try {
          made[i] = Make(*chosen[i]);
        } catch (const std::exception& error) {
          problems[i] = error.what();
        }
      }
    };
    std::vector<std::thread> threads;
    size_t count = std::min<size_t>(chosen.size(), std::max(1u, std::thread::hardware_concurrency()));
    for (size_t i = 1; i < count; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    for (const std::string& problem : problems) {
      if (!problem.empty()) TVM_FFI_THROW(RuntimeError) << problem;
    }
    for (size_t i = 0; i < chosen.size(); ++i) table_[chosen[i]->name] = {chosen[i], std::move(made[i])};
    device->SavePipelineCache();
  }

  void Launch(const std::string& name, const ffi::PackedArgs& call) {
    auto found = table_.find(name);
    const Kernel& kernel = *found->second.first;
    alignas(8) char block[4096];
    std::memset(block, 0, kernel.argument_bytes);
    thread_local std::vector<Access> accesses;
    accesses.clear();
    for (const Parameter& p : kernel.parameters) {
      const TVMFFIAny& value = Raw(call, p.index);
      switch (p.kind) {
        case 0: {
          VkDeviceAddress address = reinterpret_cast<VkDeviceAddress>(value.v_ptr);
          std::memcpy(block + p.offset, &address, 8);
          accesses.push_back({address, (p.access & 1) != 0, (p.access & 2) != 0});
          break;
        }
        case 1: {
          int32_t number = static_cast<int32_t>(value.v_int64);
          std::memcpy(block + p.offset, &number, 4);
          break;
        }
        case 2: std::memcpy(block + p.offset, &value.v_int64, 8); break;
        case 3: {
          float number = static_cast<float>(Real(value));
          std::memcpy(block + p.offset, &number, 4);
          break;
        }
        default: {
          double number = Real(value);
          std::memcpy(block + p.offset, &number, 8);
        }
      }
    }
    uint32_t grid[3];
    for (int i = 0; i < 3; ++i) {
      int64_t unit = kernel.divisor[i];
      int64_t extent = kernel.grid[i] == 0 ? unit * unit : Raw(call, kernel.grid[i] - 1).v_int64;
      grid[i] = static_cast<uint32_t>((extent + unit - 1) / unit);
    }
    device_->Dispatch(*found->second.second, block, kernel.argument_bytes, kernel.in_buffer, accesses, grid);
  }

 private:
  std::unique_ptr<Pipeline> Make(const Kernel& kernel) {
    const PhysicalDevice& physical = device_->physical();
    uint32_t push = kernel.in_buffer ? 8 : kernel.argument_bytes;
    bool choose = kernel.subgroup && physical.min_subgroup <= kernel.lanes && kernel.lanes <= physical.max_subgroup;
    uint32_t size = choose ? kernel.lanes : physical.subgroup;
    bool full = kernel.subgroup && physical.full_subgroups && kernel.workgroup[0] % size == 0;
    return device_->MakePipeline(kernel.name, kernel.code, push, choose ? kernel.lanes : 0, full);
  }
  static const TVMFFIAny& Raw(const ffi::PackedArgs& call, uint32_t index) {
    if (static_cast<int>(index) >= call.size()) TVM_FFI_THROW(RuntimeError) << "Vulkan: a kernel got too few arguments";
    return *reinterpret_cast<const TVMFFIAny*>(&call.data()[index]);
  }
  static double Real(const TVMFFIAny& value) {
    return value.type_index == ffi::TypeIndex::kTVMFFIFloat ? value.v_float64 : static_cast<double>(value.v_int64);
  }

  Device* device_;
  std::unordered_map<std::string, std::pair<const Kernel*, std::unique_ptr<Pipeline>>> table_;
};

class VulkanModule final : public ffi::ModuleObj {
 public:
  explicit VulkanModule(const ffi::Bytes& bytes)
      : bytes_(bytes.data(), bytes.size()), kernels_(ReadKernels(bytes_)) {
    for (const Kernel& kernel : kernels_) names_.insert({kernel.name, true});
  }
  const char* kind() const final { return "vulkan"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return ffi::Bytes(bytes_.data(), bytes_.size()); }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    std::string key(name.data(), name.size());
    if (!names_.count(key)) return std::nullopt;
    auto self = ffi::detail::ObjectUnsafe::ObjectPtrFromUnowned<VulkanModule>(static_cast<ffi::Object*>(this));
    return ffi::Function::FromPacked(
        [self, key](ffi::PackedArgs call, ffi::Any*) { self->Loaded(current_device).Launch(key, call); });
  }
  LoadedKernels& Loaded(int index) {
    std::lock_guard<std::mutex> guard(mutex_);
    auto& loaded = loaded_[index];
    if (!loaded) loaded = std::make_unique<LoadedKernels>(kernels_, Device::Get(index));
    return *loaded;
  }

 private:
  std::string bytes_;
  std::vector<Kernel> kernels_;
  std::unordered_map<std::string, bool> names_;
  std::map<int, std::unique_ptr<LoadedKernels>> loaded_;
  std::mutex mutex_;
};

bool eager = false;  // an engine has chosen a device: what it cannot run is refused when a library is loaded

ffi::Module MakeModule(ffi::Bytes bytes) { return ffi::Module(ffi::make_object<VulkanModule>(bytes)); }

ffi::Module LoadModule(ffi::Bytes bytes) {
  auto module = ffi::make_object<VulkanModule>(bytes);
  if (eager) module->Loaded(current_device);
  return ffi::Module(module);
}

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def_packed("device_api.vulkan",
                  [](ffi::PackedArgs, ffi::Any* result) { *result = static_cast<void*>(VulkanDeviceAPI::Global()); })
      .def("ffi.Module.create.vulkan", MakeModule)
      .def("ffi.Module.load_from_bytes.vulkan", LoadModule)
      .def("mlcrt.vulkan.devices", [] { return ffi::String(DescribeDevices()); })
      .def("mlcrt.vulkan.problem", [] { return ffi::String(LoaderProblem()); })
      .def("mlcrt.vulkan.use", [](int64_t index) {
        Device::Get(static_cast<int>(index));
        current_device = static_cast<int>(index);
        eager = true;
      })
      .def("mlcrt.vulkan.available", [](int64_t i) { return static_cast<int64_t>(Device::Get(i)->Available()); })
      .def("mlcrt.vulkan.memory", [](int64_t i) { return ffi::String(Device::Get(i)->DescribeMemory()); })
      .def("mlcrt.vulkan.flush", [](int64_t i) { Device::Get(i)->Flush(); })
      .def("mlcrt.vulkan.record", [](int64_t i) { Device::Get(i)->BeginRecording(); })
      .def("mlcrt.vulkan.recorded", [](int64_t i) { return Device::Get(i)->EndRecording(); })
      .def("mlcrt.vulkan.replay", [](int64_t i, int64_t r) { Device::Get(i)->Replay(r); })
      .def("mlcrt.vulkan.forget", [](int64_t i, int64_t r) { Device::Get(i)->Forget(r); })
      .def("mlcrt.vulkan.describe",
           [](int64_t i, int64_t r) { return ffi::String(Device::Get(i)->DescribeRecording(r)); })
      .def("mlcrt.vulkan.copy",
           [](int64_t i, int64_t from, int64_t to, int64_t size) { Device::Get(i)->Copy(from, to, size); })
      .def("mlcrt.vulkan.post", [](int64_t i, int64_t from) { return Device::Get(i)->Post(from); })
      .def("mlcrt.vulkan.collect", [](int64_t i, int64_t slot) { return Device::Get(i)->Collect(slot); })
      .def("mlcrt.vulkan.profile", [](int64_t i, bool on) { Device::Get(i)->Profile(on); })
      .def("mlcrt.vulkan.profiled", [](int64_t i) { return ffi::String(Device::Get(i)->Profiled()); });
}

}  // namespace
}  // namespace mlcrt
