/* Loads lib.dll through TVM's FFI as the Windows wheels have it, runs two kernels on fixed inputs, prints the results. */
#include <dlpack/dlpack.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <tvm/ffi/c_api.h>
#include <windows.h>

typedef int (*GetGlobal)(const TVMFFIByteArray *, TVMFFIObjectHandle *);
typedef int (*Call)(TVMFFIObjectHandle, TVMFFIAny *, int32_t, TVMFFIAny *);

static GetGlobal get_global;
static Call call;
static _Alignas(64) float x[64], y[64], inv_freq[16], cosine[16], sine[16];
static _Alignas(64) uint32_t codes[512];
static _Alignas(64) uint16_t scales[128];
static _Alignas(64) int32_t position[1];

static void check(int good, const char *what) {
  if (good) return;
  printf("failed: %s (%lu)\n", what, GetLastError());
  fflush(stdout);
  ExitProcess(1);
}

static TVMFFIObjectHandle global(const char *name) {
  TVMFFIByteArray text = {name, strlen(name)};
  TVMFFIObjectHandle found;
  check(get_global(&text, &found) == 0, name);
  return found;
}

static TVMFFIAny text(const char *value) {
  TVMFFIAny any = {0};
  any.type_index = kTVMFFIRawStr;
  any.v_c_str = value;
  return any;
}

static DLTensor tensor(void *data, int dims, int64_t *shape, int code, int bits) {
  DLTensor t = {0};
  t.data = data;
  t.device.device_type = kDLCPU;
  t.ndim = dims;
  t.shape = shape;
  t.dtype.code = code;
  t.dtype.bits = bits;
  t.dtype.lanes = 1;
  return t;
}

static void run(TVMFFIAny module, const char *name, DLTensor *tensors) {
  TVMFFIAny arguments[4] = {module, text(name), {0}, {0}}, function = {0}, result = {0};
  arguments[2].type_index = kTVMFFIBool;
  check(call(global("ffi.ModuleGetFunction"), arguments, 3, &function) == 0 && function.type_index >= 64, name);
  memset(arguments, 0, sizeof arguments);
  for (int i = 0; i < 4; i++) {
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = &tensors[i];
  }
  check(call(function.v_ptr, arguments, 4, &result) == 0, name);
}

static void print(const float *values, int count) {
  for (int i = 0; i < count; i++) printf("%.9g\n", values[i]);
}

int main(void) {
  HMODULE ffi = LoadLibraryA("tvm_ffi.dll");
  check(ffi != NULL, "tvm_ffi.dll");
  check(LoadLibraryA("tvm_runtime.dll") != NULL, "tvm_runtime.dll");
  get_global = (GetGlobal)GetProcAddress(ffi, "TVMFFIFunctionGetGlobal");
  call = (Call)GetProcAddress(ffi, "TVMFFIFunctionCall");
  TVMFFIAny file = text("lib.dll"), module = {0};
  check(call(global("ffi.ModuleLoadFromFile"), &file, 1, &module) == 0, "lib.dll");

  FILE *input = fopen("input.bin", "rb");
  check(input != NULL && fread(x, 1, sizeof x, input) == sizeof x && fread(codes, 1, sizeof codes, input) == sizeof codes
        && fread(scales, 1, sizeof scales, input) == sizeof scales
        && fread(inv_freq, 1, sizeof inv_freq, input) == sizeof inv_freq
        && fread(position, 1, sizeof position, input) == sizeof position, "input.bin");
  int64_t row[2] = {1, 64}, packed[2] = {64, 8}, groups[2] = {64, 2}, half[1] = {16}, one[1] = {1}, table[2] = {1, 16};
  DLTensor linear[4] = {tensor(x, 2, row, kDLFloat, 32), tensor(codes, 2, packed, kDLUInt, 32),
                        tensor(scales, 2, groups, kDLFloat, 16), tensor(y, 2, row, kDLFloat, 32)};
  DLTensor rotary[4] = {tensor(inv_freq, 1, half, kDLFloat, 32), tensor(position, 1, one, kDLInt, 32),
                        tensor(cosine, 2, table, kDLFloat, 32), tensor(sine, 2, table, kDLFloat, 32)};
  run(module, "linear", linear);
  run(module, "rotary", rotary);
  print(y, 64);
  print(cosine, 16);
  print(sine, 16);
  fflush(stdout);
  ExitProcess(0); /* TVM's worker threads are still there */
}
