"""A library as pages and assistants read it: by many threads, which take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from private_search.catalogue import Found
from private_search.library import Library
from private_search.search import Search
from private_search.text import visible


class Reader:
    """A library that others, in this process or another one, may fill meanwhile."""

    def __init__(self, opened: Callable[[], Library]) -> None:
        """Open nothing yet.

        Args:
            opened: Opens the library.
        """
        self._opened = opened
        self._turn = threading.Lock()
        self._search: Search | None = None
        self._seen = 0

    @contextmanager
    def search(self) -> Iterator[Search]:
        """Wait for one's turn, and give a search that knows what is indexed by now."""
        with self._turn:
            if self._search is None or self._version(self._search) != self._seen:
                # Chroma shows what others wrote after it was closed.
                self._close()
                self._search = Search(self._opened())
                self._seen = self._version(self._search)
            yield self._search

    def close(self) -> None:
        """Close the library; the next turn opens it again."""
        with self._turn:
            self._close()

    def _close(self) -> None:
        if self._search is not None:
            self._search.library.close()
            self._search = None

    def _version(self, search: Search) -> int:
        """Changes with each commit of another connection."""
        return int(search.library.catalogue.db.execute("PRAGMA data_version").fetchone()[0])


def shown(found: Found) -> dict[str, Any]:
    """What pages and assistants get of a passage; its time as ISO 8601, and nothing invisible."""
    told = {
        **asdict(found),
        "id": str(found.number),
        "url": f"{found.address}#{found.place}" if found.place else found.address,
        "date": datetime.fromtimestamp(found.date, UTC).isoformat() if found.date else "",
    }
    return {name: visible(value) if isinstance(value, str) else value
            for name, value in told.items()}  # fmt: skip
