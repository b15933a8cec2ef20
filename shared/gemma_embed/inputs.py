"""Checks on what callers hand in, before any model work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from gemma_embed.errors import InvalidInput

Item = TypeVar("Item")

# Iterable, but not texts in an order.
_NOT_LISTS = (str, bytes, bytearray, memoryview, Mapping, set, frozenset)


def checked_texts(texts: Iterable[str], start: int = 0) -> list[str]:
    """Return the texts as a list; errors count from ``start``.

    An empty text is valid: it is embedded as its prompt alone, on every runtime alike, since
    frameworks hand over empty chunks routinely.

    Raises:
        InvalidInput: As ``texts_in_order``; for an item that is not a str; for a text that UTF-8
            cannot encode (a lone surrogate).
    """
    return [
        _checked_text(item, "the text", index)
        for index, item in enumerate(texts_in_order(texts), start)
    ]


def texts_in_order(texts: Iterable[str]) -> Iterator[str]:
    """Return the texts one by one, none of them checked.

    Raises:
        InvalidInput: For a single str, bytes, a mapping, a set, a table or a non-iterable in place
            of a list.
    """
    return _in_order(texts, "texts", "pass [text], or one column of a table")


def titles_in_order(titles: Iterable[str | None], task: str) -> Iterator[str | None]:
    """Return the titles one by one, none of them checked.

    Raises:
        InvalidInput: If titles come with a task other than ``document``, or are no list.
    """
    if task != "document":
        raise InvalidInput(f"only documents have titles, the task here is {task!r}")
    return _in_order(titles, "titles", "pass one, or None, for each text")


def checked_titles(
    titles: Iterable[str | None] | None, count: int, task: str, start: int = 0
) -> Sequence[str | None]:
    """Return one title, or None, for each text.

    Raises:
        InvalidInput: If titles come with a task other than ``document``, if there are more or
            fewer than texts, or if one is neither a str nor None.
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


def _in_order(given: Iterable[Item], what: str, advice: str) -> Iterator[Item]:
    # A data frame gives the names of its columns one by one.
    if not isinstance(given, _NOT_LISTS) and not hasattr(given, "iterrows"):
        try:
            return iter(given)
        except TypeError:
            # None, a number, an array without dimensions: refused below.
            pass
    raise InvalidInput(f"expected a list of {what}, got {type(given).__name__}: {advice}")


def _checked_text(item: object, what: str, index: int) -> str:
    if not isinstance(item, str):
        raise InvalidInput(f"{what} is {type(item).__name__}, not str", index=index)
    # A subclass may define its own addition, escaping the prompt say.
    text = str.__str__(item)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # The cause is dropped on purpose: UnicodeEncodeError carries the text.
        reason = f"{what} has a lone surrogate at position {error.start}"
        raise InvalidInput(
            f"{reason}, which is not Unicode text; decode its source with errors='replace'",
            index=index,
        ) from None
    return text
