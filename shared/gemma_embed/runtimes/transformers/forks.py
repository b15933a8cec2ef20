"""Whether this process was forked from one that had computed, and would hang.

OpenMP's threads do not survive a fork, and the child waits for them for ever: measured with
torch 2.13 on Linux, for a model loaded before the fork and for one loaded after it.
"""

from __future__ import annotations

import os

from gemma_embed.errors import ConfigurationError

_first: int | None = None


def check_not_forked() -> None:
    """Note that this process is about to compute, unless an ancestor already did.

    Raises:
        ConfigurationError: If one did, and torch would use several threads here.
    """
    global _first
    if _first is None:
        _first = os.getpid()
    elif _first != os.getpid():
        import torch

        if torch.get_num_threads() > 1:
            raise ConfigurationError(
                "this process was forked from one in which torch had computed, and would wait for "
                "its threads for ever; call multiprocessing.set_start_method('spawn') before any "
                "workers are started, or torch.set_num_threads(1) in each worker first"
            )
