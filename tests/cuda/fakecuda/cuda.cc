// A stand-in for CUDA's runtime and driver: device memory is host memory, kernels are noted instead of run, and
// everything else happens at once. What TVM's CUDA runtime and targets/cuda call is written to $FAKE_CUDA_LOG.
// Signatures: the CUDA Runtime API and Driver API references, version 13.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

bool recording = false;
size_t nodes = 0;

void note(const char* form, ...) {
  static FILE* file = fopen(getenv("FAKE_CUDA_LOG"), "w");
  va_list list;
  va_start(list, form);
  vfprintf(file, form, list);
  va_end(list);
  fputc('\n', file);
  fflush(file);
}

void* fresh() { return malloc(16); }

}  // namespace

// ---- driver

API cuInit(unsigned) { return 0; }
API cuDeviceGetCount(int* count) { return *count = 1, 0; }
API cuDeviceGet(int* device, int) { return *device = 0; }
API cuDeviceGetName(char* name, int size, int) { return snprintf(name, size, "Fake H100"), 0; }
API cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = size_t{8} << 30, 0; }
API cuDeviceGetAttribute(int* value, int which, int) { return *value = which == 75 ? 9 : 0, 0; }
API cuFuncSetAttribute(void*, int, int) { return 0; }
API cuGetErrorName(int, const char** text) { return *text = "error", 0; }
API cuGetErrorString(int, const char** text) { return *text = "error", 0; }
API cuModuleLoadData(void** module, const void* image) {
  note("module %08x", *static_cast<const uint32_t*>(image));
  return *module = fresh(), 0;
}
API cuModuleUnload(void*) { return 0; }
API cuModuleGetFunction(void** function, void*, const char* name) { return *function = strdup(name), 0; }
API cuTensorMapEncodeTiled() { return 1; }
API cuLaunchKernelEx(const void*, void* function, void**, void**) {
  if (recording) ++nodes;
  note(recording ? "record %s" : "launch %s", static_cast<const char*>(function));
  return 0;
}

// ---- runtime

API cudaGetDeviceCount(int* count) { return *count = 1, 0; }
API cudaGetDevice(int* device) { return *device = 0; }
API cudaSetDevice(int) { return 0; }
API cudaDeviceGetAttribute(int* value, int which, int) {
  return *value = which == 75 ? 9 : which == 10 ? 32 : which == 1 ? 1024 : 0, 0;
}
API cudaGetDeviceProperties(void*, int) { return 0; }
API cudaDeviceSynchronize() { return note("wait for the device"), 0; }
API cudaGetLastError() { return 0; }
API cudaPeekAtLastError() { return 0; }
extern "C" __attribute__((visibility("default"))) const char* cudaGetErrorString(int) { return "error"; }
extern "C" __attribute__((visibility("default"))) const char* cudaGetErrorName(int) { return "error"; }
API cudaMemGetInfo(size_t* free, size_t* total) { return *free = size_t{4} << 30, *total = size_t{8} << 30, 0; }
API cudaMalloc(void** address, size_t size) {
  size = (size + 255) / 256 * 256;
  *address = aligned_alloc(256, size ? size : 256);
  return memset(*address, 0, size), 0;
}
API cudaFree(void* address) { return free(address), 0; }
API cudaMallocHost(void** address, size_t size) { return cudaMalloc(address, size); }
API cudaFreeHost(void* address) { return free(address), 0; }
API cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void*) {
  static const char* kinds[] = {"host to host", "to the device", "to the host", "on the device", "default"};
  note("copy %zu %s", size, kinds[kind]);
  return memcpy(to, from, size), 0;
}
API cudaMemcpyPeerAsync() { return 1; }
API cudaStreamCreate(void** stream) { return *stream = fresh(), 0; }
API cudaStreamCreateWithFlags(void** stream, unsigned) { return *stream = fresh(), 0; }
API cudaStreamDestroy(void* stream) { return free(stream), 0; }
API cudaStreamSynchronize(void*) { return note("wait for the stream"), 0; }
API cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
API cudaStreamBeginCapture(void*, int) { return recording = true, nodes = 0; }
API cudaStreamEndCapture(void*, void** graph) { return recording = false, *graph = fresh(), 0; }
API cudaGraphInstantiate(void** executable, void*, unsigned long long) { return *executable = fresh(), 0; }
API cudaGraphGetNodes(void*, void*, size_t* count) { return *count = nodes, 0; }
API cudaGraphDestroy(void* graph) { return free(graph), 0; }
API cudaGraphExecDestroy(void* executable) { return free(executable), 0; }
API cudaGraphLaunch(void*, void*) { return note("replay"), 0; }
API cudaEventCreate(void** event) { return *event = fresh(), 0; }
API cudaEventCreateWithFlags(void** event, unsigned) { return *event = fresh(), 0; }
API cudaEventDestroy(void* event) { return free(event), 0; }
API cudaEventRecord(void*, void*) { return note("event"), 0; }
API cudaEventSynchronize(void*) { return note("wait for an event"), 0; }
API cudaEventQuery(void*) { return 600; }  // cudaErrorNotReady
API cudaEventElapsedTime(float* milliseconds, void*, void*) {
  static int asked = 0;
  const char* good = getenv("FAKE_CUDA_TIMES");  // how many times can be told
  *milliseconds = 0.01f;
  return good != nullptr && asked++ >= atoi(good) ? 719 : 0;  // cudaErrorLaunchFailure
}
