"""Ctrl-C while TVM is at work."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def keep_interrupts() -> Iterator[None]:
    """Let Ctrl-C end the block as KeyboardInterrupt.

    If it strikes in a Python function that TVM called, TVM passes it on as a RuntimeError without a text; and if a
    child process such as the linker receives it too, the child's failure may be what is seen.
    """
    main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers, or gets signals
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    seen = []

    def note(number, frame):
        seen.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except BaseException:
        if seen:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if seen:  # swallowed on the way
        raise KeyboardInterrupt
