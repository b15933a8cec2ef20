"""Values that must not cross a fork: connections, locks, event loops, loaded models."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_ALL: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()


class PerProcess(Generic[T]):
    """A value that each process makes for itself, on first use and only once.

    A forked child must not write into its parent's connections, and a lock that another thread of
    the parent had taken stays taken in the child. The parent's value is never disposed of there,
    not at the child's end either: that could close what the parent still uses, and a native
    library would wait for threads that no fork takes along.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        """Make nothing yet.

        Args:
            make: Called by one thread while others wait; after an exception, called again by the
                next.
        """
        self._make = make
        self._values: dict[int, T] = {}
        self._locks: dict[int, threading.RLock] = {}
        _watch_forks()
        _ALL.add(self)

    def get(self) -> T:
        """Return this process's value."""
        process = os.getpid()
        try:
            return self._values[process]
        except KeyError:
            with self._lock(process):
                if process not in self._values:
                    self._values[process] = self._make()
                return self._values[process]

    def clear(self) -> None:
        """Let go of this process's value; the next ``get`` makes a new one."""
        process = os.getpid()
        with self._lock(process):
            self._values.pop(process, None)

    def _lock(self, process: int) -> threading.RLock:
        # setdefault is atomic: threads that come at once get the same lock.
        return self._locks.setdefault(process, threading.RLock())


@cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_keep_the_parent_s)


def _keep_the_parent_s() -> None:
    for each in _ALL:
        for value in each._values.values():
            keep_forever(value)


def keep_forever(value: object) -> None:
    """Count one more reference, which nothing takes back, so that it is never disposed of."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
