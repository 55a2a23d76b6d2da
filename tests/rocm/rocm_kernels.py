"""TensorIR kernels for the emulator's tests: the shapes of LLM inference, small. PrimFuncs with bound threads."""

from tvm import tirx
from tvm.script import tirx as T


@T.prim_func(s_tir=True)
def vector_add(a: T.Buffer((1000,), "float32"), b: T.Buffer((1000,), "float32"), c: T.Buffer((1000,), "float32")):
    T.func_attr({"tirx.noalias": True, "global_symbol": "vector_add"})
    for bx in T.thread_binding(8, thread="blockIdx.x"):
        for tx in T.thread_binding(128, thread="threadIdx.x"):
            with T.sblock("b"):
                T.reads(a[0:1000], b[0:1000])
                T.writes(c[0:1000])
                if bx * 128 + tx < 1000:
                    c[bx * 128 + tx] = a[bx * 128 + tx] + b[bx * 128 + tx]


@T.prim_func(s_tir=True)
def add_past_the_end(a: T.Buffer((1000,), "float32"), c: T.Buffer((1000,), "float32")):
    """vector_add without its guard: threads 1000 to 1023 read and write outside."""
    T.func_attr({"tirx.noalias": True, "global_symbol": "add_past_the_end"})
    for bx in T.thread_binding(8, thread="blockIdx.x"):
        for tx in T.thread_binding(128, thread="threadIdx.x"):
            with T.sblock("b"):
                T.reads(a[0:1000])
                T.writes(c[0:1000])
                c[bx * 128 + tx] = a[bx * 128 + tx] + T.float32(1)


