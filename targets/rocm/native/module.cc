// Loads the kernels of a compiled library and launches them.
#include <tvm/ffi/cast.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>

#include "capture.h"
#include "code_object.h"
#include "memory.h"

namespace mlcrt {
namespace rocm {
namespace {

namespace ffi = tvm::ffi;

constexpr size_t kMostArguments = 64;

struct Signature {
  std::vector<DLDataType> arguments;
  std::vector<std::string> tags;  // what follows them in a call: extents, then bytes of dynamic LDS
};

// TVM's serialised module (little-endian; text = u64 length, bytes): text format; u64 n × (text key; text name;
// u64 k × (u8 code, u8 bits, u16 lanes); u64 t × text tag; u64 e × i32); text image.
class PayloadReader {
 public:
  PayloadReader(const char* data, size_t size) : data_(data), left_(size) {}

  uint64_t Number() {
    uint64_t value;
    std::memcpy(&value, Take(8), 8);
    return value;
  }
  std::string Text() {
    uint64_t size = Number();
    return std::string(Take(size), size);
  }
  DLDataType Type() {
    const char* raw = Take(4);
    DLDataType type;
    type.code = static_cast<uint8_t>(raw[0]);
    type.bits = static_cast<uint8_t>(raw[1]);
    std::memcpy(&type.lanes, raw + 2, 2);
    return type;
  }
  const char* Take(uint64_t size) {
    if (size > left_) MLCRT_ROCM_THROW << "the library's GPU part is cut off; compile it again with mlcrt compile";
    data_ += size;
    left_ -= size;
    return data_ - size;
  }

 private:
  const char* data_;
  uint64_t left_;
};

size_t bytes_of(const DLDataType& type) { return type.code == kDLOpaqueHandle ? sizeof(void*) : (type.bits + 7) / 8; }

bool passable(const DLDataType& type) {
  if (type.lanes != 1) return false;
  if (type.code == kDLOpaqueHandle) return true;
  if (type.code == kDLFloat) return type.bits == 32 || type.bits == 64;
  return (type.code == kDLInt || type.code == kDLUInt || type.code == kDLBool) && type.bits <= 64;
}

// Where a launch value goes: 0–2 grid, 3–5 block, 6 dynamic LDS.
int slot_of(const std::string& tag) {
  if (tag.size() == 10 && tag.rfind("blockIdx.", 0) == 0) return tag[9] - 'x';
  if (tag.size() == 11 && tag.rfind("threadIdx.", 0) == 0) return 3 + tag[10] - 'x';
  if (tag == "tirx.use_dyn_shared_memory") return 6;
  MLCRT_ROCM_THROW << "the library launches kernels with '" << tag << "', which this runtime does not know";
  throw;  // not reached
}

struct Kernel {
  std::string name;
  Signature signature;
  std::vector<int> slots;
  std::array<std::atomic<hipFunction_t>, kMaxDevices> functions{};
  std::array<KernelInfo, kMaxDevices> infos;
};

class Module final : public ffi::ModuleObj {
 public:
  explicit Module(const ffi::Bytes& payload) : payload_(payload.data(), payload.size()) {
    PayloadReader reader(payload_.data(), payload_.size());
    reader.Text();  // format: HIP finds out itself
    for (uint64_t n = reader.Number(); n != 0; --n) {
      auto kernel = std::make_shared<Kernel>();
      std::string key = reader.Text();
      kernel->name = reader.Text();
      for (uint64_t k = reader.Number(); k != 0; --k) kernel->signature.arguments.push_back(reader.Type());
      for (uint64_t t = reader.Number(); t != 0; --t) kernel->signature.tags.push_back(reader.Text());
      reader.Take(4 * reader.Number());
      for (const DLDataType& type : kernel->signature.arguments) {
        if (!passable(type) || kernel->signature.arguments.size() > kMostArguments) {
          MLCRT_ROCM_THROW << "kernel " << kernel->name << " takes arguments that this runtime cannot pass";
        }
      }
      for (const std::string& tag : kernel->signature.tags) kernel->slots.push_back(slot_of(tag));
      kernels_[key] = std::move(kernel);
    }
    uint64_t size = reader.Number();
    image_ = std::string_view(reader.Take(size), size);
  }

  ~Module() {
    for (int device = 0; device < kMaxDevices; ++device) {
      if (modules_[device] == nullptr) continue;
      hip().hipSetDevice(device);
      hip().hipModuleUnload(modules_[device]);
    }
  }

  const char* kind() const final { return "hip"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return ffi::Bytes(payload_); }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto found = kernels_.find(std::string(name));
    if (found == kernels_.end()) return std::nullopt;
    std::shared_ptr<Kernel> kernel = found->second;
    auto self = ffi::GetRef<ffi::Module>(this);
    return ffi::Function::FromPacked([this, self, kernel](ffi::PackedArgs values, ffi::Any*) {
      Launch(kernel.get(), values);
    });
  }

