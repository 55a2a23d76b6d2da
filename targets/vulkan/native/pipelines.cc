// Pipelines, and the cache of them on disk.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "device.h"

namespace mlcrt {
namespace {

// The folder for things that can be made again, as targets/native.py has it; empty where there is none.
std::string CacheFolder() {
  auto variable = [](const char* name) {
    const char* text = std::getenv(name);
    return std::string(text == nullptr ? "" : text);
  };
  std::string chosen = variable("MLCRT_CACHE");
  if (chosen.empty()) {
    std::string base = variable("XDG_CACHE_HOME");
    if (base.empty() && !variable("HOME").empty()) base = variable("HOME") + "/.cache";
    if (base.empty()) return "";
    mkdir(base.c_str(), 0777);
    chosen = base + "/mlcrt";
  }
  mkdir(chosen.c_str(), 0777);
  chosen += "/vulkan";
  mkdir(chosen.c_str(), 0777);
  return chosen;
}

}  // namespace

// One file per device and driver: the driver says which caches are its own.
std::string Device::CacheFile() const {
  std::string folder = CacheFolder();
  if (folder.empty()) return "";
  std::string name;
  for (uint8_t byte : physical_.properties.pipelineCacheUUID) {
    char text[3];
    std::snprintf(text, sizeof text, "%02x", byte);
    name += text;
  }
  return folder + "/pipelines-" + name + "-" + std::to_string(physical_.properties.driverVersion) + ".bin";
}

std::unique_ptr<Pipeline> Device::MakePipeline(const std::string& name, const std::string& code, uint32_t push_bytes,
                                               uint32_t subgroup, bool full) {
  auto made = std::make_unique<Pipeline>();
  made->name = name;
  made->push_bytes = push_bytes;
  {
    std::lock_guard<std::recursive_mutex> guard(mutex_);
    if (cache_ == nullptr) {
      std::string file = CacheFile(), data;
      if (!file.empty()) {
        std::ifstream in(file, std::ios::binary);
        data.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
      }
      cache_saved_ = data.size();
      VkPipelineCacheCreateInfo info{};
      info.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO;
      VkPipelineCacheHeaderVersionOne header{};
      if (data.size() > sizeof header) std::memcpy(&header, data.data(), sizeof header);
      bool own = header.vendorID == physical_.properties.vendorID && header.deviceID == physical_.properties.deviceID &&
                 std::memcmp(header.pipelineCacheUUID, physical_.properties.pipelineCacheUUID, 16) == 0;
      if (own) {
        info.initialDataSize = data.size();
        info.pInitialData = data.data();
      }
      Check(fn_.vkCreatePipelineCache(handle_, &info, nullptr, &cache_), "making a pipeline cache");
    }
    size_t index = push_bytes / 4;
    if (layouts_.size() <= index) layouts_.resize(index + 1, nullptr);
    if (layouts_[index] == nullptr) {
      VkPushConstantRange range{VK_SHADER_STAGE_COMPUTE_BIT, 0, push_bytes};
      VkPipelineLayoutCreateInfo info{};
      info.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO;
      info.pushConstantRangeCount = push_bytes > 0;
      info.pPushConstantRanges = &range;
      Check(fn_.vkCreatePipelineLayout(handle_, &info, nullptr, &layouts_[index]), "making a pipeline layout");
    }
    made->layout = layouts_[index];
  }
  VkShaderModuleCreateInfo shader{};
  shader.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO;
  shader.codeSize = code.size();
  shader.pCode = reinterpret_cast<const uint32_t*>(code.data());
  VkShaderModule module = nullptr;
  Check(fn_.vkCreateShaderModule(handle_, &shader, nullptr, &module), "reading a kernel");
  VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size{};
  size.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO;
  size.requiredSubgroupSize = subgroup;
  VkComputePipelineCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO;
  info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
  info.stage.pNext = subgroup ? &size : nullptr;
  info.stage.flags = full ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT : 0;
  info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  info.stage.module = module;
  info.stage.pName = "main";
  info.layout = made->layout;
  VkResult result = fn_.vkCreateComputePipelines(handle_, cache_, 1, &info, nullptr, &made->handle);
  fn_.vkDestroyShaderModule(handle_, module, nullptr);
  if (result < 0) TVM_FFI_THROW(RuntimeError) << "Vulkan: the driver cannot compile " << name << " (" << result << ")";
  return made;
}

void Device::SavePipelineCache() {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  std::string file = CacheFile();
  size_t size = 0;
  if (file.empty() || cache_ == nullptr) return;
  if (fn_.vkGetPipelineCacheData(handle_, cache_, &size, nullptr) != VK_SUCCESS || size == cache_saved_) return;
  std::string data(size, '\0');
  if (fn_.vkGetPipelineCacheData(handle_, cache_, &size, &data[0]) != VK_SUCCESS) return;
  std::string beside = file + "." + std::to_string(getpid());
  std::ofstream out(beside, std::ios::binary);
  out.write(data.data(), static_cast<std::streamsize>(size));
  out.close();
  if (out && std::rename(beside.c_str(), file.c_str()) == 0) cache_saved_ = size;
  else std::remove(beside.c_str());
}

}  // namespace mlcrt
