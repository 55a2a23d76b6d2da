// Uses the whole C++ runtime, failures included, and ends with nothing alive. Built with sanitizers together with the
// runtime's sources and the stand-in for HIP; argv: HIP library, a serialised module with vector_add_kernel.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/runtime/device_api.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" {
void fakehip_add_device(const char*, const char*, size_t, int);
void fakehip_define_kernel(const char*, int, const size_t*, const size_t*, size_t);
void fakehip_fail(const char*, int, int, int);
void fakehip_host_memory(size_t);
int fakehip_alive();
const char* fakehip_alive_text();
const char* fakehip_log();
}

using namespace tvm;
using namespace tvm::runtime;
using ffi::Function;

static void expect(bool good, const std::string& what) {
  if (good) return;
  std::fprintf(stderr, "exercise: %s\n", what.c_str());
  std::exit(1);
}

// The message of the RocmError that `work` throws.
template <typename Work>
static std::string refused(Work work) {
  try {
    work();
  } catch (const ffi::Error& error) {
    expect(error.kind() == "RocmError", "an error of another kind: " + std::string(error.kind()));
    return error.message();
  }
  expect(false, "nothing was refused");
  return "";
}

static Function global(const char* name) { return Function::GetGlobalRequired(name); }

class Tensors {
 public:
  explicit Tensors(Device device) : device_(device), api_(DeviceAPI::Get(device)) {}
  ~Tensors() {
    for (void* data : held_) api_->FreeDataSpace(device_, data);
  }
  void* make(size_t bytes) {
    held_.push_back(api_->AllocDataSpace(device_, bytes, 64, DLDataType{kDLFloat, 32, 1}));
    return held_.back();
  }

 private:
  Device device_;
  DeviceAPI* api_;
  std::vector<void*> held_;
};

static DLTensor floats(void* data, int64_t* count, Device device) {
  return DLTensor{data, device, 1, DLDataType{kDLFloat, 32, 1}, count, nullptr, 0};
}

static void memory(Device device) {
  Tensors tensors(device);
  int64_t count = 1000;
  static std::vector<float> host(count, 1.5f), back(count);  // a copy whose wait is made to fail still runs later
  DLTensor from = floats(host.data(), &count, {kDLCPU, 0}), to = floats(back.data(), &count, {kDLCPU, 0});
  DLTensor a = floats(tensors.make(4000), &count, device), b = floats(tensors.make(4000), &count, device);
  DeviceAPI* api = DeviceAPI::Get(device);
  api->CopyDataFromTo(&from, &a, nullptr);
  api->CopyDataFromTo(&a, &b, nullptr);
  api->CopyDataFromTo(&b, &to, nullptr);
  expect(back == host, "a copy there and back changed something");
  for (const char* call : {"hipMemcpyAsync", "hipStreamSynchronize"}) {
    fakehip_fail(call, 0, 1, 1);
    refused([&] { api->CopyDataFromTo(&from, &a, nullptr); });
  }
  expect(refused([&] { tensors.make(size_t{1} << 40); }).find("is out of memory") != std::string::npos, "no memory");
  fakehip_fail("hipMalloc", 0, 999, 1);
  refused([&] { tensors.make(100000); });
}

static void apu(Device device) {
  Tensors tensors(device);
  tensors.make(3 << 20);
  tensors.make(3 << 20);  // beyond the carve-out
  fakehip_fail("hipHostGetDevicePointer", 0, 1, 1);
  refused([&] { tensors.make(3 << 20); });
}

static void streams(Device device) {
  DeviceAPI* api = DeviceAPI::Get(device);
  TVMStreamHandle first = api->CreateStream(device), second = api->CreateStream(device);
  api->SyncStreamFromTo(device, first, second);
  for (const char* call : {"hipEventCreateWithFlags", "hipEventRecord", "hipStreamWaitEvent"}) {
    fakehip_fail(call, 0, 1, 1);
    refused([&] { api->SyncStreamFromTo(device, first, second); });
  }
  api->StreamSync(device, second);
  api->FreeStream(device, first);
  api->FreeStream(device, second);
  fakehip_fail("hipStreamCreateWithFlags", 0, 1, 1);
  refused([&] { api->CreateStream(device); });
  ffi::ObjectRef timer = global("runtime.timer.rocm")(device).cast<ffi::ObjectRef>();
  for (int after : {0, 1}) {
    fakehip_fail("hipEventCreateWithFlags", after, 1, 1);
    refused([&] { global("runtime.timer.rocm")(device); });
  }
}

