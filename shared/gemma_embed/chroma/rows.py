"""Rows as they should be, made from passages one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gemma_embed.errors import (
    BadResponse,
    EmbeddingError,
    InvalidInput,
    OutOfMemory,
    ServerFailed,
)
from gemma_embed.passages import (
    DOCUMENT,
    TITLE,
    Passage,
    checked_passage,
    label,
    row_id,
    title_of,
)

Passages = Iterable[Passage | Mapping[str, Any]]
OnError = Literal["report", "raise"]

# Texts of one call that the runtime may fail on. With more, it is not the texts' fault.
_MOST_FAULTS = 3


@dataclass(frozen=True)
class Failure:
    """A passage that could not become a row.

    Attributes:
        index: Its position among the passages.
        source: Its document's id, or its own; None if it has none.
        reason: What is wrong with it and what to do.
    """

    index: int
    source: str | None
    reason: str


@dataclass(frozen=True)
class Row:
    """A row as it should be."""

    index: int
    id: str
    source: str | None
    text: str
    title: str | None
    metadata: dict[str, Any]


@dataclass
class Rows:
    """Makes rows from passages one by one, and remembers which.

    Attributes:
        title_key: The metadata key of titles.
        on_error: What happens at a passage that cannot become a row.
        complete: Whether documents that are not among the passages are removed.
        taken: Passages taken so far.
        seen: Digests of the rows, by id.
        sources: Documents with rows.
        failed: Passages without a row.
        kept: Documents and rows of failed passages, which stay as they are.
        unknown: Whether a failed passage names neither its document nor its row.
    """

    title_key: str
    on_error: OnError
    complete: bool = False
    taken: int = 0
    seen: dict[str, str] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    failed: list[Failure] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    unknown: bool = False
    _faults: int = 0
    _occurrences: Counter[str] = field(default_factory=Counter)

    def batches(self, passages: Passages, size: int) -> Iterator[list[Row]]:
        """Yield rows, ``size`` at a time; before an error what came before it."""
        batch: list[Row] = []
        try:
            for item in passages:
                self.taken += 1
                row = self._row(item)
                if row is not None:
                    batch.append(row)
                if len(batch) == size:
                    yield batch
                    batch = []
        except Exception:
            if batch:
                yield batch
            raise
        if batch:
            yield batch

    def fail(self, row: Row, error: EmbeddingError) -> None:
        """Take back a row that could not be embedded.

        Raises:
            EmbeddingError: The error, if there is to be no report, if it says nothing of the text,
                or if the runtime failed on too many.
        """
        self.seen.pop(row.id)
        error.index = row.index
        self._faults += isinstance(error, (BadResponse, ServerFailed))
        one_text = isinstance(error, (InvalidInput, OutOfMemory, BadResponse, ServerFailed))
        self._refuse(row.source, row.id, error, stop=not one_text or self._faults > _MOST_FAULTS)

    def _row(self, item: Passage | Mapping[str, Any]) -> Row | None:
        try:
            passage = checked_passage(item)
            source, title = passage.source, title_of(passage.metadata, self.title_key)
            metadata = {**passage.metadata, **passage.extra, DOCUMENT: source or ""}
            metadata |= {TITLE: title} if title is not None else {}
            content = row_id(canonical(metadata), passage.text, 0)
            row = passage.id or self._made_id(passage)
            if source is None and passage.id is None:
                # Without a document nothing tells two equal passages apart; extra does not either.
                content = row
            if self.seen.get(row, content) != content:
                raise InvalidInput(
                    f"a passage before it has the same id {row!r} and other content; give "
                    "each its own id, or none"
                )
        except InvalidInput as error:
            given = item.get("id") if isinstance(item, Mapping) else getattr(item, "id", None)
            error.index = self.taken - 1
            self._refuse(label(item), given, error)
            return None
        if source is not None:
            self.sources.add(source)
        if row in self.seen:
            return None
        self.seen[row] = content
        return Row(self.taken - 1, row, source, passage.text, title, metadata)

    def _made_id(self, passage: Passage) -> str:
        if passage.source is None:
            # The same in every call, so that none of them takes the place of another.
            return row_id(None, canonical([passage.metadata, passage.text]), 0)
        first = row_id(passage.source, passage.text, 0)
        row = row_id(passage.source, passage.text, self._occurrences[first])
        self._occurrences[first] += 1
        return row

    def _refuse(
        self, source: str | None, row: object, error: EmbeddingError, *, stop: bool = False
    ) -> None:
        if source is not None:
            error.args = (f"{error.args[0]} (in {source!r})",)
        if stop or self.on_error == "raise":
            raise error
        known = {each for each in (source, row) if isinstance(each, str)}
        self.kept |= known
        self.unknown |= not known
        name = source or next(iter(known), None)
        self.failed.append(Failure(error.index or 0, name, str(error.args[0])))


def canonical(value: Any) -> str:
    """Write metadata so that equal ones are equal texts, and 1, 1.0 and True are not."""
    return json.dumps(value, sort_keys=True)
