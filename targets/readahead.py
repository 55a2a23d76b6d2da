"""Reading mapped files ahead of their use: while one tensor is copied to a device, threads bring the next into memory.

Copying from a mapping that is not in memory yet stops at every page; that alone can cost more than the copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

THREADS = 4
PIECE = 16 << 20  # bytes that a thread reads at once
AHEAD = 512 << 20  # bytes that are read ahead at most
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14: all pages of a range, in one call


def read_ahead(arrays: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """The arrays in order, those of mapped files with their pages in memory."""
    pieces = ((i, piece) for i, array in enumerate(arrays) for piece in _pieces(array))
    waiting: deque[tuple[int, int, Future]] = deque()  # (array, bytes, what reads it)
    ahead, more = 0, True
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for i, array in enumerate(arrays):
                while more and (ahead < AHEAD or not waiting or waiting[-1][0] <= i):
                    found = next(pieces, None)
                    if found is None:
                        more = False
                    else:
                        ahead += found[1].nbytes
                        waiting.append((found[0], found[1].nbytes, pool.submit(_touch, found[1])))
                while waiting and waiting[0][0] <= i:
                    _, size, read = waiting.popleft()
                    read.result()
                    ahead -= size
                yield array
        finally:
            for _, _, read in waiting:
                read.cancel()


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """A mapped array's memory in pieces; nothing for other arrays."""
    if isinstance(array, np.memmap) and array.flags.c_contiguous and array.size:
        raw = array.reshape(-1).view(np.uint8)
        for start in range(0, raw.size, PIECE):
            yield raw[start : start + PIECE]


def _touch(piece: np.ndarray) -> None:
    """Bring the pages of `piece` into memory."""
    start = piece.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    size = piece.ctypes.data + piece.nbytes - start
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no C library to ask, or not this call
        madvise = ctypes.CDLL(None).madvise
        if madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_int(_POPULATE_READ)) == 0:
            return
    piece[:: mmap.PAGESIZE].max()
