// Kernels as SPIR-V with what is known about them, as they lie in a library.
#pragma once
#include <string>
#include <vector>

#include "device.h"

namespace mlcrt {

struct Parameter {
  uint32_t index = 0;   // in the call
  uint32_t kind = 0;    // 0 address, 1 32-bit integer, 2 64-bit integer, 3 float32, 4 float64
  uint32_t offset = 0;  // bytes into the argument block
  uint32_t access = 0;  // of an address: 1 read, 2 written
};

struct Kernel {
  std::string name, unit, variant;
  uint32_t lanes = 0;      // the subgroup it was made for; 0: any
  uint32_t preference = 0; // among variants for the same subgroup, less is better
  uint32_t subgroup = 0;   // whether it uses subgroup operations
  std::vector<Parameter> parameters;
  uint32_t argument_bytes = 0, in_buffer = 0;
  // per axis of the grid: place of the extent in the call plus 1, and what it is divided by, rounding up; or 0 and the
  // extent itself
  uint32_t grid[3] = {}, divisor[3] = {};
  uint32_t workgroup[3] = {}, shared_bytes = 0;
  std::vector<std::string> requirements;
  std::string code;

  // What the device lacks for it; empty when it can run.
  std::string Missing(const PhysicalDevice& device) const;
  // How well its subgroup suits the device: less is better.
  int Distance(const PhysicalDevice& device) const;
};

// Throws for bytes that are not such a list.
std::vector<Kernel> ReadKernels(const std::string& bytes);
// Of every unit the variant that suits the device best; throws naming what is missing where none can run.
std::vector<const Kernel*> Choose(const std::vector<Kernel>& kernels, const PhysicalDevice& device);

}  // namespace mlcrt
