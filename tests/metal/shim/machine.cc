// Runs a kernel over a grid: every thread of a threadgroup is a fibre, and fibres meet at barriers and shuffles.
//
// A fibre runs until it waits. Once all wait, each simdgroup's exchanges are served, and only when none is left may
// everybody pass a barrier. Waiting at different places where Metal leaves the outcome undefined is an error.
// x86-64, System V calling convention; no library is needed but memset.
#include <metal_stdlib>
#undef thread
#undef kernel
#undef buffer

extern "C" void *memset(void *, int, unsigned long);
extern "C" void *memcpy(void *, const void *, unsigned long);
extern "C" void *mmap(void *, unsigned long, int, int, int, long);
extern "C" int TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);

namespace {

enum Status { READY, EXCHANGE, BARRIER, FINISHED };
constexpr uint LANES = 32, MOST = 1024;
constexpr unsigned long STACK = 256 << 10;

struct Fibre {
  void *stack_pointer;
  Status status;
  int line, kind;
  uint operand, bytes;
  uchar value[16], received[16];
};

Fibre fibres[MOST];
uchar *stacks;
void *scheduler;
uint current, count;
bool reversed;
const char *fault;
int fault_line;

void (*body)(void **, uint3, uint3);
void **arguments;
uint3 block, extent;

// Save the callee-saved registers and the stack pointer in *from, continue on `to`.
__attribute__((naked, noinline)) void switch_stack(void **from, void *to) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

void fail(const char *what, int line) {
  if (!fault) fault = what, fault_line = line;
}

void wait(Status status, int line) {
  fibres[current].status = status;
  fibres[current].line = line;
  switch_stack(&fibres[current].stack_pointer, scheduler);
}

void stop(const char *what) {
  fail(what, 0);
  wait(FINISHED, 0);
}

uint3 thread_index(uint i) {
  uint3 at = {i % extent.x, i / extent.x % extent.y, i / extent.x / extent.y};
  return at;
}

[[noreturn]] void fibre_main() {
  body(arguments, block, thread_index(current));
  wait(FINISHED, 0);
  __builtin_trap();
}

void prepare(uint i) {
  // The first switch pops six registers and returns into fibre_main with the stack as after a call.
  void **top = (void **)(stacks + (i + 1) * STACK) - 2;
  top[0] = (void *)&fibre_main;
  top[1] = nullptr;
  fibres[i].stack_pointer = top - 6;
  fibres[i].status = READY;
}

uint source_lane(const Fibre &f, uint lane) {
  switch (f.kind) {
    case METAL_XOR: return lane ^ f.operand;
    case METAL_INDEX: return f.operand;
    case METAL_UP: return lane - f.operand;
    default: return lane + f.operand;
  }
}

// Serve what the lanes of one simdgroup wait for; true if there was anything.
bool serve(uint first) {
  bool any = false;
  uint lanes = count - first < LANES ? count - first : LANES;
  Fibre *group = fibres + first;
  for (uint lane = 0; lane < lanes; ++lane) {
    Fibre &f = group[lane];
    if (f.status != EXCHANGE) continue;
    any = true;
    if (!f.bytes) {  // an operation of the whole simdgroup
      for (uint other = 0; other < lanes; ++other)
        if (group[other].status != EXCHANGE || group[other].line != f.line)
          fail("not all lanes of a simdgroup take part in its operation", f.line);
      continue;
    }
    uint from = source_lane(f, lane);
    if (from >= LANES && f.kind != METAL_XOR)  // beyond either end: no particular value, as good as NaN
      memset(f.received, 0xFF, f.bytes);
    else if (from >= lanes || group[from].status != EXCHANGE || group[from].line != f.line || !group[from].bytes)
      fail("a lane reads from one that does not take part in the shuffle", f.line);
    else
      memcpy(f.received, group[from].value, f.bytes);
  }
  for (uint lane = 0; lane < lanes; ++lane)
    if (group[lane].status == EXCHANGE) {
      memcpy(group[lane].value, group[lane].received, group[lane].bytes);
      group[lane].status = READY;
    }
  return any;
}

void run_threadgroup() {
  for (uint i = 0; i < count; ++i) prepare(i);
  for (;;) {
    for (uint i = 0; i < count; ++i) {
      current = reversed ? count - 1 - i : i;
      if (fibres[current].status == READY) switch_stack(&scheduler, fibres[current].stack_pointer);
    }
    bool any = false;
    for (uint first = 0; first < count; first += LANES) any |= serve(first);
    if (fault) return;
    if (any) continue;
    uint at_barrier = 0, finished = 0;
    for (uint i = 0; i < count; ++i) {
      at_barrier += fibres[i].status == BARRIER && fibres[i].line == fibres[0].line;
      finished += fibres[i].status == FINISHED;
    }
    if (finished == count) return;
    if (at_barrier != count) return fail("not all threads of a threadgroup reach the barrier", fibres[0].line);
    for (uint i = 0; i < count; ++i) fibres[i].status = READY;
  }
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
  Fibre &f = fibres[current];
  f.kind = kind, f.operand = operand, f.bytes = bytes;
  memcpy(f.value, value, bytes);
  wait(EXCHANGE, line);
  memcpy(value, f.value, bytes);
}

uint metal_lane(int line) {
  uint lane = current % LANES;
  fibres[current].bytes = 0;
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
