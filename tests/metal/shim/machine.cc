// Runs a kernel over a grid: every thread of a threadgroup is a fibre, and fibres meet at barriers and shuffles.
//
// Waiting at different places where Metal leaves the outcome undefined is an error. No library is needed but memset.
#include <metal_stdlib>
#undef thread
#undef kernel
#undef buffer

extern "C" void *memset(void *, int, unsigned long);
extern "C" void *memcpy(void *, const void *, unsigned long);
extern "C" void *mmap(void *, unsigned long, int, int, int, long);
extern "C" int TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);

#include "fibres.h"

namespace {

// What a lane gives and gets in an exchange; no bytes: an operation of the whole simdgroup.
struct Lane {
  int kind;
  uint operand, bytes;
  uchar value[16], received[16];
};

Lane lanes_of[MOST];

void (*body)(void **, uint3, uint3);
void **arguments;
uint3 block, extent;

uint3 thread_index(uint i) {
  uint3 at = {i % extent.x, i / extent.x % extent.y, i / extent.x / extent.y};
  return at;
}

[[noreturn]] void fibre_main() {
  body(arguments, block, thread_index(current));
  wait(FINISHED, 0);
  __builtin_trap();
}

uint source_lane(const Lane &f, uint lane) {
  switch (f.kind) {
    case METAL_XOR: return lane ^ f.operand;
    case METAL_INDEX: return f.operand;
    case METAL_UP: return lane - f.operand;
    default: return lane + f.operand;
  }
}

// Serve what the lanes of one simdgroup wait for; true if there was anything.
bool serve(uint first, uint lanes) {
  bool any = false;
  Fibre *group = fibres + first;
  Lane *data = lanes_of + first;
  for (uint lane = 0; lane < lanes; ++lane) {
    if (group[lane].status != EXCHANGE) continue;
    any = true;
    Lane &f = data[lane];
    int line = group[lane].line;
    if (!f.bytes) {
      for (uint other = 0; other < lanes; ++other)
        if (group[other].status != EXCHANGE || group[other].line != line)
          fail("not all lanes of a simdgroup take part in its operation", line);
      continue;
    }
    uint from = source_lane(f, lane);
    if (from >= LANES && f.kind != METAL_XOR)  // beyond either end: no particular value, as good as NaN
      memset(f.received, 0xFF, f.bytes);
    else if (from >= lanes || group[from].status != EXCHANGE || group[from].line != line || !data[from].bytes)
      fail("a lane reads from one that does not take part in the shuffle", line);
    else
      memcpy(f.received, data[from].value, f.bytes);
  }
  for (uint lane = 0; lane < lanes; ++lane)
    if (group[lane].status == EXCHANGE) {
      memcpy(data[lane].value, data[lane].received, data[lane].bytes);
      group[lane].status = READY;
    }
  return any;
}

void run_threadgroup() {
  for (uint i = 0; i < count; ++i) prepare(i, fibre_main);
  run_fibres([] {}, serve, [](uint) { return true; });
}

char message[256];

void append(char *&at, const char *text) {
  while (*text && at < message + sizeof message - 12) *at++ = *text++;
  *at = 0;
}

}  // namespace

extern "C" {

void metal_barrier(int line) { wait(BARRIER, line); }

void metal_exchange(void *value, uint bytes, int kind, uint operand, int line) {
  Lane &f = lanes_of[current];
  f.kind = kind, f.operand = operand, f.bytes = bytes;
  memcpy(f.value, value, bytes);
  wait(EXCHANGE, line);
  memcpy(value, f.value, bytes);
}

uint metal_lane(int line) {
  uint lane = current % LANES;
  lanes_of[current].bytes = 0;
  wait(EXCHANGE, line);
  return lane;
}

// clang's sanitizers call these (-fsanitize-minimal-runtime); the thread ends before it does what was found.
void __ubsan_handle_out_of_bounds_minimal(void) { stop("an index is outside its array"); }
void __ubsan_handle_type_mismatch_minimal(void) { stop("a load or store is not aligned to its type"); }

// Whether threads start from the last: code without the barrier it needs gives another result then.
__attribute__((visibility("default"))) void metal_reverse(int yes) { reversed = yes; }

// Run `kernel` over a grid; its threadgroup memory is all ones (NaN) at the start of every threadgroup. 0, or -1 with
// the error raised through TVM.
int metal_launch(const char *name, void (*kernel)(void **, uint3, uint3), void **args, uint3 grid, uint3 threads,
                 uchar *memory, ulong memory_bytes) {
  body = kernel, arguments = args, extent = threads;
  count = threads.x * threads.y * threads.z;
  fault = nullptr;
  if (!stacks) stacks = (uchar *)mmap(nullptr, MOST * STACK, 3, 0x4022, -1, 0);  // private, anonymous, no reserve
  if (count > MOST || !count) fail("a threadgroup has 1 to 1024 threads", 0);
  for (uint z = 0; z < grid.z; ++z)
    for (uint y = 0; y < grid.y; ++y)
      for (uint x = 0; x < grid.x && !fault; ++x) {
        uint3 at = {x, y, z};
        block = at;
        memset(memory, 0xFF, memory_bytes);
        run_threadgroup();
      }
  if (!fault) return 0;
  char *at = message, digits[12], *digit = digits + 11;
  append(at, name);
  append(at, ": ");
  append(at, fault);
  *digit = 0;
  for (int rest = fault_line; rest; rest /= 10) *--digit = (char)('0' + rest % 10);
  if (fault_line) append(at, " (line "), append(at, digit), append(at, ")");
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", message);
  return -1;
}
}
