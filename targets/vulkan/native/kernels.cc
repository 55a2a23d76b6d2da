#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

#include "module.h"

namespace mlcrt {
namespace {

constexpr char kMagic[] = "mlcrt-vulkan-1\n";

class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}

  uint32_t Number() {
    uint32_t value = 0;
    std::memcpy(&value, Take(4), 4);
    return value;
  }
  std::string Text() {
    uint32_t size = Number();
    return std::string(Take(size), size);
  }
  const char* Take(size_t size) {
    if (size > bytes_.size() - at_) TVM_FFI_THROW(RuntimeError) << "Vulkan: the kernels in the library are damaged; compile it again";
    at_ += size;
    return bytes_.data() + at_ - size;
  }
  template <typename F>
  void Repeat(F each) {
    for (uint32_t count = Number(); count > 0; --count) each();
  }
  bool Done() const { return at_ == bytes_.size(); }

 private:
  const std::string& bytes_;
  size_t at_ = 0;
};

}  // namespace

std::vector<Kernel> ReadKernels(const std::string& bytes) {
  Reader in(bytes);
  if (std::memcmp(in.Take(sizeof kMagic - 1), kMagic, sizeof kMagic - 1) != 0) {
    TVM_FFI_THROW(RuntimeError) << "Vulkan: the library's kernels are of another version; compile it again";
  }
  std::vector<Kernel> kernels;
  in.Repeat([&] {
    Kernel k;
    k.name = in.Text();
    k.unit = in.Text();
    k.variant = in.Text();
    k.lanes = in.Number();
    k.preference = in.Number();
    k.subgroup = in.Number();
    in.Repeat([&] {
      Parameter p;
      for (uint32_t* field : {&p.index, &p.kind, &p.offset, &p.access}) *field = in.Number();
      k.parameters.push_back(p);
    });
    k.argument_bytes = in.Number();
    k.in_buffer = in.Number();
    for (uint32_t* three : {k.grid, k.divisor, k.workgroup}) {
      for (int i = 0; i < 3; ++i) three[i] = in.Number();
    }
    for (uint32_t divisor : k.divisor) {
      if (divisor == 0) TVM_FFI_THROW(RuntimeError) << "Vulkan: the kernels in the library are damaged; compile it again";
    }
    k.shared_bytes = in.Number();
    in.Repeat([&] { k.requirements.push_back(in.Text()); });
    k.code = in.Text();
    for (const Parameter& p : k.parameters) {
      uint32_t size = p.kind == 1 || p.kind == 3 ? 4 : 8;
      if (p.kind > 4 || k.argument_bytes < size || p.offset > k.argument_bytes - size || k.argument_bytes > 4096 ||
          p.index > 1000) {
        TVM_FFI_THROW(RuntimeError) << "Vulkan: the kernels in the library are damaged; compile it again";
      }
    }
    kernels.push_back(std::move(k));
  });
  if (!in.Done()) TVM_FFI_THROW(RuntimeError) << "Vulkan: the kernels in the library are damaged; compile it again";
  return kernels;
}

std::string Kernel::Missing(const PhysicalDevice& device) const {
  for (const std::string& requirement : requirements) {
    if (!device.Has(requirement)) return requirement;
  }
  const VkPhysicalDeviceLimits& limits = device.properties.limits;
  if (shared_bytes > limits.maxComputeSharedMemorySize) {
    return std::to_string(shared_bytes) + " bytes of workgroup memory (it has " +
           std::to_string(limits.maxComputeSharedMemorySize) + ")";
  }
  uint64_t threads = uint64_t{workgroup[0]} * workgroup[1] * workgroup[2];
  bool fits = threads <= limits.maxComputeWorkGroupInvocations;
  for (int i = 0; i < 3; ++i) fits &= workgroup[i] <= limits.maxComputeWorkGroupSize[i];
  if (!fits) return "workgroups of " + std::to_string(threads) + " threads";
  bool chosen = device.min_subgroup <= lanes && lanes <= device.max_subgroup;
  // a smaller group of lanes inside a subgroup works too: exchanges stay within it
  if (lanes > device.subgroup && !chosen) {
    return "subgroups of " + std::to_string(lanes) + " lanes (it has " + std::to_string(device.subgroup) + ")";
  }
  return "";
}

int Kernel::Distance(const PhysicalDevice& device) const {
  if (lanes == 0) return 1000;
  if (lanes == device.subgroup) return 0;
  if (device.min_subgroup <= lanes && lanes <= device.max_subgroup) return lanes > device.subgroup ? 2 : 1;
  return static_cast<int>(2 + device.subgroup / lanes);
}

std::vector<const Kernel*> Choose(const std::vector<Kernel>& kernels, const PhysicalDevice& device) {
  struct Candidate {
    std::vector<const Kernel*> kernels;
    std::string missing;
    int distance = 0;
  };
  const char* forced = std::getenv("MLCRT_VULKAN_VARIANT");  // for tests and for comparing variants
  std::map<std::string, std::vector<std::pair<std::string, Candidate>>> units;  // variants in the library's order
  for (const Kernel& kernel : kernels) {
    auto& variants = units[kernel.unit];
    auto found = std::find_if(variants.begin(), variants.end(), [&](auto& v) { return v.first == kernel.variant; });
    if (found == variants.end()) found = variants.insert(variants.end(), {kernel.variant, Candidate{}});
    Candidate& candidate = found->second;
    candidate.kernels.push_back(&kernel);
    if (candidate.missing.empty()) candidate.missing = kernel.Missing(device);
    int plain = kernel.preference == 0 ? 0 : 1000;  // matrices are worth another subgroup size
    candidate.distance = std::max<int>(candidate.distance, plain + kernel.Distance(device) * 4 + kernel.preference);
  }
  std::vector<const Kernel*> chosen;
  for (auto& unit : units) {
    Candidate* best = nullptr;
    for (auto& variant : unit.second) {
      Candidate& candidate = variant.second;
      if (!candidate.missing.empty()) continue;
      if (forced != nullptr && variant.first == forced) {
        best = &candidate;
        break;
      }
      if (best == nullptr || candidate.distance < best->distance) best = &candidate;
    }
    if (best == nullptr) {
      TVM_FFI_THROW(RuntimeError) << "Vulkan: " << device.name << " lacks "
                                  << unit.second.back().second.missing << ", which the library's kernel "
                                  << unit.first << " needs";
    }
    chosen.insert(chosen.end(), best->kernels.begin(), best->kernels.end());
  }
  return chosen;
}

}  // namespace mlcrt
