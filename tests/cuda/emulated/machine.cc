// Runs a CUDA kernel over a grid: every thread of a block is a fibre (fibres.h), warps run as far as they can get.
//
// What is asynchronous happens as late as the PTX ISA allows, and what nobody may rely on until then is NaN:
//   cp.async            its destination from the copy on, until the thread waits for the copy's group;
//   cp.async.bulk       its destination from the copy on, until somebody waits for its mbarrier;
//   wgmma               its result registers, until the warp waits for the group. Its operands, registers and shared
//                       memory, are read only then, or, with threads in reverse, at once.
// Errors are reported, too: products that read what a copy is still under way to, or what copies through the generic
// proxy brought and the thread has not published (fence.proxy.async); instructions that not all lanes or warps take
// part in; accesses outside of buffers, which the caller puts between pages that nobody may touch.
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>
#include <vector>

#include "cuda.h"
#include "fibres.h"

extern "C" int TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
extern "C" unsigned char __start_cuda_shared[] __attribute__((weak)), __stop_cuda_shared[] __attribute__((weak));

#include "block.h"

uint3 threadIdx, blockIdx;

namespace {

int barrier_or;

void (*body)(void **);
void **arguments;
uint3 extent;
volatile bool in_fibre;
char message[256];

float half_at(const void *p) {
  _Float16 h;
  memcpy(&h, p, sizeof h);
  return (float)h;
}

float half_of(unsigned pair, int which) {
  unsigned short bits = pair >> 16 * which;
  return half_at(&bits);
}

// B of a product: 16 x n. PTX ISA, "Matrix descriptor" and "Strides": rows of 128 bytes, eights of rows `stride` apart,
// 16-byte pieces exchanged by bits 7 to 9 of the address.
bool read_tile(const Product &p, float (*b)[128]) {
  unsigned start = (p.tile & 0x3FFF) << 4, stride = (p.tile >> 32 & 0x3FFF) << 4;
  if (p.tile >> 62 != 1 || p.tile >> 49 & 7) return fail("a matrix descriptor that the emulator does not have", 0), false;
  for (int row = 0; row < p.n; ++row)
    for (int piece = 0; piece < 2; ++piece) {
      unsigned at = start + row / 8 * stride + row % 8 * 128 + piece * 16;
      at ^= (at >> 7 & 7) << 4;
      if (!dynamic_at || at < dynamic_at || at + 16 > dynamic_at + dynamic_bytes)
        return fail("a product reads outside the block's dynamic shared memory", 0), false;
      if (under_way[at / PIECE]) return fail("a product reads what a copy is still under way to", 0), false;
      if (writer[at / PIECE]) return fail("a product reads what its writer has not published", 0), false;
      for (int k = 0; k < 8; ++k) b[piece * 8 + k][row] = half_at(arena + at + 2 * k);
    }
  return true;
}

Result &result_of(Thread &t, float *d) {
  for (Result &r : t.results)
    if (r.d == d) return r;
  __builtin_trap();
}

// Product `which` of every lane of the current warp: each holds the rows lane / 4 and that + 8 of 16.
void multiply(unsigned first, unsigned which) {
  Product &p = threads[first].products[which];
  static float a[16][16], b[16][128], d[16][128];
  if (!read_tile(p, b)) return;
  for (unsigned lane = 0; lane < LANES; ++lane) {
    Thread &t = threads[first + lane];
    if (t.products.size() <= which || t.products[which].n != p.n || t.products[which].tile != p.tile)
      return fail("the lanes of a warp differ in their product", 0);
    Product &own = t.products[which];
    unsigned row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 2; ++i)
      for (int high = 0; high < 2; ++high)
        for (int j = 0; j < 2; ++j) a[row + 8 * i][column + 8 * high + j] = half_of(*own.a[2 * high + i], j);
    const float *held = result_of(t, own.d).values.data();
    for (int i = 0; i < p.n / 2; ++i) d[row + i / 2 % 2 * 8][i / 4 * 8 + column + i % 2] = p.add ? held[i] : 0;
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < p.n; ++column) d[row][column] += a[row][k] * b[k][column];
  for (unsigned lane = 0; lane < LANES; ++lane) {
    Thread &t = threads[first + lane];
    float *held = result_of(t, t.products[which].d).values.data();
    for (int i = 0; i < p.n / 2; ++i) held[i] = d[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2];
  }
}

