"""Computing on a new thread what oneDNN can no longer compute on this one.

oneDNN compiles its programs when they are first needed. Once that failed for lack of memory, it
cannot compile another one on that thread, however much is free later: the code generator below it
(Xbyak) stores its first error in a thread local for good. Measured with torch 2.13 under a limit of
address space: without the limit the same batch fails again, and succeeds on a new thread. Compiled
programs serve all threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import numpy as np

_Result = TypeVar("_Result")

_REFUSED = "could not create a primitive"

# The stacks of a thread and its helpers, and glibc's heap for it, with room to spare.
_BYTES_OF_A_THREAD = 128 << 20


def on_sound_thread(compute: Callable[[], _Result]) -> _Result:
    """Compute here, or on a new thread if oneDNN cannot compile here.

    Nothing else is tried while memory is short: glibc ends a process that cannot set up a thread.

    Args:
        compute: What to compute; its errors reach the caller as they are.
    """
    try:
        return compute()
    except RuntimeError as error:
        if _REFUSED not in str(error):
            raise
        # Its traceback would keep the tensors of the first try alive during the second.
        refused = error.with_traceback(None)
    result: Future[_Result] = Future()
    thread = threading.Thread(target=_fulfil, args=(result, compute), name="gemma-embed-compute")
    try:
        # Not touched, and given back at once: is there room for a thread?
        np.empty(_BYTES_OF_A_THREAD, np.uint8)
        thread.start()
    except (MemoryError, RuntimeError) as error:
        raise refused from error
    # Also after Ctrl-C: a network serves one thread at a time.
    try:
        return result.result()
    finally:
        thread.join()


def _fulfil(result: Future[_Result], compute: Callable[[], _Result]) -> None:
    try:
        result.set_result(compute())
    except BaseException as error:  # noqa: BLE001 - for the thread that waits
        result.set_exception(error)
