// Instructions of the PTX ISA as functions: ptx.py makes calls of these out of inline assembly, a mnemonic's dots and
// colons becoming underscores. An instruction or form that is missing here does not compile.
//
// What is asynchronous stays away as long as the instruction set allows: see machine.cc.
#pragma once

struct Global {
  const void *at;
  Global(const void *p) : at(p) {}
  Global(size_t p) : at((const void *)p) {}
  template <class T> void load(T &to) const { to = *(const T *)at; }  // a plain load is checked for alignment
};

extern "C" {
void cuda_copy(unsigned to, const void *from, unsigned bytes);
void cuda_copy_commit();
void cuda_copy_wait(unsigned pending);
void cuda_bell(unsigned bell, unsigned arrivals);
void cuda_bell_expect(unsigned bell, unsigned bytes);
void cuda_bulk_copy(unsigned to, const void *from, unsigned bytes, unsigned bell);
int cuda_bell_rang(unsigned bell, int parity);
void cuda_publish();
void cuda_mma(void **operands);
void cuda_transpose(void **operands);
void cuda_products_fence();
void cuda_product(int n, float *const *d, unsigned *const *a, unsigned long long tile, int add);
void cuda_products_commit();
void cuda_products_wait(unsigned pending);
void cuda_wrong(const char *what);
}

// Starting the next kernel early: kernels run one after the other here.
inline void ptx_griddepcontrol_wait() {}
inline void ptx_griddepcontrol_launch_dependents() {}

inline void ptx_lop3_b32(unsigned &d, unsigned a, unsigned b, unsigned c, unsigned table) {
  d = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
}
inline void ptx_setp_eq_u32(bool &p, unsigned a, unsigned b) { p = a == b; }

inline void ptx_ld_global_u16(unsigned short &to, Global from) { from.load(to); }
inline void ptx_ld_global_f32(float &to, Global from) { from.load(to); }
inline void ptx_ld_global_v4_u32(Refs<unsigned, 4> to, Global from) {
  uint4 v;
  from.load(v);
  *to.at[0] = v.x, *to.at[1] = v.y, *to.at[2] = v.z, *to.at[3] = v.w;
}
inline void ptx_ld_global_L1_no_allocate_v4_u32(Refs<unsigned, 4> to, Global from) { ptx_ld_global_v4_u32(to, from); }

// Warp-level matrix instructions; an operand's registers of all lanes are its fragments.
struct Mma {
  float *d[4];
  unsigned a[4], b[2];
  float c[4];
};
inline void ptx_mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(Refs<float, 4> d, Refs<unsigned, 4> a,
                                                                  Refs<unsigned, 2> b, Refs<float, 4> c) {
  Mma m;
  for (int i = 0; i < 4; ++i) m.d[i] = d.at[i], m.a[i] = *a.at[i], m.c[i] = *c.at[i];
  for (int i = 0; i < 2; ++i) m.b[i] = *b.at[i];
  cuda_warp(cuda_mma, &m, 0);
}
inline void ptx_movmatrix_sync_aligned_m8n8_trans_b16(unsigned &to, unsigned from) {
  to = from;
  cuda_warp(cuda_transpose, &to, 0);
}

// Asynchronous copies.
inline void ptx_cp_async_ca_shared_global(unsigned to, Global from, int bytes) {
  if (bytes != 4 && bytes != 8 && bytes != 16) cuda_wrong("cp.async.ca copies 4, 8 or 16 bytes");
  cuda_copy(to, from.at, bytes);
}
inline void ptx_cp_async_cg_shared_global(unsigned to, Global from, int bytes) {
  if (bytes != 16) cuda_wrong("cp.async.cg copies 16 bytes");
  cuda_copy(to, from.at, bytes);
}
inline void ptx_cp_async_commit_group() { cuda_copy_commit(); }
inline void ptx_cp_async_wait_group(unsigned pending) { cuda_copy_wait(pending); }

inline void ptx_mbarrier_init_shared_cta_b64(unsigned bell, unsigned arrivals) { cuda_bell(bell, arrivals); }
inline void ptx_mbarrier_arrive_expect_tx_shared_cta_b64(unsigned bell, unsigned bytes) { cuda_bell_expect(bell, bytes); }
inline void ptx_cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(unsigned to, Global from, unsigned bytes,
                                                                               unsigned bell) {
  cuda_bulk_copy(to, from.at, bytes, bell);
}
inline void ptx_mbarrier_try_wait_parity_shared_cta_b64(bool &there, unsigned bell, int parity) {
  there = cuda_bell_rang(bell, parity);
}
inline void ptx_fence_proxy_async_shared_cta() { cuda_publish(); }

// Warpgroup-level matrix instructions. Registers are taken by reference, because they are read later.
inline void ptx_wgmma_fence_sync_aligned() { cuda_products_fence(); }
inline void ptx_wgmma_commit_group_sync_aligned() { cuda_products_commit(); }
inline void ptx_wgmma_wait_group_sync_aligned(unsigned pending) { cuda_products_wait(pending); }
#define PTX_WGMMA(n)                                                                                                   \
  inline void ptx_wgmma_mma_async_sync_aligned_m64n##n##k16_f32_f16_f16(                                               \
      Refs<float, n / 2> d, Refs<unsigned, 4> a, unsigned long long tile, bool add, int scale_a, int scale_b, int trans_b) { \
    if (scale_a != 1 || scale_b != 1 || trans_b != 0) cuda_wrong("a form of wgmma that the emulator does not have");   \
    cuda_product(n, d.at, a.at, tile, add);                                                                            \
  }
PTX_WGMMA(64)
PTX_WGMMA(128)