unsigned warp_of_current() { return current / LANES * LANES; }

// In reverse: the product just issued.
void multiply_now(void **) {
  unsigned first = warp_of_current();
  multiply(first, threads[first].products.size() - 1);
}

void finish_products(void **operands) {
  unsigned first = warp_of_current(), pending = *(unsigned *)operands[0], done = 0;
  Thread &leader = threads[first];
  for (; done < leader.products.size() && leader.products[done].group + pending < leader.product_group; ++done)
    if (!reversed && !fault) multiply(first, done);
  if (fault) return;
  for (unsigned lane = 0; lane < LANES; ++lane) {
    Thread &t = threads[first + lane];
    t.products = std::vector<Product>(t.products.begin() + done, t.products.end());
    std::vector<Result> left;
    for (Result &r : t.results) {
      bool used = false;
      for (Product &p : t.products) used |= p.d == r.d;
      if (used)
        left.push_back(std::move(r));
      else
        memcpy(r.d, r.values.data(), r.values.size() * sizeof(float));
    }
    t.results = std::move(left);
  }
}

void note(unsigned long what) { threads[current].issued = (threads[current].issued ^ what) * 0x9E3779B97F4A7C15ul + 1; }

bool serve(unsigned first, unsigned lanes) {
  in_fibre = false;
  void *operands[LANES];
  bool any = false, all = lanes == LANES;
  for (unsigned i = 0; i < lanes; ++i) {
    Fibre &f = fibres[first + i];
    any |= f.status == EXCHANGE;
    all &= f.status == EXCHANGE && f.line == fibres[first].line && threads[first + i].work == threads[first].work;
    operands[i] = threads[first + i].operand;
  }
  if (!any) return false;
  if (!all) return fail("not all lanes of a warp take part in its instruction", fibres[first].line), true;
  current = first;
  threads[first].work(operands);
  for (unsigned i = 0; i < lanes; ++i) fibres[first + i].status = READY;
  return true;
}

void resume() {
  threadIdx = {current % extent.x, current / extent.x % extent.y, current / extent.x / extent.y};
  in_fibre = true;
}

bool ready_to_ring(const Bell &b) {
  unsigned sum = 0;
  for (const Copy &copy : b.copies) sum += copy.bytes;
  return !b.missing && sum == b.expected;
}

bool there(unsigned i) {
  const Bell &b = bells[threads[i].bell];
  return (b.phase & 1) != (unsigned)threads[i].parity || ready_to_ring(b);
}

void fibre_main() {
  body(arguments);
  if (!threads[current].products.empty()) fail("a thread ends with products under way", 0);
  wait(FINISHED, 0);
  __builtin_trap();
}

void run_block() {
  memset(arena, 0xFF, ARENA);
  memset(__start_cuda_shared, 0xFF, static_bytes());
  memset(writer, 0, sizeof writer);
  memset(under_way, 0, sizeof under_way);
  bells.clear();
  dynamic_at = 0;
  for (unsigned i = 0; i < count; ++i) {
    Thread &t = threads[i];
    t.copies.clear(), t.unpublished.clear(), t.own_bells.clear(), t.products.clear(), t.results.clear();
    t.copy_group = t.product_group = 0, t.fenced = false, t.issued = 0;
    prepare(i, fibre_main);
  }
  run_fibres(resume, serve, there);
  in_fibre = false;
  if (fault) return;
  for (unsigned i = 0; i < count; ++i)
    if (threads[i].issued != threads[i / 128 * 128].issued || (threads[i].issued && count % 128))
      return fail("the warps of a warpgroup differ in their products", 0);
  for (unsigned i = 0; i < ARENA; ++i)
    if (arena[i] != 0xFF && (i < dynamic_at || i >= dynamic_at + dynamic_bytes))
      return fail("a thread wrote outside the block's dynamic shared memory", 0);
}

void broken_memory() { stop("an access is outside its buffer"); }
void broken_rule() { stop("an index is outside its array, or an access is not aligned to its type"); }

