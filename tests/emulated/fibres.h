// Threads of a block as fibres that take turns: what the emulators of Metal's and of CUDA's kernels share.
//
// A fibre runs until it waits, and a group of LANES fibres as far as it can get before the next group has its turn: what
// a group misses because nothing made it wait for the others, it misses here. Only when no group gets any further, and
// everybody waits at the same barrier, may all pass it. Waiting at different places is an error.
// x86-64, System V calling convention; needs no library. For one source file of a program.
#pragma once

namespace {

enum Status { READY, EXCHANGE, POLL, BARRIER, FINISHED };
constexpr unsigned LANES = 32, MOST = 1024;
constexpr unsigned long STACK = 256 << 10;

// EXCHANGE: until the machine has served the group; POLL: until what is asked for is so.
struct Fibre {
  void *stack_pointer;
  Status status;
  int line;
};

Fibre fibres[MOST];
unsigned char *stacks;  // MOST of them, of STACK bytes
void *scheduler;
unsigned current, count;
bool reversed;  // whether threads start from the last
const char *fault;
int fault_line;

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

// The thread goes no further.
void stop(const char *what, int line = 0) {
  fail(what, line);
  wait(FINISHED, line);
}

// Make fibre i ready to run `entry`, which must not return.
void prepare(unsigned i, void (*entry)()) {
  // The first switch pops six registers and returns into `entry` with the stack as after a call.
  void **top = (void **)(stacks + (i + 1) * STACK) - 2;
  top[0] = (void *)entry;
  top[1] = nullptr;
  fibres[i].stack_pointer = top - 6;
  fibres[i].status = READY;
}

// Run a group until it gets no further. serve(first, lanes): give its lanes what they wait for; whether there was any.
template <class Resume, class Serve> void run_group(unsigned first, Resume resume, Serve serve) {
  unsigned lanes = count - first < LANES ? count - first : LANES;
  do {
    for (unsigned i = 0; i < lanes; ++i) {
      current = first + (reversed ? lanes - 1 - i : i);
      if (fibres[current].status == READY) resume(), switch_stack(&scheduler, fibres[current].stack_pointer);
    }
  } while (serve(first, lanes) && !fault);
}

// Run `count` prepared fibres to their end, or until `fault` is set. resume(): called before fibre `current` goes on;
// there(i): whether what fibre i polls for is so.
template <class Resume, class Serve, class There> void run_fibres(Resume resume, Serve serve, There there) {
  for (;;) {
    unsigned groups = (count + LANES - 1) / LANES;
    for (unsigned i = 0; i < groups && !fault; ++i) run_group((reversed ? groups - 1 - i : i) * LANES, resume, serve);
    if (fault) return;
    unsigned at_barrier = 0, finished = 0, polling = 0, ready = 0;
    for (unsigned i = 0; i < count; ++i) {
      Fibre &f = fibres[i];
      at_barrier += f.status == BARRIER && f.line == fibres[0].line;
      finished += f.status == FINISHED;
      polling += f.status == POLL;
      if (f.status == POLL && there(i)) f.status = READY;
      ready += f.status == READY;
    }
    if (finished == count) return;
    if (ready) continue;
    if (polling) return fail("threads wait for what nobody has started", 0);
    if (at_barrier != count) return fail("not all threads of a threadgroup reach the barrier", fibres[0].line);
    for (unsigned i = 0; i < count; ++i) fibres[i].status = READY;
  }
}

}  // namespace
