"""Rotary embedding, append and attention of one token in one kernel and one that joins the slices.

Every block rotates the queries of its KV head and the token's own K in workgroup memory. The cache is read up to the
token before it: the first slice starts from the token itself, so that nothing has to make its way through memory.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from mlcrt.kernels.arguments import rope_append_arguments
from mlcrt.kernels.mma.rotate import Rotated
from mlcrt.kernels.records import Attention
from mlcrt.kernels.simt.attention import MASKED, AttentionTiles, Slices, join, visible_positions, workspace_shape
from mlcrt.kernels.simt.common import Machine, Register, barrier, launch, prim_func, subgroup_reduce
from mlcrt.kernels.simt.functions import tanh


def rope_attention(op: Attention, tiles: AttentionTiles, machine: Machine, name: str = "rope_attention"):
    """PrimFunc(arguments of rope_append, with the result [1, heads*head_dim] f32 in the place of q, workspace f32)."""
    splits = tiles.splits_of(op)

    def body() -> None:
        a = rope_append_arguments(op)
        space = T.arg("workspace", T.Buffer(workspace_shape(op, splits, 1), "float32"))
        slices = _Slices(op, tiles, machine, splits, 1, a.places)
        slices.rotate_and_slice(a, space)
        join(op, machine, splits, slices.teams * slices.batch, 1, a.places, space, a.q, own=True)

    return prim_func(name, body)


class _Slices(Slices):
    def rotate_and_slice(self, a, space) -> None:
        op = self.op
        with launch(bx=self.splits, by=op.kv_heads, tx=self.threads) as (split, kv_head, thread):
            self.machine.follow()
            self.lane = T.bind(tirx.floormod(thread, self.team))
            self.crew = T.bind(tirx.floordiv(thread, self.team))
            least = self.teams * self.batch
            begin, visible, share = visible_positions(op, a.places, 0, self.splits, least, own=True)
            cached = T.bind(T.BufferLoad(a.places.position, [0]) - begin)
            # outside the condition, in which TVM could not add the barriers it wants
            rotated = Rotated(op, self.machine, a, kv_head, thread, self.threads)
            with T.If(split == 0), T.Then():
                rotated.append(lambda head_dim, inside, d: inside * head_dim + d)
            query = Register(T.float32(0), count=op.group * self.each)
            with self.reaching() as d:
                for g in range(op.group):
                    for e in range(self.each):
                        query.set(rotated.query(g, d + e) * T.float32(op.scale), g * self.each + e)
            sums = self.own(rotated, T.bind(tirx.And(split == 0, self.crew == 0)), query)
            barrier()
            with T.If(split * share < visible), T.Then():
                first = Register(begin + split * share, "int32").get()  # not lets: see simt.attention
                count = Register(tirx.min(share, cached - split * share), "int32").get()
                self.walk(a.k_cache, a.v_cache, 0, kv_head, first, count, query, *sums)
                self.merge(space, T.int32(0), kv_head, split, *sums)

    def own(self, rotated: Rotated, mine, query) -> tuple[Register, Register, Register]:
        """(peak, weight, sums) of the token itself for the team that has it, of nothing for the others."""
        op, each = self.op, self.each
        peak = Register(T.float32(MASKED), count=op.group)
        weight = Register(T.float32(0), count=op.group)
        sums = Register(T.float32(0), count=op.group * each)
        for g in range(op.group):
            dot = Register(T.float32(0))
            with self.reaching() as d:
                for e in range(each):
                    dot.add(query.get(g * each + e) * rotated.key(d + e))
            score = T.bind(subgroup_reduce(self.machine, dot.get(), lambda x, y: x + y, self.team))
            if op.softcap is not None:
                score = T.bind(T.float32(op.softcap) * tanh(score * T.float32(1.0 / op.softcap)))
            peak.set(tirx.Select(mine, score, T.float32(MASKED)), g)
            weight.set(tirx.Select(mine, T.float32(1), T.float32(0)), g)
            with self.reaching() as d:
                for e in range(each):
                    sums.set(tirx.Select(mine, rotated.value(d + e), T.float32(0)), g * each + e)
        return peak, weight, sums
