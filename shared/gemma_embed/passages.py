"""What an index is filled with: texts that have an identity of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from gemma_embed.errors import InvalidInput

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Passage:
    """One text to find again.

    Attributes:
        text: What is embedded and given to the generator.
        id: Its name in the index; an edited passage keeps it. None names it by its content, so
            an edited passage is another one.
        metadata: Numbers, strings, truth values and lists of them; None values are left out.
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
    if item.id is not None and (not isinstance(item.id, str) or not item.id):
        raise InvalidInput(f"the id {item.id!r} is not a non-empty str", index=index)
    for name, value in {**item.metadata, **item.extra}.items():
        if not isinstance(name, str) or not _is_metadata(value):
            raise InvalidInput(
                f"metadata {name!r} is {type(value).__name__}; use str, int, float, bool, None or "
                "a list of them",
                index=index,
            )
    return item


def _is_metadata(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, (str, int, float)) for each in value)
    return value is None or isinstance(value, (str, int, float))
