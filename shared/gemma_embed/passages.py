"""What an index is filled with: texts that belong to documents."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date, time
from typing import Any

import numpy as np

from gemma_embed.errors import ConfigurationError, InvalidInput

Metadata = Mapping[str, Any]

# Metadata keys that this package writes into an index begin with this.
OWN = "gemma_embed."
# Of a row: the id of its document ("" without one), and the title that it was embedded with.
DOCUMENT, TITLE = OWN + "document", OWN + "title"

# Metadata that names a passage's document: this package's own, LangChain's, LlamaIndex's.
_DOCUMENT_KEYS = (DOCUMENT, "source", "file_path")
# What vector stores use themselves.
_RESERVED = ("chroma:", "#", "$")
_KINDS = (str, int, float)
# What tells a framework's texts, and the package that makes passages of them.
_FRAMEWORKS = {"page_content": "langchain_gemma_embed", "get_content": "llamaindex_gemma_embed"}


@dataclass(frozen=True)
class Passage:
    """One text to find again.

    Attributes:
        text: What is embedded and given to the generator.
        id: Id of its row, for those who manage ids themselves. None makes one from the document's
            id and the text, and without a document from text and metadata.
        document: Id of the document that it is a part of; None takes the metadata ``source`` or
            ``file_path``. The passages of a document are replaced together.
        metadata: Numbers, strings, booleans and lists of one kind of them. NumPy scalars become
            Python's and dates become ISO 8601 strings; None, empty lists and keys that begin with
            ``gemma_embed.`` are left out.
        extra: More metadata, which a framework needs to build its own objects again.
    """

    text: str
    id: str | None = None
    document: str | None = None
    metadata: Metadata = field(default_factory=dict)
    extra: Metadata = field(default_factory=dict)

    @property
    def source(self) -> str | None:
        """Id of the document, given or from the metadata."""
        if self.document is not None:
            return self.document
        named = (self.metadata.get(key) for key in _DOCUMENT_KEYS)
        return next((str(value) for value in named if value is not None and str(value)), None)


def row_id(source: str | None, text: str, occurrence: int) -> str:
    """Return an id made of a document's id and a passage's text, the same on every machine.

    Args:
        source: The document's id, if it has one.
        text: The passage's.
        occurrence: How often this text came before in the document.

    Returns:
        32 hexadecimal digits.
    """
    parts = json.dumps([source, text, occurrence], ensure_ascii=True)
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def title_of(metadata: Metadata, key: str) -> str | None:
    """Return a title from metadata: text, or a number or date written out; None for all else."""
    value = plain(metadata.get(key))
    return str(value) if isinstance(value, _KINDS) and value != "" else None


def embedded_parts(
    metadata: Metadata, text: str, title_key: str | None = None
) -> tuple[str, str | None] | None:
    """Return the text and the title that ``ChromaIndex.ingest`` embedded a row with.

    Args:
        metadata: The row's, or that of a framework's object made from it.
        text: The row's document.
        title_key: The collection's, for objects that carry no title of this package's: LlamaIndex
            nodes. See ``title_key_of``.

    Returns:
        None for a row that was written by other means, and embedded as its writer does.
    """
    if DOCUMENT not in metadata:
        return None
    title = metadata.get(TITLE)
    if title is None and title_key is not None:
        title = title_of(metadata, title_key)
    return text, title


def title_key_of(metadata: Metadata | None) -> str | None:
    """Return the metadata key of titles in a collection of ``ChromaIndex``, from its metadata."""
    key = (metadata or {}).get(OWN + "title_key")
    return key if isinstance(key, str) else None


def split_title(content: str) -> tuple[str, str | None]:
    """Return the text and the title of a LlamaIndex node's content.

    Args:
        content: A node in ``MetadataMode.EMBED``. ``GemmaTitles`` leaves the mark ``TITLE`` as the
            only metadata in it, so it begins with a line of that name.
    """
    head, _, text = content.partition("\n\n")
    title = head.removeprefix(f"{TITLE}: ")
    return (content, None) if title == head else (text, title)


def plain(value: Any) -> Any:
    """Return a value with NumPy scalars as Python's and dates as ISO 8601 strings."""
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        # Chroma gives -0.0 back as 0.0.
        return value + 0.0
    return value.isoformat() if isinstance(value, (date, time)) else value


