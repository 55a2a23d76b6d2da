// The stand-in for HIP: streams, events, modules, kernels and graphs.
#include "fake.h"

using namespace fake;

namespace {

const std::map<std::string, unsigned> kMachines = {
    {"gfx906", 0x2f},  {"gfx908", 0x30},  {"gfx90a", 0x3f},  {"gfx942", 0x4c},  {"gfx1010", 0x33}, {"gfx1030", 0x36},
    {"gfx1100", 0x41}, {"gfx1101", 0x46}, {"gfx1102", 0x47}, {"gfx1103", 0x44}, {"gfx1151", 0x4a}, {"gfx1200", 0x48},
    {"gfx1201", 0x4e}};

}  // namespace

extern "C" {

API hipError_t hipStreamCreateWithFlags(hipStream_t* stream, unsigned int flags) {
  ENTER("%u", flags);
  *stream = *streams.insert(new ihipStream_t()).first;
  return hipSuccess;
}
API hipError_t hipStreamDestroy(hipStream_t stream) {
  ENTER("");
  if (!streams.count(stream)) return misuse("destroying an unknown stream", hipErrorInvalidHandle);
  if (stream->capturing) misuse("destroying a stream that records");
  drain(stream);
  return destroy(&streams, stream);
}
API hipError_t hipStreamSynchronize(hipStream_t stream) {
  ENTER("stream %d", stream != nullptr);
  if (!known(stream)) return misuse("an unknown stream", hipErrorInvalidHandle);
  if (real(stream)->capturing) return break_captures();
  return drain(real(stream));
}
API hipError_t hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned int) {
  ENTER("");
  if (!known(stream) || !events.count(event)) return misuse("an unknown stream or event", hipErrorInvalidHandle);
  ihipStream_t* source = event->stream;
  uint64_t number = event->number;
  return submit(stream, [=] {
    return source == nullptr ? as(lost) : run_to(source, number);
  });
}
API hipError_t hipEventCreateWithFlags(hipEvent_t* event, unsigned int flags) {
  ENTER("%u", flags);
  *event = *events.insert(new ihipEvent_t()).first;
  (*event)->timing = (flags & hipEventDisableTiming) == 0;
  return hipSuccess;
}
API hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream) {
  ENTER("stream %d", stream != nullptr);
  if (!known(stream) || !events.count(event)) return misuse("an unknown stream or event", hipErrorInvalidHandle);
  event->stream = real(stream);
  event->milliseconds = -1;
  hipError_t code = submit(stream, [event] {
    if (events.count(event)) event->milliseconds = clock_ms;
    return hipSuccess;
  });
  event->number = real(stream)->queued;
  return code;
}
API hipError_t hipEventSynchronize(hipEvent_t event) {
  ENTER("");
  if (!events.count(event)) return misuse("an unknown event", hipErrorInvalidHandle);
  return event->stream == nullptr ? as(lost) : run_to(event->stream, event->number);
}
API hipError_t hipEventElapsedTime(float* milliseconds, hipEvent_t start, hipEvent_t stop) {
  ENTER("");
  if (!events.count(start) || !events.count(stop) || !start->timing || !stop->timing) return hipErrorInvalidHandle;
  if (start->milliseconds < 0 || stop->milliseconds < 0) return misuse("reading a timer before it stopped");
  *milliseconds = static_cast<float>(stop->milliseconds - start->milliseconds);
  return hipSuccess;
}
API hipError_t hipEventDestroy(hipEvent_t event) {
  ENTER("");
  return destroy(&events, event);
}
API hipError_t hipModuleLoadData(hipModule_t* module, const void* image) {
  ENTER("");
  if (devices.empty()) return hipErrorNoDevice;
  const auto* bytes = static_cast<const unsigned char*>(image);
  if (std::memcmp(bytes, "\177ELF", 4) != 0 || bytes[18] != 224) return hipErrorInvalidImage;
  uint64_t sections;
  uint32_t flags;
  uint16_t size, count;
  std::memcpy(&sections, bytes + 40, 8);
  std::memcpy(&flags, bytes + 48, 4);
  std::memcpy(&size, bytes + 58, 2);
  std::memcpy(&count, bytes + 60, 2);
  auto machine = kMachines.find(devices[current].arch);
  if (machine == kMachines.end() || (flags & 0xff) != machine->second) return hipErrorNoBinaryForGpu;
  *module = *modules.insert(new ihipModule_t()).first;
  (*module)->image.assign(static_cast<const char*>(image), sections + size_t{size} * count);
  (*module)->device = current;
  return hipSuccess;
}
API hipError_t hipModuleGetFunction(hipFunction_t* function, hipModule_t module, const char* name) {
  ENTER("%s", name);
  if (!modules.count(module)) return misuse("an unknown module", hipErrorInvalidHandle);
  if (module->image.find(std::string(name) + ".kd") == std::string::npos) return hipErrorNotFound;
  ihipModuleSymbol_t*& found = module->functions[name];
  if (found == nullptr) found = *functions.insert(new ihipModuleSymbol_t{module, name}).first;
  *function = found;
  return hipSuccess;
}
API hipError_t hipModuleUnload(hipModule_t module) {
  ENTER("");
  if (!modules.count(module)) return misuse("an unknown module", hipErrorInvalidHandle);
  drain_all();
  for (auto& [name, function] : module->functions) destroy(&functions, function);
  return destroy(&modules, module);
}
API hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned int gx, unsigned int gy, unsigned int gz,
                                     unsigned int bx, unsigned int by, unsigned int bz, unsigned int lds,
                                     hipStream_t stream, void** values, void** extra) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (!functions.count(function)) return misuse("launching an unknown function", hipErrorInvalidHandle);
  if (hipError_t failed = enter(__func__, "%s grid %u %u %u block %u %u %u lds %u stream %d", function->name.c_str(), gx,
                                gy, gz, bx, by, bz, lds, stream != nullptr)) {
    return failed;
  }
  if (!known(stream)) return misuse("an unknown stream", hipErrorInvalidHandle);
  if (function->module->device != current) return misuse("a kernel of another device", hipErrorInvalidHandle);
  if (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > 1024 || lds > 65536) return hipErrorInvalidConfiguration;
  auto signature = signatures.find(function->name);
  if (signature == signatures.end() || extra != nullptr) return misuse("a kernel whose arguments are not known");
  const Signature& s = signature->second;
  std::string packed(s.total, '\0');
  for (size_t i = 0; i < s.sizes.size(); ++i) std::memcpy(&packed[s.offsets[i]], values[i], s.sizes[i]);
  return submit(stream, [=] {
    if (!functions.count(function)) return misuse("a module was unloaded before its kernel ran");
    if (launcher == nullptr) return hipSuccess;
    const unsigned dims[6] = {gx, gy, gz, bx, by, bz};
    const std::string& image = function->module->image;
    return as(launcher(function->name.c_str(), image.data(), image.size(), dims, lds, packed.data(), packed.size()));
  });
}
API hipError_t hipStreamBeginCapture(hipStream_t stream, hipStreamCaptureMode mode) {
  ENTER("mode %d", static_cast<int>(mode));
  if (stream == nullptr || !known(stream)) return misuse("recording the null stream", hipErrorStreamCaptureUnsupported);
  if (stream->capturing) return misuse("a stream that records already");
  stream->capturing = true;
  stream->broken = false;
  stream->mode = mode;
  stream->recorded.clear();
  return hipSuccess;
}
API hipError_t hipStreamEndCapture(hipStream_t stream, hipGraph_t* graph) {
  ENTER("");
  if (stream == nullptr || !known(stream) || !stream->capturing) return misuse("ending what was not begun");
  stream->capturing = false;
  *graph = nullptr;
  if (stream->broken) return as(901);
  *graph = *graphs.insert(new ihipGraph{std::move(stream->recorded)}).first;
  return hipSuccess;
}
API hipError_t hipGraphInstantiate(hipGraphExec_t* executable, hipGraph_t graph, hipGraphNode_t*, char*, size_t) {
  ENTER("%zu nodes", graphs.count(graph) ? graph->work.size() : 0);
  if (!graphs.count(graph)) return misuse("an unknown graph", hipErrorInvalidHandle);
  *executable = *executables.insert(new hipGraphExec{graph->work}).first;
  return hipSuccess;
}
API hipError_t hipGraphLaunch(hipGraphExec_t executable, hipStream_t stream) {
  ENTER("%zu nodes", executables.count(executable) ? executable->work.size() : 0);
  if (!executables.count(executable) || !known(stream)) return misuse("an unknown graph", hipErrorInvalidHandle);
  for (const auto& work : executable->work) {
    if (hipError_t code = submit(stream, work)) return code;
  }
  return hipSuccess;
}
API hipError_t hipGraphDestroy(hipGraph_t graph) {
  ENTER("");
  return destroy(&graphs, graph);
}
API hipError_t hipGraphExecDestroy(hipGraphExec_t executable) {
  ENTER("");
  drain_all();
  return destroy(&executables, executable);
}

}  // extern "C"
