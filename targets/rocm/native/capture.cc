#include "capture.h"

#include <tvm/ffi/extra/c_env_api.h>

#include <memory>
#include <set>

#include "memory.h"

namespace mlcrt {
namespace rocm {
namespace {

using tvm::ffi::Function;

thread_local std::set<void*>* pins_of_capture = nullptr;
thread_local int device_of_capture = -1;

class Stream {
 public:
  explicit Stream(int device) : device_(device) {
    check(hip().hipStreamCreateWithFlags(&stream_, hipStreamNonBlocking), device, "creating a stream");
  }
  ~Stream() { hip().hipStreamDestroy(stream_); }
  hipStream_t get() const { return stream_; }

 private:
  const int device_;
  hipStream_t stream_ = nullptr;
};

// While it lives, TVM's work on the device goes to `stream` and its memory is pinned.
class Recording {
 public:
  Recording(int device, hipStream_t stream, std::set<void*>* pins) : device_(device) {
    TVMFFIEnvSetStream(kDLROCM, device, stream, &before_);
    pins_of_capture = pins;
    device_of_capture = device;
  }
  ~Recording() {
    TVMFFIEnvSetStream(kDLROCM, device_, before_, nullptr);
    pins_of_capture = nullptr;
    device_of_capture = -1;
  }

 private:
  const int device_;
  TVMFFIStreamHandle before_ = nullptr;
};

class Graph {
 public:
  Graph(int device, Function step) : device_(device), step_(std::move(step)) {
    use_device(device);
    check(hip().hipDeviceSynchronize(), device, "waiting for earlier work");
    try {
      Record();
    } catch (...) {
      Unpin();
      throw;
    }
  }

  ~Graph() {
    if (executable_ != nullptr) hip().hipGraphExecDestroy(executable_);
    Unpin();
  }

  void Launch() {
    use_device(device_);
    auto stream = static_cast<hipStream_t>(TVMFFIEnvGetStream(kDLROCM, device_));
    check(hip().hipGraphLaunch(executable_, stream), device_, "replaying the recorded step");
  }

 private:
  void Record() {
    Stream stream(device_);
    hipGraph_t graph = nullptr;
    hipError_t ended;
    check(hip().hipStreamBeginCapture(stream.get(), hipStreamCaptureModeRelaxed), device_, "recording a step");
    try {
      Recording recording(device_, stream.get(), &pins_);
      step_();
    } catch (...) {
      if (hip().hipStreamEndCapture(stream.get(), &graph) == hipSuccess) hip().hipGraphDestroy(graph);
      throw;
    }
    ended = hip().hipStreamEndCapture(stream.get(), &graph);
    check(ended, device_, "recording a step");
    hipError_t made = hip().hipGraphInstantiate(&executable_, graph, nullptr, nullptr, 0);
    hip().hipGraphDestroy(graph);
    check(made, device_, "making the recorded step executable (MLCRT_GRAPH=0 runs without)");
  }

  void Unpin() {
    for (void* start : pins_) pool(device_).Unpin(start);
    pins_.clear();
  }

  const int device_;
  Function step_;  // keeps what the graph runs and uses: the module and the step's arguments
  std::set<void*> pins_;
  hipGraphExec_t executable_ = nullptr;
};

}  // namespace

void note_use(int device, const void* address) {
  if (pins_of_capture == nullptr || device != device_of_capture) return;
  void* start = pool(device).Pin(address);
  if (start != nullptr && !pins_of_capture->insert(start).second) pool(device).Unpin(start);
}

Function capture(int device, Function step) {
  auto graph = std::make_shared<Graph>(device, std::move(step));
  return Function::FromTyped([graph] { graph->Launch(); });
}

}  // namespace rocm
}  // namespace mlcrt
