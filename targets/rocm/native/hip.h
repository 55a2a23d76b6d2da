// The part of AMD's HIP runtime API that mlcrt calls, looked up in libamdhip64 when it is first needed.
//
// Types and numbers are those of hip_runtime_api.h; nothing of ROCm has to be there to build. With MLCRT_HIP_HEADER
// defined they come from AMD's header instead, which is how the tests find a signature or number that is not AMD's.
#ifndef MLCRT_ROCM_HIP_H_
#define MLCRT_ROCM_HIP_H_

#include <cstddef>
#include <string>
#include <vector>

#include "error.h"

#ifdef MLCRT_HIP_HEADER
#include <hip/hip_runtime_api.h>
#else
extern "C" {
typedef enum hipError_t {
  hipSuccess = 0,
  hipErrorInvalidValue = 1,
  hipErrorOutOfMemory = 2,
  hipErrorInvalidConfiguration = 9,
  hipErrorNoDevice = 100,
  hipErrorInvalidDevice = 101,
  hipErrorInvalidImage = 200,
  hipErrorNoBinaryForGpu = 209,
  hipErrorInvalidHandle = 400,
  hipErrorNotFound = 500,
  hipErrorIllegalAddress = 700,
  hipErrorLaunchFailure = 719,
  hipErrorStreamCaptureUnsupported = 900
} hipError_t;
typedef enum hipDeviceAttribute_t {
  hipDeviceAttributeClockRate = 5,
  hipDeviceAttributeIntegrated = 16,
  hipDeviceAttributeL2CacheSize = 19,
  hipDeviceAttributeComputeCapabilityMajor = 23,
  hipDeviceAttributeMaxBlockDimX = 26,
  hipDeviceAttributeMaxBlockDimY = 27,
  hipDeviceAttributeMaxBlockDimZ = 28,
  hipDeviceAttributeMaxThreadsPerBlock = 56,
  hipDeviceAttributeComputeCapabilityMinor = 61,
  hipDeviceAttributeMultiprocessorCount = 63,
  hipDeviceAttributeMaxRegistersPerBlock = 71,
  hipDeviceAttributeMaxSharedMemoryPerBlock = 74,
  hipDeviceAttributeWarpSize = 87
} hipDeviceAttribute_t;
typedef enum hipMemcpyKind {
  hipMemcpyHostToHost = 0,
  hipMemcpyHostToDevice = 1,
  hipMemcpyDeviceToHost = 2,
  hipMemcpyDeviceToDevice = 3
} hipMemcpyKind;
typedef enum hipStreamCaptureMode {
  hipStreamCaptureModeGlobal = 0,
  hipStreamCaptureModeThreadLocal = 1,
  hipStreamCaptureModeRelaxed = 2
} hipStreamCaptureMode;
typedef void* hipDeviceptr_t;
typedef struct ihipStream_t* hipStream_t;
typedef struct ihipEvent_t* hipEvent_t;
typedef struct ihipModule_t* hipModule_t;
typedef struct ihipModuleSymbol_t* hipFunction_t;
typedef struct ihipGraph* hipGraph_t;
typedef struct hipGraphExec* hipGraphExec_t;
typedef struct hipGraphNode* hipGraphNode_t;
#define hipStreamNonBlocking 0x01
#define hipEventDisableTiming 0x2
#define hipHostMallocMapped 0x2
#define hipHostMallocNonCoherent 0x80000000
}
#endif

