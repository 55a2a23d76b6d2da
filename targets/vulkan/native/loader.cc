#include "loader.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <sstream>

namespace mlcrt {
namespace {

constexpr uint32_t kLeastVersion = 1u << 22 | 2u << 12;  // 1.2: buffer device addresses and timeline semaphores
const char* const kEssential[] = {"bufferDeviceAddress", "timelineSemaphore", "shaderInt64",
                                  "storageBuffer16BitAccess"};

struct Loader {
  std::string problem;
  InstanceFunctions functions;
  PFN_vkGetInstanceProcAddr get = nullptr;
  VkInstance instance = nullptr;
  std::vector<PhysicalDevice> devices;

  Loader() { problem = Open(); }

  std::string Open() {
    void* library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return "the Vulkan loader (libvulkan.so.1) is not installed";
    get = reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(library, "vkGetInstanceProcAddr"));
    if (get == nullptr) return "libvulkan.so.1 is not a Vulkan loader";
    auto create = reinterpret_cast<PFN_vkCreateInstance>(get(nullptr, "vkCreateInstance"));
    VkApplicationInfo application{};
    application.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO;
    application.pApplicationName = "mlcrt";
    application.apiVersion = 1u << 22 | 3u << 12;
    VkInstanceCreateInfo info{};
    info.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO;
    info.pApplicationInfo = &application;
    VkResult result = create(&info, nullptr, &instance);
    if (result == VK_ERROR_INCOMPATIBLE_DRIVER) return "no Vulkan driver is installed";
    if (result != VK_SUCCESS) return "the Vulkan loader cannot start (error " + std::to_string(result) + ")";
#define X(f) functions.f = reinterpret_cast<PFN_##f>(get(instance, #f));
    MLCRT_INSTANCE_FUNCTIONS(X)
#undef X
    uint32_t count = 0;
    functions.vkEnumeratePhysicalDevices(instance, &count, nullptr);
    std::vector<VkPhysicalDevice> handles(count);
    if (count) functions.vkEnumeratePhysicalDevices(instance, &count, handles.data());
    handles.resize(count);
    if (handles.empty()) return "the Vulkan loader finds no device";
    for (VkPhysicalDevice handle : handles) devices.push_back(Describe(handle));
    std::stable_sort(devices.begin(), devices.end(), [](const PhysicalDevice& a, const PhysicalDevice& b) {
      return Rank(a) < Rank(b);
    });
    return "";
  }

  static int Rank(const PhysicalDevice& device) {
    switch (device.properties.deviceType) {
      case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return 0;
      case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return 1;
      case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return 2;
      case VK_PHYSICAL_DEVICE_TYPE_CPU: return 4;
      default: return 3;
    }
  }

