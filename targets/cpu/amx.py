"""Asking Linux for the tile registers of AMX: https://docs.kernel.org/arch/x86/xstate.html."""

from __future__ import annotations

import ctypes

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # the system call, ARCH_REQ_XCOMP_PERM, the state


def tile_registers() -> bool:
    """Whether every thread of this process may use them from now on.

    A kernel before 5.16 does not know the question; one may also say no, for instance to a process with a thread whose
    signal stack is too small for a frame that has them.
    """
    try:
        return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0
    except (OSError, AttributeError):
        return False
