"""Running blocking work for an event loop, in one place."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# More would only queue at the model's lock or the server, and hold memory meanwhile.
_WORKERS = 4


@cache
def _pool(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 - only a key of the cache
    # A pool of our own: calls that wait for a model would otherwise fill the loop's default pool,
    # which name look-ups and file reads share. One a process, as threads do not survive a fork.
    return ThreadPoolExecutor(_WORKERS, thread_name_prefix="gemma-embed")


async def in_background(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking function in a worker thread and await it.

    The loop is never blocked, any number of loops may come and go, and at most four calls run at
    once in a process. Cancelling gives control back at once: a call that waits for a
    worker is dropped, one that has begun finishes unseen.
    """
    # Here and not at the top: who never awaits needs none of its 5 MB.
    import asyncio

    call = partial(contextvars.copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_pool(os.getpid()), call)
