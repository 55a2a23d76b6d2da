// The numbers of hip.h, taken without AMD's header, are those of AMD's header.
#include <hip/hip_runtime_api.h>

#define SAME(name, number) static_assert(static_cast<unsigned>(name) == number, #name)

SAME(hipSuccess, 0);
SAME(hipErrorInvalidValue, 1);
SAME(hipErrorOutOfMemory, 2);
SAME(hipErrorInvalidConfiguration, 9);
SAME(hipErrorNoDevice, 100);
SAME(hipErrorInvalidDevice, 101);
SAME(hipErrorInvalidImage, 200);
SAME(hipErrorNoBinaryForGpu, 209);
SAME(hipErrorInvalidHandle, 400);
SAME(hipErrorNotFound, 500);
SAME(hipErrorIllegalAddress, 700);
SAME(hipErrorLaunchFailure, 719);
SAME(hipErrorStreamCaptureUnsupported, 900);
SAME(hipDeviceAttributeClockRate, 5);
SAME(hipDeviceAttributeIntegrated, 16);
SAME(hipDeviceAttributeL2CacheSize, 19);
SAME(hipDeviceAttributeComputeCapabilityMajor, 23);
SAME(hipDeviceAttributeMaxBlockDimX, 26);
SAME(hipDeviceAttributeMaxBlockDimY, 27);
SAME(hipDeviceAttributeMaxBlockDimZ, 28);
SAME(hipDeviceAttributeMaxThreadsPerBlock, 56);
SAME(hipDeviceAttributeComputeCapabilityMinor, 61);
SAME(hipDeviceAttributeMultiprocessorCount, 63);
SAME(hipDeviceAttributeMaxRegistersPerBlock, 71);
SAME(hipDeviceAttributeMaxSharedMemoryPerBlock, 74);
SAME(hipDeviceAttributeWarpSize, 87);
SAME(hipMemcpyHostToHost, 0);
SAME(hipMemcpyHostToDevice, 1);
SAME(hipMemcpyDeviceToHost, 2);
SAME(hipMemcpyDeviceToDevice, 3);
SAME(hipStreamCaptureModeGlobal, 0);
SAME(hipStreamCaptureModeThreadLocal, 1);
SAME(hipStreamCaptureModeRelaxed, 2);
SAME(hipStreamNonBlocking, 0x01);
SAME(hipEventDisableTiming, 0x2);
SAME(hipHostMallocMapped, 0x2);
SAME(hipHostMallocNonCoherent, 0x80000000);
