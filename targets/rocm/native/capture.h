// A step recorded once as a HIP graph and replayed.
#ifndef MLCRT_ROCM_CAPTURE_H_
#define MLCRT_ROCM_CAPTURE_H_

#include <tvm/ffi/function.h>

namespace mlcrt {
namespace rocm {

// Calls `step` while a stream of its own records what it starts on `device`; a function that replays that. The step
// must use buffers that keep their address and must not wait for the device.
tvm::ffi::Function capture(int device, tvm::ffi::Function step);

// Tells a capture that runs in this thread that recorded work uses `address`: it stays allocated with the graph.
void note_use(int device, const void* address);

}  // namespace rocm
}  // namespace mlcrt

#endif  // MLCRT_ROCM_CAPTURE_H_