 private:
  void Launch(Kernel* kernel, ffi::PackedArgs values) {
    const Signature& signature = kernel->signature;
    const size_t count = signature.arguments.size();
    if (static_cast<size_t>(values.size()) != count + signature.tags.size()) {
      MLCRT_ROCM_THROW << "kernel " << kernel->name << " takes " << count + signature.tags.size() << " values, not "
                       << values.size();
    }
    const int device = current_device();
    use_device(device);
    hipFunction_t function = kernel->functions[device].load(std::memory_order_acquire);
    if (function == nullptr) function = Find(kernel, device);
    const auto* raw = reinterpret_cast<const TVMFFIAny*>(values.data());
    union Value {
      int64_t integer;
      float single;
      double number;
      void* address;
    } storage[kMostArguments];
    void* pointers[kMostArguments];
    for (size_t i = 0; i < count; ++i) {
      const DLDataType& type = signature.arguments[i];
      pointers[i] = &storage[i];
      if (type.code == kDLOpaqueHandle) {
        storage[i].address = raw[i].v_ptr;
        note_use(device, raw[i].v_ptr);
      } else if (type.code == kDLFloat && type.bits == 32) {
        storage[i].single = static_cast<float>(raw[i].v_float64);
      } else {
        storage[i].integer = raw[i].v_int64;  // a double's bits, or an integer whose low bytes come first
      }
    }
    unsigned launch[7] = {1, 1, 1, 1, 1, 1, 0};
    for (size_t i = 0; i < kernel->slots.size(); ++i) {
      int64_t value = raw[count + i].v_int64;
      if (value > INT32_MAX) {
        MLCRT_ROCM_THROW << "kernel " << kernel->name << " cannot be launched: " << value << " is too many blocks";
      }
      if (value > 0) launch[kernel->slots[i]] = static_cast<unsigned>(value);  // no tokens: one idle block
    }
    const KernelInfo& info = kernel->infos[device];
    const uint64_t threads = uint64_t{launch[3]} * launch[4] * launch[5];
    if (threads > info.max_threads) {
      MLCRT_ROCM_THROW << "kernel " << kernel->name << " was compiled for " << info.max_threads
                       << " threads a block at most and is launched with " << threads;
    }
    auto stream = static_cast<hipStream_t>(TVMFFIEnvGetStream(kDLROCM, device));
    note_kernel(kernel->name);
    hipError_t code = hip().hipModuleLaunchKernel(function, launch[0], launch[1], launch[2], launch[3], launch[4],
                                                  launch[5], launch[6], stream, pointers, nullptr);
    if (code != hipSuccess) {
      MLCRT_ROCM_THROW << "rocm:" << device << ": launching kernel " << kernel->name << " failed (" << describe(code)
                       << "); it has " << launch[0] << "x" << launch[1] << "x" << launch[2] << " blocks of " << threads
                       << " threads and " << info.lds + launch[6] << " bytes of LDS";
    }
  }

  // Load the module on the device unless that is done, and look the kernel up.
  hipFunction_t Find(Kernel* kernel, int device) {
    std::lock_guard<std::mutex> lock(mutex_);
    hipFunction_t function = kernel->functions[device].load(std::memory_order_acquire);
    if (function != nullptr) return function;  // another thread was first
    if (modules_[device] == nullptr) Load(device);
    auto described = described_[device].find(kernel->name);
    if (described == described_[device].end()) {
      MLCRT_ROCM_THROW << "the library's GPU code has no kernel " << kernel->name
                       << "; compile it again with mlcrt compile";
    }
    CheckArguments(*kernel, described->second);
    check(hip().hipModuleGetFunction(&function, modules_[device], kernel->name.c_str()), device,
          ("finding kernel " + kernel->name).c_str());
    kernel->infos[device] = described->second;
    kernel->functions[device].store(function, std::memory_order_release);
    return function;
  }

  void Load(int device) {
    const std::string& arch = device_info(device).arch;
    std::string_view code = select_code(image_, arch);
    described_[device] = read_kernels(code);
    hipError_t error = hip().hipModuleLoadData(&modules_[device], code.data());
    if (error == hipSuccess) return;
    modules_[device] = nullptr;
    MLCRT_ROCM_THROW << "rocm:" << device << " (" << arch << ") does not take the library's GPU code ("
                     << describe(error) << "): it was compiled for another GPU or a newer ROCm; compile it again with"
                     << " mlcrt compile --target rocm:" << arch;
  }

  // HIP reads as many bytes of each argument as the code object says, in the code object's order. TVM sorts a
  // kernel's parameters (addresses first, then by name) before it generates either side; should the two ever
  // disagree, a launch would read beyond an argument, so that is looked at once per kernel.
  static void CheckArguments(const Kernel& kernel, const KernelInfo& info) {
    const auto& mine = kernel.signature.arguments;
    bool same = mine.size() == info.arguments.size();
    for (size_t i = 0; same && i < mine.size(); ++i) {
      bool address = mine[i].code == kDLOpaqueHandle;
      same = info.arguments[i].size == bytes_of(mine[i]) && (info.arguments[i].kind == "global_buffer") == address;
    }
    if (!same) {
      MLCRT_ROCM_THROW << "kernel " << kernel.name << " and the code that launches it disagree about its arguments;"
                       << " compile the library again with mlcrt compile";
    }
  }

  std::string payload_;
  std::string_view image_;  // of payload_
  std::map<std::string, std::shared_ptr<Kernel>> kernels_;
  std::mutex mutex_;
  std::array<hipModule_t, kMaxDevices> modules_{};
  std::array<std::map<std::string, KernelInfo>, kMaxDevices> described_;
};

ffi::Module load(const ffi::Bytes& payload) { return ffi::Module(ffi::make_object<Module>(payload)); }

}  // namespace
}  // namespace rocm
}  // namespace mlcrt

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("ffi.Module.load_from_bytes.hip", mlcrt::rocm::load)
      .def("ffi.Module.load_from_bytes.hsaco", mlcrt::rocm::load);
}