  PhysicalDevice Describe(VkPhysicalDevice handle);
  void ReadFeatures(PhysicalDevice* device);
  void ReadMatrixShapes(PhysicalDevice* device);
};

Loader& TheLoader() {
  static Loader* loader = new Loader();  // never destroyed: drivers have threads of their own
  return *loader;
}

PhysicalDevice Loader::Describe(VkPhysicalDevice handle) {
  static const char* const kinds[] = {"other", "integrated", "discrete", "virtual", "cpu"};
  PhysicalDevice device;
  device.handle = handle;
  functions.vkGetPhysicalDeviceProperties(handle, &device.properties);
  const VkPhysicalDeviceProperties& p = device.properties;
  device.name = p.deviceName;
  device.kind = kinds[p.deviceType <= 4 ? p.deviceType : 0];
  VkPhysicalDeviceMemoryProperties2 memory{};
  memory.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2;
  functions.vkGetPhysicalDeviceMemoryProperties2(handle, &memory);
  device.memory = memory.memoryProperties;
  for (uint32_t i = 0; i < device.memory.memoryHeapCount; ++i) {
    const VkMemoryHeap& heap = device.memory.memoryHeaps[i];
    if (heap.flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) device.device_bytes += heap.size;
  }
  if (p.apiVersion < kLeastVersion) return device;

  VkPhysicalDeviceProperties2 all{};
  VkPhysicalDeviceVulkan11Properties v11{};
  VkPhysicalDeviceVulkan12Properties v12{};
  VkPhysicalDeviceVulkan13Properties v13{};
  all.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
  v11.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES;
  v12.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES;
  v13.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_PROPERTIES;
  all.pNext = &v11;
  v11.pNext = &v12;
  bool has13 = p.apiVersion >= (1u << 22 | 3u << 12);
  if (has13) v12.pNext = &v13;
  functions.vkGetPhysicalDeviceProperties2(handle, &all);
  device.driver = std::string(v12.driverName) + " " + v12.driverInfo;
  device.subgroup = v11.subgroupSize;
  device.max_allocation = v11.maxMemoryAllocationSize;
  device.max_buffer = has13 ? v13.maxBufferSize : v11.maxMemoryAllocationSize;
  const char* const operations[] = {"basic", "vote", "arithmetic", "ballot", "shuffle"};
  bool compute = v11.subgroupSupportedStages & VK_SHADER_STAGE_COMPUTE_BIT;
  for (int bit = 0; bit < 5; ++bit) {
    device.features[std::string("subgroup:") + operations[bit]] = compute && v11.subgroupSupportedOperations >> bit & 1;
  }
  device.features["property:shaderSignedZeroInfNanPreserveFloat16"] = v12.shaderSignedZeroInfNanPreserveFloat16;
  device.features["property:shaderSignedZeroInfNanPreserveFloat32"] = v12.shaderSignedZeroInfNanPreserveFloat32;
  device.features["property:shaderSignedZeroInfNanPreserveFloat64"] = v12.shaderSignedZeroInfNanPreserveFloat64;

  uint32_t count = 0;
  functions.vkEnumerateDeviceExtensionProperties(handle, nullptr, &count, nullptr);
  std::vector<VkExtensionProperties> extensions(count);
  functions.vkEnumerateDeviceExtensionProperties(handle, nullptr, &count, extensions.data());
  const char* const wanted[] = {"VK_EXT_memory_budget", "VK_EXT_shader_atomic_float", "VK_KHR_cooperative_matrix"};
  for (const char* name : wanted) {
    for (const VkExtensionProperties& extension : extensions) {
      if (std::strcmp(extension.extensionName, name) == 0) device.extensions.push_back(name);
    }
  }
  ReadFeatures(&device);
  device.memory_budget = std::count(device.extensions.begin(), device.extensions.end(), "VK_EXT_memory_budget");
  if (has13 && device.features["subgroupSizeControl"] && v13.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT) {
    device.min_subgroup = v13.minSubgroupSize;
    device.max_subgroup = v13.maxSubgroupSize;
  }
  device.full_subgroups = device.features["computeFullSubgroups"];
  if (device.features["cooperativeMatrix"]) ReadMatrixShapes(&device);

  functions.vkGetPhysicalDeviceQueueFamilyProperties(handle, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  functions.vkGetPhysicalDeviceQueueFamilyProperties(handle, &count, families.data());
  int best = -1;
  for (uint32_t i = 0; i < count; ++i) {  // a queue for computing alone does not wait for a desktop's drawing
    if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT)) continue;
    bool alone = !(families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT);
    if (best < 0 || (alone && families[best].queueFlags & VK_QUEUE_GRAPHICS_BIT)) best = static_cast<int>(i);
  }
  device.features["queue:compute"] = best >= 0;
  if (best >= 0) {
    device.queue_family = static_cast<uint32_t>(best);
    device.timestamp_bits = families[best].timestampValidBits;
    device.features["queue:sparse"] = device.features["sparseBinding"] &&
                                      families[best].queueFlags & VK_QUEUE_SPARSE_BINDING_BIT;
  }
  return device;
}

void Loader::ReadFeatures(PhysicalDevice* device) {
  FeatureChain chain(*device);
  functions.vkGetPhysicalDeviceFeatures2(device->handle, &chain.core);
  chain.Each([&](const char* name, VkBool32& value) { device->features[name] = value; });
}

