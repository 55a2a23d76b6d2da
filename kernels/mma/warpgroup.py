"""Products with many tokens for tensor cores that a warpgroup of four warps drives (Hopper's wgmma).

The weights are the left operand: a warp dequantises 16 of its warpgroup's 64 rows from shared memory straight into the
fragments, while the tensor cores still work on the columns before. The prepared activations are the right operand,
which the tensor cores read from shared memory, so nobody gathers fragments of them. They lie in device memory as they
have to lie there, so that one bulk copy brings the tokens of a stage.

Three kinds of block: where there are many, two warpgroups compute 128 weight rows x 128 tokens, and two blocks share a
multiprocessor. Where there are too few for that, two or four groups of warps share out the columns of one block, and
the last of its tiles is smaller, for prompts of a few dozen tokens.

Order: as in `linear` a lane's word of 32 columns holds the pairs (0,4) (1,5) | (2,6) (3,7) of columns 8c .. 8c+7. Here
the pairs of the four lanes lie as the right operand wants a step's 16 columns: first pairs, then second ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.records import Linear
from mlcrt.kernels.simt.common import Machine, barrier, first_of, launch, local, prim_func, resident
from mlcrt.kernels.simt.linear import LinearKernel

from . import linear
from .linear import DEPTH, GROUP, Product, padded
from .unit import WarpgroupUnit

STEP = 16  # columns of one instruction


@dataclass(frozen=True)
class WarpgroupTiles:
    """tokens, rows: of a block, with a warpgroup for every 64 rows; split: groups of so many warpgroups that share out
    the columns; stages: copies in flight in each; resident: blocks that share a multiprocessor."""

    tokens: int = 128
    rows: int = 128
    split: int = 1
    stages: int = 4
    resident: int = 2

    @property
    def members(self) -> int:
        """Threads of a group."""
        return 2 * self.rows


MANY = WarpgroupTiles()
FEW = WarpgroupTiles(split=2, resident=1)
FEWEST = WarpgroupTiles(tokens=64, rows=64, split=4, resident=1)


def prepared_shape(op: Linear, n) -> tuple:
    """Workspace: the activations as float16, 64 columns of all tokens after the other."""
    return (padded(op.columns) // DEPTH, n, DEPTH)


def prefill_linear(op: Linear, multiprocessors: int, machine: Machine, unit: WarpgroupUnit, name: str):
    """PrimFunc(x [n, K] f32, weight parts, [norm [K]], [bias [rows]], [residual [n, units]], y [n, units] f32,
    prepared [padded K / 64, n, 64] f16)."""

    def body() -> None:
        kernel = LinearKernel(op, machine)
        prepared = T.match_buffer(T.arg("prepared", T.handle()), prepared_shape(op, kernel.n), "float16")
        prepare(kernel, prepared, kernel.n)
        blocks = tirx.floordiv(kernel.n + MANY.tokens - 1, MANY.tokens)
        first_of(
            (None if limit is None else blocks <= limit, WarpgroupProduct(kernel, tiles, unit, prepared).emit)
            for tiles, limit in kinds(op, multiprocessors)
        )

    return prim_func(name, body)


def kinds(op: Linear, multiprocessors: int) -> list[tuple[WarpgroupTiles, int | None]]:
    """Kinds of block and up to how many times 128 tokens each is taken, the last for any number. Those that share out
    the columns add up in another order."""
    across, steps, found = -(-op.rows // MANY.rows), padded(op.columns) // DEPTH, []
    for tiles, blocks in () if op.steady else ((FEWEST, multiprocessors // 2), (FEW, multiprocessors)):
        if steps % tiles.split == 0 and blocks // across > (found[-1][1] if found else 0):
            found.append((tiles, blocks // across))
    return [*found, (MANY, None)]


def prepare(k: LinearKernel, prepared, n) -> None:
    """As linear.prepare, in this module's order. In shared memory the tensor cores expect the eight 16-byte units of a
    token's 64 columns to be exchanged by the token modulo eight."""

    def store(ordered, token, i) -> None:
        step, first = T.bind(tirx.floordiv(i, DEPTH // 8)), T.bind(tirx.floordiv(tirx.floormod(i, DEPTH // 8), 4) * 4)
        for pair in range(4):
            both = T.BufferLoad(ordered, [tirx.Ramp(2 * pair, 1, 2)])
            unit = tirx.bitwise_xor(first + pair, tirx.floormod(token, 8))
            at = T.bind(unit * 8 + tirx.floormod(i, 4) * 2)
            T.buffer_store(prepared, both, [step, token, tirx.Ramp(at, 1, 2)])

    linear.prepare(k, prepared, n, store)


class WarpgroupProduct(Product):
    """The second kernel. Shared memory per stage of a group: tokens x 64 float16, rows x 64 codes, rows x 2 scales.

    A stage is two chunks of 32 columns. While the tensor cores work on one, the other is unpacked into its own
    registers; a stage is overwritten once every warpgroup has seen the end of its last chunk.
    """

    def __init__(self, k: LinearKernel, tiles: WarpgroupTiles, unit: WarpgroupUnit, prepared):
        super().__init__(k, tiles, unit, prepared, tiles.members * tiles.split)
        self.split, self.members, self.resident = tiles.split, tiles.members, tiles.resident
        assert self.steps % self.split == 0
        self.rounds = self.steps // self.split

    def emit(self) -> None:
        k = self.k
        grid = {"bx": k.token_blocks(self.tokens), "by": -(-k.span // self.block_units), "tx": self.threads}
        with launch(**grid) as (block_m, block_n, thread), resident(self.resident):
            k.machine.follow()
            self.thread = thread
            self.token0, self.end = k.token_range(block_m, self.tokens)
            self.unit0 = T.bind(block_n * self.block_units)
            self.locate()
            self.allocate()
            self.left = [local((8,), "uint32") for _ in range(2)]  # fragments of a chunk's two instructions
            self.begin()
            for stage in range(self.stages - 1):
                if stage < self.rounds:
                    self.fetch(stage, T.int32(stage))
                self.unit.commit()
            self.arrived(self.stages - 2)
            self.unpack(0, T.int32(0), T.int32(0))
            with T.serial(self.rounds) as turn:
                slot = T.bind(tirx.floormod(turn, self.stages))
                self.await_tokens(slot, turn)
                self.multiply(0, slot)
                self.unit.finished(1)
                self.unpack(1, slot, turn)
                self.multiply(1, slot)
                self.unit.finished(1)
                self.arrived(self.stages - 3)
                ahead = T.bind(turn + (self.stages - 1))
                with T.If(ahead < self.rounds), T.Then():
                    self.fetch(T.bind(tirx.floormod(ahead, self.stages)), ahead)
                self.unit.commit()
                self.unpack(0, T.bind(tirx.floormod(turn + 1, self.stages)), turn + 1)
            self.unit.finished(0)
            self.join()

    def locate(self) -> None:
        """Where this thread stands in its group, that in the block, and its lane and warp in the group."""
        self.member, self.share = self.thread, T.int32(0)
        if self.split > 1:
            self.member = T.bind(tirx.floormod(self.thread, self.members))
            self.share = T.bind(tirx.floordiv(self.thread, self.members))
        lane, warp = T.bind(tirx.floormod(self.member, 32)), T.bind(tirx.floordiv(self.member, 32))
        self.row, self.column = T.bind(tirx.floordiv(lane, 4)), T.bind(tirx.floormod(lane, 4))
        self.first = T.bind(warp * 16 + self.row)  # this lane's rows: that and eight on

    def allocate(self) -> None:
        """One array for everything, and one store to it: TVM does not see what copies write and tensor cores read."""
        stages = self.stages * self.split
        sizes = [stages * self.tokens * DEPTH * 2, stages * self.rows * DEPTH // 2, stages * self.rows * 4, stages * 8]
        if not self.packed:
            sizes[1:3] = 0, 0
        joined = (self.split - 1) * self.members * self.tokens // 2 * 4
        starts, end = [sum(sizes[:i]) for i in range(len(sizes))], max(sum(sizes), joined)
        memory = T.alloc_buffer((end + 8,), "uint8", scope="shared.dyn")
        T.buffer_store(memory, T.uint8(0), [end])

        def part(shape: tuple, dtype: str, start: int):
            first = start // {"float16": 2, "uint32": 4, "float32": 4, "uint64": 8}[dtype]
            return T.decl_buffer(shape, dtype, data=memory.data, elem_offset=first, scope="shared.dyn")

        self.a = part((self.stages, self.split, self.tokens, DEPTH), "float16", starts[0])
        if self.packed:
            self.codes = part((self.stages, self.split, self.rows, DEPTH // 8), "uint32", starts[1])
            self.scales = part((self.stages, self.split, self.rows, DEPTH // GROUP), "float16", starts[2])
        self.bells = part((self.stages, self.split), "uint64", starts[3])
        if joined:
            self.joined = part((self.split - 1, self.tokens // 2, self.members), "float32", 0)
        self.sums = local((self.tokens // 2,))
        for i in range(self.tokens // 2):
            T.buffer_store(self.sums, T.float32(0), [i])

    def begin(self) -> None:
        """What has to be there before the first copy."""
        with T.If(self.thread == 0), T.Then():
            for stage in range(self.stages):
                for share in range(self.split):
                    self.unit.bell(self.bells, [stage, share])
            self.unit.publish()
        barrier()

    def step_of(self, turn):
        """The step of 64 columns that this thread's group takes in a turn."""
        return turn if self.split == 1 else T.bind(turn * self.split + self.share)

    def fetch(self, slot, turn) -> None:
        """Start the copies of one stage of each group."""
        step = self.step_of(turn)
        self.fetch_tokens(slot, step)
        if not self.packed:
            return
        buffers = self.k.weights.buffers
        # two pieces of 16 bytes a row
        row, piece = T.bind(tirx.floordiv(self.member, 2)), T.bind(tirx.floormod(self.member, 2))
        to = [slot, self.share, row, self.spread_row(row, piece) * 4]
        source = [self.weight_row(row), step * (DEPTH // 8) + piece * 4]
        self.unit.copy(self.codes, to, buffers["codes"], source, 16)
        with T.If(self.member < self.rows), T.Then():
            source = [self.weight_row(self.member), step * (DEPTH // GROUP)]
            self.unit.copy(self.scales, [slot, self.share, self.member, 0], buffers["scales"], source, 4)

    def fetch_tokens(self, slot, step) -> None:
        """One copy, of the tokens there are."""
        with T.If(self.member == 0), T.Then():
            size = T.bind(tirx.min(self.end - self.token0, self.tokens) * (DEPTH * 2))
            to, source = [slot, self.share, 0, 0], [step, self.token0, 0]
            self.unit.bulk_copy(self.a, to, self.prepared, source, size, self.bells, [slot, self.share])

    def await_tokens(self, slot, turn) -> None:
        """Until the copy into `slot` is there; it rings in turn, for every use of the slot once."""
        odd = tirx.floormod(tirx.floordiv(turn, self.stages), 2)
        self.unit.await_bell(self.bells, [slot, self.share], odd)

    def arrived(self, pending: int) -> None:
        """Codes of all but `pending` stages under way are there, and all warps are done with the stage before."""
        self.unit.wait(pending)
        barrier()

    def unpack(self, chunk: int, slot, turn) -> None:
        """Rows `first` and `first` + 8 of a chunk as fragments: per instruction row, row + 8, then the columns eight
        on."""
        for i in range(2):
            row, values = T.bind(self.first + 8 * i), local((4,), "uint32")
            if self.packed:
                index = [slot, self.share, row, self.spread_row(row, chunk) * 4 + self.column]
                scale = T.BufferLoad(self.scales, [slot, self.share, row, chunk])
                self.unit.scaled_codes(values, T.BufferLoad(self.codes, index), scale)
            else:
                self.dequantize(values, row, self.step_of(turn) * DEPTH + chunk * GROUP)
            for pair in range(4):
                at = pair // 2 * 4 + pair % 2 * 2 + i
                T.buffer_store(self.left[chunk], T.BufferLoad(values, [pair]), [at])

    def multiply(self, chunk: int, slot) -> None:
        """Start a chunk's two instructions."""
        self.unit.begin()
        for i in range(2):
            left = [T.BufferLoad(self.left[chunk], [4 * i + j]) for j in range(4)]
            right = [slot, self.share, 0, chunk * GROUP + i * STEP]
            self.unit.warpgroup_mma(self.sums, self.tokens, left, self.a, right)
        self.unit.end()

    def join(self) -> None:
        """Add up what the groups have; the first one stores."""
        if self.split == 1:
            self.store()
            return
        barrier()
        with T.If(self.share > 0), T.Then():
            for i in range(self.tokens // 2):
                T.buffer_store(self.joined, T.BufferLoad(self.sums, [i]), [self.share - 1, i, self.member])
        barrier()
        with T.If(self.share == 0), T.Then():
            for i in range(self.tokens // 2):
                others = [T.BufferLoad(self.joined, [share, i, self.member]) for share in range(self.split - 1)]
                T.buffer_store(self.sums, sum(others, T.BufferLoad(self.sums, [i])), [i])
            self.store()

    def store(self) -> None:
        """Epilogue from the registers: a lane holds two neighbouring tokens of every eight, for its two rows, which are
        gate and up of one unit where there are two parts."""
        k = self.k
        rows = [[0, 1]] if k.parts == 2 else [[0], [1]]
        for eight in range(self.tokens // 8):
            for i in range(2):
                token = T.bind(self.token0 + eight * 8 + self.column * 2 + i)
                with T.If(token < self.end), T.Then():
                    for held in rows:
                        unit, _ = self.unit_of(self.first + 8 * held[0])
                        sums = [T.BufferLoad(self.sums, [4 * eight + 2 * h + i]) for h in held]
                        with T.If(unit < k.span), T.Then():
                            k.finish(token, unit, sums)
