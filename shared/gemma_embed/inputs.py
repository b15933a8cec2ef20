"""Checks of texts and titles, before any model work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from gemma_embed.errors import InvalidInput

Item = TypeVar("Item")

# Iterable, but not a list of texts.
_NOT_LISTS = (str, bytes, bytearray, memoryview, Mapping, set, frozenset)


def checked_texts(texts: Iterable[str], start: int = 0) -> list[str]:
    """Return the texts as a list; errors count from ``start``.

    An empty text is valid, since frameworks pass empty chunks routinely: every runtime embeds its
    prompt alone.

    Raises:
        InvalidInput: As ``texts_in_order``; if an item is not a str, or cannot be encoded in UTF-8
            (a lone surrogate).
    """
    return [
        _checked_text(item, "the text", index)
        for index, item in enumerate(texts_in_order(texts), start)
    ]


def texts_in_order(texts: Iterable[str]) -> Iterator[str]:
    """Return the texts one by one, unchecked.

    Raises:
        InvalidInput: If it is a single str, bytes, a mapping, a set, a table or not iterable.
    """
    return _in_order(texts, "texts", "pass [text], or one column of a table")


def titles_in_order(titles: Iterable[str | None], task: str) -> Iterator[str | None]:
    """Return the titles one by one, unchecked.

    Raises:
        InvalidInput: If the task is not ``document``, or the titles are not a list.
    """
    if task != "document":
        raise InvalidInput(f"only documents have titles, the task here is {task!r}")
    return _in_order(titles, "titles", "pass one, or None, for each text")


def checked_titles(
    titles: Iterable[str | None] | None, count: int, task: str, start: int = 0
) -> Sequence[str | None]:
    """Return one title, or None, for each text.

    Raises:
        InvalidInput: If the task is not ``document``, if there are more or fewer titles than
            texts, or if a title is neither a str nor None.
    """
    if titles is None:
        return [None] * count
    items = list(titles_in_order(titles, task))
    if len(items) != count:
        raise InvalidInput(f"{len(items)} titles for {count} texts: pass None for a text without")
    return [
        None if item is None else _checked_text(item, "its title", index)
        for index, item in enumerate(items, start)
    ]


def items_in_order(items: Iterable[Item], what: str) -> Iterator[Item]:
    """Return the items one by one, unchecked.

    Raises:
        InvalidInput: As ``texts_in_order``.
    """
    return _in_order(items, what, "pass a list, or a generator")


def _in_order(given: Iterable[Item], what: str, advice: str) -> Iterator[Item]:
    # Iterating over a data frame gives the names of its columns.
    if not isinstance(given, _NOT_LISTS) and not hasattr(given, "iterrows"):
        try:
            return iter(given)
        except TypeError:
            # None, a number, an array without dimensions: refused below.
            pass
    raise InvalidInput(f"expected a list of {what}, got {type(given).__name__}: {advice}")


def _checked_text(item: object, what: str, index: int) -> str:
    if not isinstance(item, str):
        said = f"{what} is {type(item).__name__}, not str"
        for part in ("page_content", "get_content()"):
            if hasattr(item, part.removesuffix("()")):
                said += f"; pass its .{part}"
        raise InvalidInput(said, index=index)
    # A subclass may define its own addition, for example one that escapes the prompt.
    text = str.__str__(item)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Raised from None: UnicodeEncodeError quotes the text.
        reason = f"{what} has a lone surrogate at position {error.start}"
        raise InvalidInput(
            f"{reason}, which is not Unicode text; decode its source with errors='replace'",
            index=index,
        ) from None
    return text