// The thread that did it goes on in broken_*, which does not return.
void on_signal(int number, siginfo_t *, void *context) {
  if (!in_fibre) {
    signal(number, SIG_DFL);
    return;
  }
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  registers[REG_RIP] = (greg_t)(number == SIGILL ? broken_rule : broken_memory);
  registers[REG_RSP] = ((registers[REG_RSP] - 512) & ~15l) - 8;
}

}  // namespace

void cuda_partial_warp(int line) { stop("an exchange is not of all lanes of a warp", line); }

extern "C" {

void cuda_wrong(const char *what) { stop(what); }

void cuda_barrier(int line) { wait(BARRIER, line); }

int cuda_barrier_or(int value, int line) {
  barrier_or |= value != 0;
  wait(BARRIER, line);
  int result = barrier_or;
  wait(BARRIER, line);
  barrier_or = 0;
  wait(BARRIER, line);
  return result;
}

unsigned char *cuda_dynamic(unsigned alignment) {
  unsigned at = (FIRST + static_bytes() + alignment - 1) / alignment * alignment;
  dynamic_at = at / alignment % 2 ? at : at + alignment;  // aligned to no more than was asked for
  if (dynamic_at + dynamic_bytes > FIRST + LIMIT) stop("the block's shared memory is larger than a multiprocessor's");
  return arena + dynamic_at;
}

unsigned cuda_shared_address(const void *pointer) {
  const unsigned char *p = (const unsigned char *)pointer;
  if (is_static(p)) return FIRST + (p - __start_cuda_shared);
  if (p >= arena && p < arena + ARENA) return p - arena;
  stop("a pointer is not one into shared memory");
  return 0;
}

void cuda_warp(void (*work)(void **), void *operand, int line) {
  threads[current].work = work, threads[current].operand = operand;
  wait(EXCHANGE, line);
}

void cuda_mma(void **operands) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    Mma &m = *(Mma *)operands[lane];
    int row = lane / 4, column = lane % 4 * 2;
    for (int j = 0; j < 2; ++j) {
      for (int i = 0; i < 4; ++i) a[row + i % 2 * 8][column + i / 2 * 8 + j] = half_of(m.a[i], j);
      for (int i = 0; i < 2; ++i) b[column + i * 8 + j][row] = half_of(m.b[i], j);
    }
    for (int i = 0; i < 4; ++i) d[row + i / 2 * 8][column + i % 2] = m.c[i];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      *((Mma *)operands[lane])->d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

void cuda_transpose(void **operands) {
  unsigned short matrix[8][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int j = 0; j < 2; ++j) matrix[lane % 4 * 2 + j][lane / 4] = *(unsigned *)operands[lane] >> 16 * j;
  for (int lane = 0; lane < 32; ++lane) memcpy(operands[lane], &matrix[lane / 4][lane % 4 * 2], 4);
}

void cuda_copy(unsigned to, const void *from, unsigned bytes) {
  if (to % bytes || (size_t)from % bytes) stop("an asynchronous copy is not aligned");
  start_copy(to, bytes);
  threads[current].copies.push_back({to, bytes, threads[current].copy_group, from});
}

void cuda_copy_commit() { ++threads[current].copy_group; }

void cuda_copy_wait(unsigned pending) {
  Thread &t = threads[current];
  unsigned done = 0;
  for (; done < t.copies.size() && t.copies[done].group + pending < t.copy_group; ++done) finish_copy(t.copies[done], current);
  t.copies.erase(t.copies.begin(), t.copies.begin() + done);
}

void cuda_publish() {
  Thread &t = threads[current];
  for (unsigned i : t.unpublished)
    if (writer[i] == current + 1) writer[i] = 0;
  t.unpublished.clear();
  for (unsigned bell : t.own_bells) bells[bell].published = true;
  t.own_bells.clear();
}

void cuda_bell(unsigned at, unsigned arrivals) {
  memory_at(at, 8);
  if (at % 8) stop("an mbarrier is not aligned");
  bells[at] = {arrivals, arrivals, 0, 0, false, {}};
  threads[current].own_bells.push_back(at);
}

void cuda_bell_expect(unsigned at, unsigned bytes) {
  if (!bells.count(at)) stop("this is no mbarrier");
  Bell &b = bells[at];
  if (!b.missing) stop("an mbarrier's phase has more arrivals than it was made for");
  --b.missing, b.expected += bytes;
}

void cuda_bulk_copy(unsigned to, const void *from, unsigned bytes, unsigned at) {
  if (!bells.count(at)) stop("this is no mbarrier");
  if (!bells[at].published) stop("a copy uses an mbarrier that has not been published");
  if (to % 16 || (size_t)from % 16 || bytes % 16) stop("a bulk copy is not aligned");
  start_copy(to, bytes);
  bells[at].copies.push_back({to, bytes, 0, from});
}

int cuda_bell_rang(unsigned at, int parity) {
  if (!bells.count(at)) stop("this is no mbarrier");
  Bell &b = bells[at];
  if ((b.phase & 1) != (unsigned)parity) return 1;
  if (!ready_to_ring(b)) {
    threads[current].bell = at, threads[current].parity = parity;
    wait(POLL, 0);
    return 0;
  }
  for (const Copy &copy : b.copies) finish_copy(copy, -1);
  b.copies.clear();
  b.missing = b.arrivals, b.expected = 0, ++b.phase;
  return 1;
}

void cuda_products_fence() {
  note(1);
  threads[current].fenced = true;
}

void cuda_product(int n, float *const *d, unsigned *const *a, unsigned long long tile, int add) {
  Thread &t = threads[current];
  if (!t.fenced) stop("wgmma.fence is missing");
  for (int i = 0; i < n / 2; ++i)
    if (d[i] != d[0] + i) stop("a product's result registers are not one array");
  bool known = false;
  for (Result &r : t.results) known |= r.d == d[0];
  if (!known) {
    t.results.push_back({d[0], std::vector<float>(d[0], d[0] + n / 2)});
    memset(d[0], 0xFF, n / 2 * sizeof(float));
  }
  t.products.push_back({n, add, d[0], {a[0], a[1], a[2], a[3]}, tile, t.product_group});
  note(tile), note(n);
  if (reversed) cuda_warp(multiply_now, nullptr, 0);
}

void cuda_products_commit() {
  ++threads[current].product_group;
  threads[current].fenced = false;
  note(2);
}

void cuda_products_wait(unsigned pending) {
  note(3 + pending);
  cuda_warp(finish_products, &pending, 0);
}

// Whether threads and blocks start from the last, and products read what they need at once.
__attribute__((visibility("default"))) void cuda_reverse(int yes) { reversed = yes; }

// Run `kernel` over a grid; 0, or -1 with the error raised through TVM.
int cuda_launch(const char *name, void (*kernel)(void **), void **args, uint3 grid, uint3 block, unsigned dynamic) {
  body = kernel, arguments = args, extent = block, dynamic_bytes = dynamic;
  count = block.x * block.y * block.z;
  fault = nullptr;
  auto space = [](unsigned long bytes) { return (unsigned char *)mmap(nullptr, bytes, 3, 0x4022, -1, 0); };
  if (!stacks) stacks = space(MOST * STACK), arena = space(ARENA);
  if (count > MOST || !count) fail("a block has 1 to 1024 threads", 0);
  struct sigaction action = {}, before[3];
  int signals[3] = {SIGSEGV, SIGBUS, SIGILL};
  action.sa_sigaction = on_signal, action.sa_flags = SA_SIGINFO | SA_NODEFER;
  for (int i = 0; i < 3; ++i) sigaction(signals[i], &action, before + i);
  unsigned blocks = grid.x * grid.y * grid.z;
  for (unsigned i = 0; i < blocks && !fault; ++i) {
    unsigned at = reversed ? blocks - 1 - i : i;
    blockIdx = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
    run_block();
  }
  for (int i = 0; i < 3; ++i) sigaction(signals[i], before + i, nullptr);
  if (!fault) return 0;
  int size = snprintf(message, sizeof message, "%s: %s", name, fault);
  if (fault_line) snprintf(message + size, sizeof message - size, " (line %d)", fault_line);
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", message);
  return -1;
}
}
