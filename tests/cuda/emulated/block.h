// What a block has in the emulator: its threads' pending copies and products, its mbarriers and its shared memory.
// Part of machine.cc.
#pragma once

namespace {

constexpr unsigned FIRST = 1024;     // shared address of static variables
constexpr unsigned LIMIT = 227 << 10;  // of a block's shared memory
constexpr unsigned ARENA = 256 << 10, PIECE = 16;

struct Copy {
  unsigned to, bytes, group;
  const void *from;
};

struct Product {
  int n, add;
  float *d;
  unsigned *a[4];
  unsigned long long tile;
  unsigned group;
};

// What a result's registers will hold.
struct Result {
  float *d;
  std::vector<float> values;
};

struct Thread {
  void (*work)(void **);
  void *operand;
  std::vector<Copy> copies;
  unsigned copy_group;
  std::vector<unsigned> unpublished, own_bells;
  std::vector<Product> products;
  std::vector<Result> results;
  unsigned product_group;
  bool fenced;
  unsigned long issued;  // a number that differs where the sequence of product instructions does
  unsigned bell;
  int parity;
};

struct Bell {
  unsigned arrivals, missing, expected, phase;
  bool published;
  std::vector<Copy> copies;
};

Thread threads[MOST];
std::map<unsigned, Bell> bells;
unsigned char *arena;  // at shared address 0
unsigned dynamic_bytes, dynamic_at;
unsigned short writer[ARENA / PIECE], under_way[ARENA / PIECE];  // thread + 1 that has not published; copies
bool is_static(const unsigned char *p) { return p >= __start_cuda_shared && p < __stop_cuda_shared; }

unsigned static_bytes() { return __stop_cuda_shared - __start_cuda_shared; }

// The memory at a shared address, of `bytes`; none outside of what the block has.
unsigned char *memory_at(unsigned address, unsigned bytes) {
  if (address >= FIRST && address + bytes <= FIRST + static_bytes()) return __start_cuda_shared + (address - FIRST);
  if (dynamic_at && address >= dynamic_at && address + bytes <= dynamic_at + dynamic_bytes) return arena + address;
  stop("an asynchronous access is outside the block's shared memory");
  return nullptr;
}

void start_copy(unsigned to, unsigned bytes) {
  memset(memory_at(to, bytes), 0xFF, bytes);
  for (unsigned i = to / PIECE; i < (to + bytes + PIECE - 1) / PIECE; ++i) ++under_way[i];
}

// who: the thread, if it has to publish what the copy brings.
void finish_copy(const Copy &copy, int who) {
  memcpy(memory_at(copy.to, copy.bytes), copy.from, copy.bytes);
  for (unsigned i = copy.to / PIECE; i < (copy.to + copy.bytes + PIECE - 1) / PIECE; ++i) {
    --under_way[i];
    writer[i] = who + 1;
    if (who >= 0) threads[who].unpublished.push_back(i);
  }
}

}  // namespace
