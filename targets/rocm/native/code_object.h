// What AMD code objects say of their kernels.
//
// A library holds one code object (an ELF file) or a bundle of several in clang's offload format, one for each GPU
// architecture. An ELF file's note of type 32 and name "AMDGPU" is a MessagePack map with the kernels' arguments and
// limits: LLVM's "User Guide for AMDGPU Backend", sections "Code Object Metadata" and "Clang Offload Bundler".
#ifndef MLCRT_ROCM_CODE_OBJECT_H_
#define MLCRT_ROCM_CODE_OBJECT_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mlcrt {
namespace rocm {

struct KernelArgument {
  uint64_t offset = 0, size = 0;  // bytes
  std::string kind;               // global_buffer, by_value, hidden_…
};

struct KernelInfo {
  std::vector<KernelArgument> arguments;  // those that a launch passes, in its order
  uint64_t max_threads = 1024, lds = 0;   // of a workgroup; bytes that every workgroup has
};

// The code object for `arch` ("gfx1100") in `image`. A plain code object is taken as it is: the driver tells whether
// it fits. Throws when a bundle has none for it.
std::string_view select_code(std::string_view image, const std::string& arch);

// Kernel name → its description. Throws when the code object is damaged.
std::map<std::string, KernelInfo> read_kernels(std::string_view code);

}  // namespace rocm
}  // namespace mlcrt

#endif  // MLCRT_ROCM_CODE_OBJECT_H_