// (name, result, arguments)
#define MLCRT_HIP_FUNCTIONS(X)                                                                                 \
  X(hipGetErrorString, const char*, (hipError_t))                                                              \
  X(hipGetLastError, hipError_t, (void))                                                                       \
  X(hipRuntimeGetVersion, hipError_t, (int*))                                                                  \
  X(hipDriverGetVersion, hipError_t, (int*))                                                                   \
  X(hipGetDeviceCount, hipError_t, (int*))                                                                     \
  X(hipGetDevice, hipError_t, (int*))                                                                          \
  X(hipSetDevice, hipError_t, (int))                                                                           \
  X(hipDeviceGetAttribute, hipError_t, (int*, hipDeviceAttribute_t, int))                                      \
  X(hipDeviceGetName, hipError_t, (char*, int, int))                                                           \
  X(hipDeviceTotalMem, hipError_t, (size_t*, int))                                                             \
  X(hipDeviceSynchronize, hipError_t, (void))                                                                  \
  X(hipMemGetInfo, hipError_t, (size_t*, size_t*))                                                             \
  X(hipMalloc, hipError_t, (void**, size_t))                                                                   \
  X(hipFree, hipError_t, (void*))                                                                              \
  X(hipHostMalloc, hipError_t, (void**, size_t, unsigned int))                                                 \
  X(hipHostGetDevicePointer, hipError_t, (void**, void*, unsigned int))                                        \
  X(hipHostFree, hipError_t, (void*))                                                                          \
  X(hipMemcpyAsync, hipError_t, (void*, const void*, size_t, hipMemcpyKind, hipStream_t))                      \
  X(hipMemsetD32Async, hipError_t, (hipDeviceptr_t, int, size_t, hipStream_t))                                 \
  X(hipMemcpyPeerAsync, hipError_t, (void*, int, const void*, int, size_t, hipStream_t))                       \
  X(hipStreamCreateWithFlags, hipError_t, (hipStream_t*, unsigned int))                                        \
  X(hipStreamDestroy, hipError_t, (hipStream_t))                                                               \
  X(hipStreamSynchronize, hipError_t, (hipStream_t))                                                           \
  X(hipStreamWaitEvent, hipError_t, (hipStream_t, hipEvent_t, unsigned int))                                   \
  X(hipEventCreateWithFlags, hipError_t, (hipEvent_t*, unsigned int))                                          \
  X(hipEventRecord, hipError_t, (hipEvent_t, hipStream_t))                                                     \
  X(hipEventSynchronize, hipError_t, (hipEvent_t))                                                             \
  X(hipEventElapsedTime, hipError_t, (float*, hipEvent_t, hipEvent_t))                                         \
  X(hipEventDestroy, hipError_t, (hipEvent_t))                                                                 \
  X(hipModuleLoadData, hipError_t, (hipModule_t*, const void*))                                                \
  X(hipModuleGetFunction, hipError_t, (hipFunction_t*, hipModule_t, const char*))                              \
  X(hipModuleUnload, hipError_t, (hipModule_t))                                                                \
  X(hipModuleLaunchKernel, hipError_t,                                                                         \
    (hipFunction_t, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,        \
     unsigned int, hipStream_t, void**, void**))                                                               \
  X(hipStreamBeginCapture, hipError_t, (hipStream_t, hipStreamCaptureMode))                                    \
  X(hipStreamEndCapture, hipError_t, (hipStream_t, hipGraph_t*))                                               \
  X(hipGraphInstantiate, hipError_t, (hipGraphExec_t*, hipGraph_t, hipGraphNode_t*, char*, size_t))            \
  X(hipGraphLaunch, hipError_t, (hipGraphExec_t, hipStream_t))                                                 \
  X(hipGraphDestroy, hipError_t, (hipGraph_t))                                                                 \
  X(hipGraphExecDestroy, hipError_t, (hipGraphExec_t))

namespace mlcrt {
namespace rocm {

// Where gcnArchName lies in hipDeviceProp_t: hipGetDeviceProperties has filled one layout since HIP 4, and
// hipGetDevicePropertiesR0600 another since HIP 6. Later releases only add members at the end.
constexpr size_t kPropertiesBytes = 8192;
constexpr size_t kArchNameOffset = 396;
constexpr size_t kArchNameOffsetR0600 = 1160;

struct Hip {
#define MLCRT_DECLARE(name, result, arguments) result(*name) arguments = nullptr;
  MLCRT_HIP_FUNCTIONS(MLCRT_DECLARE)
#undef MLCRT_DECLARE
  hipError_t (*properties)(void*, int) = nullptr;
  size_t arch_name_offset = 0;
};

// Open the first library of the list that is there; why none can be used, or "". Later calls find it open.
std::string open_hip(const std::vector<std::string>& candidates);

// The opened library, or nullptr.
const Hip* hip_if_open();

// The opened library; throws when there is none.
const Hip& hip();

// "HIP error CODE: text"
std::string describe(hipError_t code);

// Throws "rocm:DEVICE: WHAT failed (HIP error CODE: text)" unless the call succeeded. HIP reports a kernel that failed
// at some later call, whichever it is: then the sentence is about the kernel started last.
void check(hipError_t code, int device, const char* what);

// Remember the kernel that this thread started last.
void note_kernel(const std::string& name);

}  // namespace rocm
}  // namespace mlcrt

#endif  // MLCRT_ROCM_HIP_H_