def gemv(rows: int, columns: int):
    """y = W x in float16 with float32 sums; 128 threads per row, tree reduction in LDS."""

    @T.prim_func(s_tir=True)
    def gemv(
        W: T.Buffer((rows, columns), "float16"), x: T.Buffer((columns,), "float16"), y: T.Buffer((rows,), "float16")
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "gemv"})
        for bx in T.thread_binding(rows, thread="blockIdx.x"):
            for tx in T.thread_binding(128, thread="threadIdx.x"):
                with T.sblock("b"):
                    T.reads(W[0:rows, 0:columns], x[0:columns])
                    T.writes(y[0:rows])
                    s = T.sblock_alloc_buffer((128,), "float32", scope="shared")
                    s[tx] = T.float32(0)
                    for k in T.serial(columns // 128):
                        s[tx] += T.Cast("float32", W[bx, k * 128 + tx]) * T.Cast("float32", x[k * 128 + tx])
                    T.tvm_storage_sync("shared")
                    for i in T.unroll(7):
                        if tx < T.shift_right(64, i):
                            s[tx] = s[tx] + s[tx + T.shift_right(64, i)]
                        T.tvm_storage_sync("shared")
                    if tx == 0:
                        y[bx] = T.Cast("float16", s[0])

    return gemv


def q4_gemv(rows: int, columns: int):
    """y = dequantised(W) x: 4-bit codes, 8 to a word in order, zero point 7, fp16 scale per 32; a wave per row and
    128-bit loads of 32 codes per lane, reduced through lane shuffles."""
    words, groups = columns // 8, columns // 32

    @T.prim_func(s_tir=True)
    def q4_gemv(
        W: T.Buffer((rows, words), "uint32"), S: T.Buffer((rows, groups), "float16"),
        x: T.Buffer((columns,), "float16"), y: T.Buffer((rows,), "float16"),
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "global_symbol": "q4_gemv"})
        for bx in T.thread_binding(rows // 4, thread="blockIdx.x"):
            for ty in T.thread_binding(4, thread="threadIdx.y"):
                for tx in T.thread_binding(32, thread="threadIdx.x"):
                    with T.sblock("b"):
                        T.reads(W[0:rows, 0:words], S[0:rows, 0:groups], x[0:columns])
                        T.writes(y[0:rows])
                        acc = T.sblock_alloc_buffer((1,), "float32", scope="local")
                        w = T.sblock_alloc_buffer((4,), "uint32", scope="local")
                        v = T.sblock_alloc_buffer((8,), "float16", scope="local")
                        acc[0] = T.float32(0)
                        for k in T.serial(columns // 1024):
                            for j in T.vectorized(4):
                                w[j] = W[bx * 4 + ty, k * 128 + tx * 4 + j]
                            for i in T.unroll(4):
                                for j in T.vectorized(8):
                                    v[j] = x[k * 1024 + tx * 32 + i * 8 + j]
                                for j in T.unroll(8):
                                    code = T.bitwise_and(T.shift_right(w[i], T.Cast("uint32", j * 4)), T.uint32(15))
                                    acc[0] += (
                                        T.Cast("float32", T.Cast("int32", code) - 7)
                                        * T.Cast("float32", S[bx * 4 + ty, k * 32 + tx])
                                        * T.Cast("float32", v[j])
                                    )
                        for s in T.unroll(5):
                            acc[0] += T.tvm_warp_shuffle_down(T.uint32(0), acc[0], T.shift_right(16, s), 32, 32)
                        if tx == 0:
                            y[bx * 4 + ty] = T.Cast("float16", acc[0])

    return q4_gemv


def rms_norm(rows: int, columns: int):
    """y = x / sqrt(mean(x²) + 1e-5) * g, 256 threads per row."""

    @T.prim_func(s_tir=True)
    def rms_norm(
        x: T.Buffer((rows, columns), "float16"), g: T.Buffer((columns,), "float16"),
        y: T.Buffer((rows, columns), "float16"),
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "global_symbol": "rms_norm"})
        for bx in T.thread_binding(rows, thread="blockIdx.x"):
            for tx in T.thread_binding(256, thread="threadIdx.x"):
                with T.sblock("b"):
                    T.reads(x[0:rows, 0:columns], g[0:columns])
                    T.writes(y[0:rows, 0:columns])
                    part = T.sblock_alloc_buffer((256,), "float32", scope="shared")
                    acc = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    acc[0] = T.float32(0)
                    for k in T.serial(columns // 256):
                        acc[0] += T.Cast("float32", x[bx, k * 256 + tx]) * T.Cast("float32", x[bx, k * 256 + tx])
                    part[tx] = acc[0]
                    T.tvm_storage_sync("shared")
                    for i in T.unroll(8):
                        if tx < T.shift_right(128, i):
                            part[tx] = part[tx] + part[tx + T.shift_right(128, i)]
                        T.tvm_storage_sync("shared")
                    for k in T.serial(columns // 256):
                        y[bx, k * 256 + tx] = T.Cast(
                            "float16",
                            T.Cast("float32", x[bx, k * 256 + tx])
                            * tirx.rsqrt(part[0] * T.float32(1.0 / columns) + T.float32(1e-5))
                            * T.Cast("float32", g[k * 256 + tx]),
                        )

    return rms_norm


def softmax(rows: int, columns: int):
    """Row softmax in float32, a wave of 32 lanes per row, shuffles for maximum and sum."""

    @T.prim_func(s_tir=True)
    def softmax(x: T.Buffer((rows, columns), "float32"), y: T.Buffer((rows, columns), "float32")):
        T.func_attr({"tirx.noalias": True, "global_symbol": "softmax"})
        for bx in T.thread_binding(rows, thread="blockIdx.x"):
            for tx in T.thread_binding(32, thread="threadIdx.x"):
                with T.sblock("b"):
                    T.reads(x[0:rows, 0:columns])
                    T.writes(y[0:rows, 0:columns])
                    top = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    top[0] = T.float32(-3.4e38)
                    for k in T.serial((columns + 31) // 32):
                        if k * 32 + tx < columns:
                            top[0] = T.max(top[0], x[bx, k * 32 + tx])
                    for s in T.unroll(5):
                        top[0] = T.max(
                            top[0], T.tvm_warp_shuffle_down(T.uint32(0), top[0], T.shift_right(16, s), 32, 32)
                        )
                    top[0] = T.tvm_warp_shuffle(T.uint32(0), top[0], 0, 32, 32)
                    total[0] = T.float32(0)
                    for k in T.serial((columns + 31) // 32):
                        if k * 32 + tx < columns:
                            total[0] += T.exp(x[bx, k * 32 + tx] - top[0])
                    for s in T.unroll(5):
                        total[0] += T.tvm_warp_shuffle_down(T.uint32(0), total[0], T.shift_right(16, s), 32, 32)
                    total[0] = T.tvm_warp_shuffle(T.uint32(0), total[0], 0, 32, 32)
                    for k in T.serial((columns + 31) // 32):
                        if k * 32 + tx < columns:
                            y[bx, k * 32 + tx] = T.exp(x[bx, k * 32 + tx] - top[0]) / total[0]

    return softmax


def gemm(m: int, n: int, k: int):
    """C = A B^T in float16 with float32 sums; 16x16 threads, 32x32 tiles staged in LDS, 2x2 results per thread."""

    @T.prim_func(s_tir=True)
    def gemm(A: T.Buffer((m, k), "float16"), B: T.Buffer((n, k), "float16"), C: T.Buffer((m, n), "float32")):
        T.func_attr({"tirx.noalias": True, "global_symbol": "gemm"})
        for by in T.thread_binding(m // 32, thread="blockIdx.y"):
            for bx in T.thread_binding(n // 32, thread="blockIdx.x"):
                for ty in T.thread_binding(16, thread="threadIdx.y"):
                    for tx in T.thread_binding(16, thread="threadIdx.x"):
                        with T.sblock("b"):
                            T.reads(A[0:m, 0:k], B[0:n, 0:k])
                            T.writes(C[0:m, 0:n])
                            sa = T.sblock_alloc_buffer((32, 17), "float32", scope="shared")
                            sb = T.sblock_alloc_buffer((32, 17), "float32", scope="shared")
                            acc = T.sblock_alloc_buffer((2, 2), "float32", scope="local")
                            for i in T.unroll(2):
                                for j in T.unroll(2):
                                    acc[i, j] = T.float32(0)
                            for step in T.serial(k // 16):
                                T.tvm_storage_sync("shared")
                                for i in T.unroll(2):
                                    sa[i * 16 + ty, tx] = T.Cast("float32", A[by * 32 + i * 16 + ty, step * 16 + tx])
                                    sb[i * 16 + ty, tx] = T.Cast("float32", B[bx * 32 + i * 16 + ty, step * 16 + tx])
                                T.tvm_storage_sync("shared")
                                for kk in T.serial(16):
                                    for i in T.unroll(2):
                                        for j in T.unroll(2):
                                            acc[i, j] += sa[i * 16 + ty, kk] * sb[j * 16 + tx, kk]
                            for i in T.unroll(2):
                                for j in T.unroll(2):
                                    C[by * 32 + i * 16 + ty, bx * 32 + j * 16 + tx] = acc[i, j]

    return gemm


@T.prim_func(s_tir=True)
def wmma(
    A: T.Buffer((64, 16, 16), "float16"), B: T.Buffer((64, 16, 16), "float16"), C: T.Buffer((64, 32, 8), "float32")
):
    """C += A B^T on 16x16 tiles, a wave each; C in the order in which lanes hold it."""
    T.func_attr({"tirx.noalias": True, "global_symbol": "wmma"})
    for bx in T.thread_binding(64, thread="blockIdx.x"):
        for tx in T.thread_binding(32, thread="threadIdx.x"):
            with T.sblock("b"):
                T.reads(A[0:64, 0:16, 0:16], B[0:64, 0:16, 0:16])
                T.writes(C[0:64, 0:32, 0:8])
                C[bx, tx, T.ramp(0, 1, 8)] = T.call_extern(
                    "float32x8", "mlcrt_product",
                    A[bx, tx % 16, T.ramp(0, 1, 16)], B[bx, tx % 16, T.ramp(0, 1, 16)], C[bx, tx, T.ramp(0, 1, 8)],
                )  # fmt: skip


@T.prim_func(s_tir=True)
def shared_twice(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")):
    """y = reversed((x + 1) * 2) + 3, through two arrays in LDS whose lives do not overlap."""
    T.func_attr({"tirx.noalias": True, "global_symbol": "shared_twice"})
    for tx in T.thread_binding(64, thread="threadIdx.x"):
        with T.sblock("b"):
            T.reads(x[0:64])
            T.writes(y[0:64])
            first = T.sblock_alloc_buffer((64,), "float32", scope="shared")
            second = T.sblock_alloc_buffer((64,), "float32", scope="shared")
            first[tx] = x[tx] + T.float32(1)
            T.tvm_storage_sync("shared")
            second[tx] = first[tx] * T.float32(2)
            T.tvm_storage_sync("shared")
            y[tx] = second[63 - tx] + T.float32(3)


def elementwise(function, kind_in: str, kind_out: str, inputs: int = 1):
    """out[i] = function(a[i]) or function(a[i], b[i]) over 256 elements."""
    if inputs == 1:

        @T.prim_func(s_tir=True)
        def elementwise(a: T.Buffer((256,), kind_in), out: T.Buffer((256,), kind_out)):
            T.func_attr({"tirx.noalias": True, "global_symbol": "elementwise"})
            for bx in T.thread_binding(4, thread="blockIdx.x"):
                for tx in T.thread_binding(64, thread="threadIdx.x"):
                    with T.sblock("b"):
                        T.reads(a[0:256])
                        T.writes(out[0:256])
                        out[bx * 64 + tx] = function(a[bx * 64 + tx])

        return elementwise

    @T.prim_func(s_tir=True)
    def elementwise2(a: T.Buffer((256,), kind_in), b: T.Buffer((256,), kind_in), out: T.Buffer((256,), kind_out)):
        T.func_attr({"tirx.noalias": True, "global_symbol": "elementwise"})
        for bx in T.thread_binding(4, thread="blockIdx.x"):
            for tx in T.thread_binding(64, thread="threadIdx.x"):
                with T.sblock("b"):
                    T.reads(a[0:256], b[0:256])
                    T.writes(out[0:256])
                    out[bx * 64 + tx] = function(a[bx * 64 + tx], b[bx * 64 + tx])

    return elementwise2
