"""How work finds out that its caller has cancelled it.

A call on a thread of this package carries its signal in its context. Whatever may take long checks
the signal between two steps, and while it waits.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# How often a wait checks the signal, in seconds.
GLANCE = 0.1

# Several, where parts of the work run on threads of their own.
_SIGNALS: contextvars.ContextVar[tuple[threading.Event, ...]] = contextvars.ContextVar(
    "gemma_embed_cancelled", default=()
)


class Cancelled(BaseException):
    """The work was cancelled; callers of the package never see this, as they wait no more."""


def check_not_cancelled() -> None:
    """Raise ``Cancelled`` if the work in this context is."""
    if any(signal.is_set() for signal in _SIGNALS.get()):
        raise Cancelled


def under(
    signal: threading.Event, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Callable[[], T]:
    """Return a call that runs in a copy of this context, and can be cancelled by a signal too."""
    context = contextvars.copy_context()
    context.run(_SIGNALS.set, (*_SIGNALS.get(), signal))
    return partial(context.run, function, *args, **kwargs)
