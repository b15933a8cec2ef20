"""What an index is filled with: texts that have an identity of their own."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gemma_embed.errors import InvalidInput

Metadata = Mapping[str, Any]

# What this package writes into an index's metadata has keys that begin so.
OWN = "gemma_embed."
# What vector stores keep for themselves.
_RESERVED = ("chroma:", "#", "$")
_KINDS = (str, int, float)


@dataclass(frozen=True)
class Passage:
    """One text to find again.

    Attributes:
        text: What is embedded and given to the generator.
        id: Its name in the index; an edited passage keeps it. None names it by its content, so
            an edited passage is another one.
        metadata: Numbers, strings, truth values and lists of one kind of them; None values are
            left out, and so are keys that begin with ``gemma_embed.``, which come back with what
            was retrieved.
        extra: Metadata that a framework needs to build its own objects again. It is kept too, but
            a passage in which only this differs counts as unchanged.
    """

    text: str
    id: str | None = None
    metadata: Metadata = field(default_factory=dict)
    extra: Metadata = field(default_factory=dict)

    @property
    def row_id(self) -> str:
        """Name in the index: ``id``, or 32 hexadecimal digits made of text and metadata."""
        return self.id if self.id is not None else digest(self.text, self.metadata)


def digest(*parts: object) -> str:
    """Return 32 hexadecimal digits for JSON values, the same on every machine.

    Raises:
        InvalidInput: If a value has no JSON form.
    """
    try:
        canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"metadata that cannot be written down: {error}") from error
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def checked_passage(item: Passage | Mapping[str, Any], index: int) -> Passage:
    """Return a passage whose parts have the right types.

    Args:
        item: A passage, or a mapping with its fields.
        index: Position among the caller's passages.

    Raises:
        InvalidInput: If a field is missing, unknown or of another type.
    """
    if isinstance(item, Mapping):
        known = [each.name for each in fields(Passage)]
        unknown = sorted(map(str, set(item) - set(known)))
        if unknown or "text" not in item:
            what = f"has unknown fields {unknown}" if unknown else "has no text"
            raise InvalidInput(f"the passage {what}; it takes {', '.join(known)}", index=index)
        item = Passage(**item)
    if not isinstance(item, Passage):
        raise InvalidInput(
            f"expected a Passage or a mapping, got {type(item).__name__}: for framework objects "
            "see langchain_gemma_embed.passages and llamaindex_gemma_embed.passages",
            index=index,
        )
    if not isinstance(item.text, str):
        raise InvalidInput(f"the text is {type(item.text).__name__}, not str", index=index)
    _check_unicode(item.text, "the text", index)
    if item.id is not None:
        if not isinstance(item.id, str) or not item.id:
            raise InvalidInput(f"the id {item.id!r} is not a non-empty str", index=index)
        _check_unicode(item.id, "the id", index)
    return replace(item, metadata=_checked(item.metadata, index), extra=_checked(item.extra, index))


def _checked(metadata: Metadata, index: int) -> Metadata:
    kept = {}
    for name, value in metadata.items():
        if not isinstance(name, str) or not name or name.startswith(_RESERVED):
            raise InvalidInput(
                f"the metadata key {name!r} is reserved or not a non-empty str: rename it",
                index=index,
            )
        _check_unicode(name, "a metadata key", index)
        if value is None or name.startswith(OWN):
            continue
        values = value if isinstance(value, list) else [value]
        if len({type(each) for each in values}) != 1 or not isinstance(values[0], _KINDS):
            raise InvalidInput(
                f"metadata {name!r} is {type(value).__name__}; use str, int, float, bool, None or "
                "a list of one of these kinds",
                index=index,
            )
        for each in values:
            _check_value(each, f"metadata {name!r}", index)
        kept[name] = value
    return kept


def _check_value(value: str | float, what: str, index: int) -> None:
    if isinstance(value, str):
        _check_unicode(value, what, index)
    elif isinstance(value, float) and not math.isfinite(value):
        # Chroma drops the row's metadata for one, and a list with one kills the collection.
        raise InvalidInput(f"{what} is not a finite number: use None", index=index)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidInput(f"{what} does not fit in 64 bits: use a str", index=index)


def _check_unicode(text: str, what: str, index: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # The cause is dropped on purpose: UnicodeEncodeError carries the text.
        raise InvalidInput(
            f"{what} has a lone surrogate at position {error.start}, which is not Unicode text; "
            "decode its source with errors='replace'",
            index=index,
        ) from None
