"""A few emulated waves whose registers a test sets and reads around single instructions."""

import numpy as np

from mlcrt.targets.rocm.emulator import Memory, launch  # noqa: F401  launch fills the instruction table
from mlcrt.targets.rocm.emulator.lds import Lds
from mlcrt.targets.rocm.emulator.metadata import Descriptor
from mlcrt.targets.rocm.emulator.operands import EXEC_LO, VCC_LO
from mlcrt.targets.rocm.emulator.parser import Kernel, parse_instruction
from mlcrt.targets.rocm.emulator.report import Report
from mlcrt.targets.rocm.emulator.state import Waves
from mlcrt.targets.rocm.emulator.table import bind
from mlcrt.targets.rocm.emulator.vmem import Scratch


class Machine:
    """`waves` waves in one workgroup (or one workgroup each with apart=True); vector registers hold NumPy arrays
    [waves, lanes] of 32-bit items, scalar ones [waves] or a number."""

    def __init__(self, waves: int = 1, lanes: int = 32, apart: bool = False, lds: int = 1024, granule: int = 1,
                 scratch: int = 64, vgprs: int = 64, generation: int = 11):  # fmt: skip
        number = np.arange(waves)
        in_group, group = (np.zeros_like(number), number) if apart else (number, np.zeros_like(number))
        self.kernel = Kernel("test", [], {}, Descriptor({"wavefront_size32": int(lanes == 32)}), generation)
        self.waves = Waves(waves, lanes, vgprs, in_group, group)
        self.waves.memory = Memory()
        self.waves.lds = Lds(waves if apart else 1, lds, granule, 1 if apart else waves)
        self.waves.scratch = Scratch(waves, lanes, scratch)
        self.waves.traffic = self.report = Report("test", 1, waves, vgprs, 0, lds, scratch)
        self.exec = np.ones((waves, lanes), bool)

    def set_v(self, index: int, values) -> None:
        bits = np.broadcast_to(np.asarray(values), (self.waves.count, self.waves.lanes))
        bits = np.ascontiguousarray(bits if bits.dtype.itemsize == 4 else bits.astype(np.uint32)).view(np.uint32)
        self.waves.write_vector(index, bits, mask=np.ones(bits.shape, bool))

    def v(self, index: int, dtype=np.uint32) -> np.ndarray:
        return self.waves.vector[index].copy().view(dtype)

    def set_s(self, index: int, value) -> None:
        self.waves.write_scalar(index, np.asarray(value).astype(np.uint32))

    def set_s64(self, index: int, value: int) -> None:
        self.set_s(index, value & 0xFFFFFFFF)
        self.set_s(index + 1, value >> 32)

    def s(self, index: int) -> np.ndarray:
        return self.waves.scalar[index].copy()

    def s64(self, index: int) -> np.ndarray:
        return self.s(index).astype(np.uint64) | (self.s(index + 1).astype(np.uint64) << np.uint64(32))

    @property
    def scc(self) -> np.ndarray:
        return self.waves.scc

    @property
    def exec(self) -> np.ndarray:
        return self.waves.read_mask(EXEC_LO)

    @exec.setter
    def exec(self, mask) -> None:
        self.set_mask(EXEC_LO, mask)

    def set_mask(self, index: int, mask) -> None:
        mask = np.broadcast_to(np.asarray(mask, bool), (self.waves.count, self.waves.lanes))
        words = np.packbits(mask, axis=1, bitorder="little").view(np.uint32)
        for i in range(words.shape[1]):
            self.waves.write_scalar(index + i, words[:, i])

    def set_vcc(self, mask) -> None:
        self.set_mask(VCC_LO, mask)

    def mask(self, index: int) -> np.ndarray:
        words = np.stack([self.s(index + i) for i in range(self.waves.lanes // 32)], axis=1)
        return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").astype(bool)

    def run(self, *texts: str) -> None:
        with np.errstate(all="ignore"):
            for text in texts:
                bind(parse_instruction(text, 1, self.kernel.generation), self.kernel)(self.waves)


def lanes_of(values, lanes: int = 32) -> np.ndarray:
    """A flat array of 32-bit items → [waves, lanes], padded by repeating."""
    values = np.asarray(values)
    count = -(-len(values) // lanes) * lanes
    return np.resize(values, count).reshape(-1, lanes)
