"""Which kernel serves which project operator on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mlcrt.kernels import Kernel
from mlcrt.kernels.library import BATCH, KernelLibrary, counts
from mlcrt.kernels.records import Attention, Embed, Linear, Moe

from . import alike
from .attention import AttentionTiles, attention, rope_append, workspace_shape
from .choose import choose
from .choose import scratch as choose_scratch
from .common import Machine
from .draw import draw, draw_scratch
from .elementwise import embed, finish_scratch, finish_step, rotary_tables, softcap
from .experts import moe, workspaces
from .experts_many import Products
from .linear import LinearTiles, linear


@dataclass(frozen=True)
class Tiles:
    linear: LinearTiles = field(default_factory=LinearTiles)
    attention: AttentionTiles = field(default_factory=AttentionTiles)
    draw_threads: int = 256  # of the block that ranks tokens


class Library(KernelLibrary):
    # Kernels here allocate what they need, and finding that out takes up to 37 s a kernel: see schedule for the others.
    skipped_passes = ("s_tir.CompactBufferAllocation",)
    fuses_experts = True
    draws = True
    batch = 64

    def __init__(self, tiles: Tiles, kv_dtype: str, machine: Machine):
        super().__init__(tiles, kv_dtype)
        self.machine = machine

    def schedule(self, mod):
        """Stock operators get TVM's schedules, whose buffers have to be compacted here, since that pass is skipped."""
        import tvm
        from tvm import tirx
        from tvm.s_tir import dlight, transform

        gpu, done = dlight.gpu, "tirx.is_scheduled"
        stock = [v for v, f in mod.functions_items() if isinstance(f, tirx.PrimFunc) and done not in (f.attrs or {})]
        mod = dlight.ApplyDefaultSchedule(gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())(mod)
        passes = [  # TVM's own pipeline up to there; it passes over what has been through it
            transform.CanonicalizeLoop(),
            transform.LowerCrossThreadReduction(),
            transform.LowerInitBlock(),
            transform.PlanAndUpdateBufferAllocationLocation(),
            transform.ConvertBlocksToOpaque(),
            transform.LiftThreadBinding(),
            transform.ManifestSharedMemoryLocalStage(),
            transform.CompactBufferAllocation(),
        ]
        with tvm.transform.PassContext(opt_level=3):
            compacted = tvm.transform.Sequential(passes)(tvm.IRModule({v: mod[v] for v in stock}))
        for var, function in compacted.functions_items():
            mod.update_func(mod.get_global_var(var.name_hint), function)
        return mod

    def linear(self, a: dict, args: list) -> Kernel:
        kernel = super().linear(a, args)
        op = kernel.key[1]
        if not op.alike:
            return kernel
        build, n = lambda: self.build_alike(op, kernel.name), args[0].ty.shape[0]
        return replace(kernel, build=build, scratch=self.alike_scratch(op, n))

    def alike_scratch(self, op: Linear, n) -> list:
        return alike.scratch(op, n, self.machine)

    def build_alike(self, op: Linear, name: str):
        """Linear layers of tokens that do not notice one another."""
        return alike.linear(op, self.tiles.linear, self.machine, name)

    def attention(self, a: dict, args: list) -> Kernel:
        if not counts(args[0], BATCH):
            return super().attention(a, args)
        op = replace(self._attention(a, args[0]), alike=True)
        name, scratch = "attention_batch", self.attention_scratch(op, args[0].ty.shape[0])
        return Kernel(name, ("attention", op), lambda: self.build_attention(op, name), args, scratch=scratch)

    def choose(self, a: dict, args: list) -> Kernel:
        scratch = choose_scratch(args[0].ty.shape[0])
        return replace(super().choose(a, args), scratch=scratch)

    def build_choose(self, vocab: int):
        return choose(vocab, self.machine)

    def build_linear(self, op: Linear, name: str):
        return linear(op, self.tiles.linear, self.machine, name)

    def build_embed(self, op: Embed):
        return embed(op, self.machine)

    def build_rotary_tables(self, half: int, tokens: int | None, factor: float, own: bool):
        return rotary_tables(half, tokens, factor, self.machine, own)

    def build_rope_append(self, op: Attention):
        return rope_append(op, self.machine)

    def build_attention(self, op: Attention, name: str):
        return attention(op, self.tiles.attention, self.machine, name)

    def attention_scratch(self, op: Attention, n) -> list:
        return [workspace_shape(op, self.tiles.attention.splits_of(op), n)]

    def finish_scratch(self) -> list:
        return finish_scratch()

    def build_softcap(self, width: int, tokens: int | None, cap: float):
        return softcap(width, tokens, cap, self.machine)

    def build_finish_step(self, vocab: int, count: int | None):
        return finish_step(vocab, count, self.machine)

    def build_moe(self, op: Moe, name: str):
        return moe(op, self.tiles.linear, self.machine, self.expert_products(op), name)

    def moe_scratch(self, op: Moe, n) -> list:
        return workspaces(op, n, self.expert_products(op))

    def expert_products(self, op: Moe) -> Products:
        """How the experts of many tokens are computed."""
        return Products(self.tiles.linear, self.machine)

    def draw_scratch(self) -> list:
        return draw_scratch()

    def build_draw(self, vocab: int):
        return draw(vocab, self.machine, self.tiles.draw_threads)