static void launches(Device device, const std::string& payload) {
  DeviceAPI* api = DeviceAPI::Get(device);
  Tensors tensors(device);
  void *a = tensors.make(4000), *b = tensors.make(4000), *c = tensors.make(4000);
  Function load = global("ffi.Module.load_from_bytes.hip"), capture = global("mlcrt.rocm.capture");
  api->SetDevice(device);
  for (const char* call : {"hipModuleLoadData", "hipModuleGetFunction", "hipModuleLaunchKernel"}) {
    ffi::Module module = load(ffi::Bytes(payload)).cast<ffi::Module>();
    Function add = module->GetFunction("vector_add_kernel").value();
    fakehip_fail(call, 0, 1, 1);
    refused([&] { add(a, b, c, 8, 128); });
    add(a, b, c, 8, 128);
    api->StreamSync(device, nullptr);
  }
  ffi::Module module = load(ffi::Bytes(payload)).cast<ffi::Module>();
  Function add = module->GetFunction("vector_add_kernel").value();
  refused([&] { add(a, b, c, 8); });
  refused([&] { add(a, b, c, 8, 4096); });
  Function step = Function::FromTyped([&] { add(a, b, c, 8, 128); });
  {
    Function replay = capture(device.device_id, step).cast<Function>();
    for (int i = 0; i < 3; ++i) replay();
    fakehip_fail("hipGraphLaunch", 0, 2, 1);
    refused([&] { replay(); });
    api->StreamSync(device, nullptr);
  }
  for (const char* call : {"hipDeviceSynchronize", "hipStreamCreateWithFlags", "hipStreamBeginCapture",
                           "hipModuleLaunchKernel", "hipStreamEndCapture", "hipGraphInstantiate"}) {
    fakehip_fail(call, 0, 1, 1);
    refused([&] { capture(device.device_id, step); });
  }
  // Memory that only a graph still uses goes with the graph.
  Function replay;
  {
    Tensors passing(device);
    void* x = passing.make(70000);
    replay = capture(device.device_id, Function::FromTyped([&] { add(x, x, x, 8, 128); })).cast<Function>();
  }
  global("mlcrt.rocm.release")(device.device_id);
  replay();
  api->StreamSync(device, nullptr);
  expect(std::string(fakehip_log()).find("MISUSE memory") == std::string::npos, "a graph's memory was freed");
}

static void damage(const std::string& payload) {
  Function load = global("ffi.Module.load_from_bytes.hip");
  for (size_t size = 0; size < payload.size(); size += size < 200 ? 1 : 97) {
    refused([&] { load(ffi::Bytes(payload.data(), size)); });
  }
  for (size_t at = payload.size() / 8; at < payload.size(); at += 13) {  // in the code object: whatever comes of it
    std::string broken = payload;
    broken[at] = static_cast<char>(broken[at] + 1 + at % 255);
    try {
      ffi::Module module = load(ffi::Bytes(broken)).cast<ffi::Module>();
      if (auto add = module->GetFunction("vector_add_kernel")) add.value()(nullptr, nullptr, nullptr, 8, 128);
    } catch (const ffi::Error& error) {
      expect(error.kind() == "RocmError", "an error of another kind");
    }
  }
}

int main(int count, char** arguments) {
  expect(count == 3, "arguments: HIP library, module");
  std::ifstream file(arguments[2], std::ios::binary);
  const std::string payload((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const Device gpu{kDLROCM, 0}, integrated{kDLROCM, 1};
  refused([&] { DeviceAPI::Get(gpu)->AllocDataSpace(gpu, 4, 64, DLDataType{kDLFloat, 32, 1}); });
  ffi::Array<ffi::String> none{"/nowhere/libamdhip64.so"}, fake{arguments[1]};
  expect(global("mlcrt.rocm.open")(none).cast<ffi::String>().size() != 0, "a library that is not there was opened");
  expect(global("mlcrt.rocm.open")(fake).cast<ffi::String>().size() == 0, "the library was not opened");
  fakehip_add_device("GPU", "gfx1100", 256 << 20, 0);
  fakehip_add_device("APU", "gfx1151", 4 << 20, 1);
  fakehip_host_memory(64 << 20);
  const size_t offsets[] = {0, 8, 16}, sizes[] = {8, 8, 8};
  fakehip_define_kernel("vector_add_kernel", 3, offsets, sizes, 24);
  memory(gpu);
  apu(integrated);
  streams(gpu);
  launches(gpu, payload);
  damage(payload);
  for (int device : {0, 1}) global("mlcrt.rocm.release")(device);
  expect(fakehip_alive() == 0, std::string("left alive: ") + fakehip_alive_text());
  std::puts("nothing left");
  return 0;
}