// "matrix:MxNxK:f16:f32" for subgroup-wide products of float16 matrices summed in float32.
void Loader::ReadMatrixShapes(PhysicalDevice* device) {
  auto query = reinterpret_cast<PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR>(
      get(instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"));
  uint32_t count = 0;
  if (query == nullptr || query(device->handle, &count, nullptr) != VK_SUCCESS) return;
  VkCooperativeMatrixPropertiesKHR blank{};
  blank.sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR;
  std::vector<VkCooperativeMatrixPropertiesKHR> shapes(count, blank);
  query(device->handle, &count, shapes.data());
  for (const VkCooperativeMatrixPropertiesKHR& s : shapes) {
    if (s.AType != VK_COMPONENT_TYPE_FLOAT16_KHR || s.BType != VK_COMPONENT_TYPE_FLOAT16_KHR) continue;
    if (s.CType != VK_COMPONENT_TYPE_FLOAT32_KHR || s.ResultType != VK_COMPONENT_TYPE_FLOAT32_KHR) continue;
    if (s.scope != VK_SCOPE_SUBGROUP_KHR) continue;
    std::ostringstream name;
    name << "matrix:" << s.MSize << "x" << s.NSize << "x" << s.KSize << ":f16:f32";
    device->features[name.str()] = true;
  }
}

std::string Quoted(const std::string& text) {
  std::ostringstream out;
  out << '"';
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') out << '\\' << c;
    else if (c >= 0x20) out << c;
  }
  out << '"';
  return out.str();
}

std::string Quoted(const std::vector<std::string>& texts) {
  std::string out = "[";
  for (const std::string& text : texts) out += (out.size() > 1 ? "," : "") + Quoted(text);
  return out + "]";
}

}  // namespace

FeatureChain::FeatureChain(const PhysicalDevice& device) {
  core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
  v11.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES;
  v12.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES;
  v13.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES;
  atomic_float.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_ATOMIC_FLOAT_FEATURES_EXT;
  matrix.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR;
  core.pNext = &v11;
  v11.pNext = &v12;
  void** end = &v12.pNext;
  auto append = [&](auto& item) {
    *end = &item;
    end = &item.pNext;
  };
  auto has = [&](const char* name) {
    return std::count(device.extensions.begin(), device.extensions.end(), name) > 0;
  };
  if (device.properties.apiVersion >= (1u << 22 | 3u << 12)) append(v13);
  if (has("VK_EXT_shader_atomic_float")) append(atomic_float);
  if (has("VK_KHR_cooperative_matrix")) append(matrix);
}

bool PhysicalDevice::Has(const std::string& requirement) const {
  auto found = features.find(requirement);
  return found != features.end() && found->second;
}

std::vector<std::string> PhysicalDevice::Missing() const {
  if (properties.apiVersion < kLeastVersion) return {"Vulkan 1.2"};
  std::vector<std::string> out;
  for (const char* name : kEssential) {
    if (!Has(name)) out.push_back(name);
  }
  if (!Has("queue:compute")) out.push_back("a compute queue");
  return out;
}

const std::vector<PhysicalDevice>& PhysicalDevices() { return TheLoader().devices; }
const std::string& LoaderProblem() { return TheLoader().problem; }
const InstanceFunctions& Instance() { return TheLoader().functions; }

std::string DescribeDevices() {
  std::ostringstream out;
  out << "[";
  int index = 0;
  for (const PhysicalDevice& device : PhysicalDevices()) {
    std::vector<std::string> have;
    for (const auto& feature : device.features) {
      if (feature.second) have.push_back(feature.first);
    }
    uint32_t api = device.properties.apiVersion;
    out << (index ? "," : "") << "{\"id\":" << index << ",\"name\":" << Quoted(device.name)
        << ",\"kind\":" << Quoted(device.kind) << ",\"driver\":" << Quoted(device.driver) << ",\"api\":\""
        << (api >> 22 & 0x7f) << "." << (api >> 12 & 0x3ff) << "." << (api & 0xfff) << "\""
        << ",\"memory_bytes\":" << device.device_bytes << ",\"max_allocation_bytes\":" << device.max_allocation
        << ",\"shared_bytes\":" << device.properties.limits.maxComputeSharedMemorySize
        << ",\"subgroup\":" << device.subgroup << ",\"min_subgroup\":" << device.min_subgroup
        << ",\"max_subgroup\":" << device.max_subgroup << ",\"timestamps\":" << (device.timestamp_bits > 0 ? "true" : "false")
        << ",\"missing\":" << Quoted(device.Missing())
        << ",\"features\":" << Quoted(have) << "}";
    ++index;
  }
  out << "]";
  return out.str();
}

}  // namespace mlcrt