def label(item: object) -> str | None:
    """Name an item for messages, its document first, whatever else is wrong with it."""
    if isinstance(item, Mapping):
        known = {each.name for each in fields(Passage)} & set(item)
        item = Passage(**({"text": ""} | {name: item[name] for name in known}))
    if not isinstance(item, Passage):
        return None
    metadata = item.metadata if isinstance(item.metadata, Mapping) else {}
    name = replace(item, metadata=metadata).source or item.id
    return None if name is None else str(name).encode(errors="replace").decode()


def checked_passage(item: Passage | Mapping[str, Any]) -> Passage:
    """Return a passage whose parts have the right types.

    Args:
        item: A passage, or a mapping with its fields.

    Raises:
        InvalidInput: If a field is missing, unknown or of another type.
        ConfigurationError: If it is a framework's object: all are then, and none becomes a row.
    """
    if isinstance(item, Mapping):
        known = [each.name for each in fields(Passage)]
        unknown = sorted(map(str, set(item) - set(known)))
        if unknown or "text" not in item:
            what = f"has unknown fields {unknown}" if unknown else "has no text"
            raise InvalidInput(f"the passage {what}; it takes {', '.join(known)}")
        item = Passage(**item)
    if not isinstance(item, Passage):
        said = f"expected a Passage or a mapping, got {type(item).__name__}"
        for mark, package in _FRAMEWORKS.items():
            if hasattr(item, mark):
                raise ConfigurationError(f"{said}: pass {package}.passages(...) of these objects")
        raise InvalidInput(said)
    if not isinstance(item.text, str):
        raise InvalidInput(f"the text is {type(item.text).__name__}, not str")
    _check_unicode(item.text, "the text")
    for what, value in (("id", item.id), ("document", item.document)):
        if value is not None:
            if not isinstance(value, str) or not value:
                raise InvalidInput(f"the {what} {value!r} is not a non-empty str")
            _check_unicode(value, f"the {what}")
    metadata = _checked_metadata(item.metadata)
    # Before this package's own key is left out: a retrieved passage stays in its document.
    source = replace(item, metadata=item.metadata or {}).source
    return replace(item, document=source, metadata=metadata, extra=_checked_metadata(item.extra))


def _checked_metadata(metadata: Metadata | None) -> Metadata:
    if not isinstance(metadata, (Mapping, type(None))):
        raise InvalidInput(f"the metadata is {type(metadata).__name__}, not a mapping")
    kept = {}
    for name, given in (metadata or {}).items():
        if not isinstance(name, str) or not name or name.startswith(_RESERVED):
            raise InvalidInput(
                f"the metadata key {name!r} is reserved or not a non-empty str: rename it"
            )
        _check_unicode(name, "a metadata key")
        value = plain(given)
        if value is None or (isinstance(value, list) and not value) or name.startswith(OWN):
            continue
        values = value if isinstance(value, list) else [value]
        kinds = {type(each) for each in values}
        if len(kinds) != 1 or not issubclass(next(iter(kinds)), _KINDS):
            names = " and ".join(sorted(map(_kind, kinds)))
            raise InvalidInput(
                f"metadata {name!r} is {'a list of ' * isinstance(value, list)}{names}; use str, "
                "int, float, bool or a list of one of these kinds, write it out by str() or "
                "json.dumps(), or leave it out (LangChain: filter_complex_metadata)"
            )
        for each in values:
            _check_value(each, f"metadata {name!r}")
        kept[name] = value
    return kept


def _kind(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _check_value(value: str | float, what: str) -> None:
    if isinstance(value, str):
        _check_unicode(value, what)
    elif isinstance(value, float) and not math.isfinite(value):
        # Chroma drops the row's metadata for one, and a list with one kills the collection.
        raise InvalidInput(f"{what} is not a finite number: use None")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidInput(f"{what} does not fit in 64 bits: use a str")


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{what} has a lone surrogate at position {error.start}, which is not Unicode text; "
            "decode its source with errors='replace'"
        ) from None
