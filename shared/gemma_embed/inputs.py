"""Checks on what callers hand in, before any model work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gemma_embed.errors import InvalidInput


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list.

    An empty text is valid: it is embedded as its prompt alone, on every runtime alike, since
    frameworks hand over empty chunks routinely.

    Raises:
        InvalidInput: For a single str, bytes, a mapping or a non-iterable in place of a list; for
            an item that is not a str; for a text that UTF-8 cannot encode (a lone surrogate).
    """
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        raise InvalidInput(f"expected a list of texts, got {type(texts).__name__}: pass [text]")
    items = list(texts)
    for index, item in enumerate(items):
        _check_text(item, "the text", index)
    return items


def checked_titles(
    titles: Iterable[str | None] | None, count: int, task: str
) -> Sequence[str | None]:
    """Return one title, or None, for each text.

    Raises:
        InvalidInput: If titles come with a task other than ``document``, if there are more or
            fewer than texts, or if one is neither a str nor None.
    """
    if titles is None:
        return [None] * count
    if task != "document":
        raise InvalidInput(f"only documents have titles, the task here is {task!r}")
    if isinstance(titles, (str, bytes, Mapping)) or not isinstance(titles, Iterable):
        raise InvalidInput(f"expected a list of titles, got {type(titles).__name__}")
    items = list(titles)
    if len(items) != count:
        raise InvalidInput(f"{len(items)} titles for {count} texts: pass None where there is none")
    for index, item in enumerate(items):
        if item is not None:
            _check_text(item, "its title", index)
    return items


def _check_text(item: object, what: str, index: int) -> None:
    if not isinstance(item, str):
        raise InvalidInput(f"{what} is {type(item).__name__}, not str", index=index)
    if item.isascii():
        return
    try:
        item.encode()
    except UnicodeEncodeError as error:
        # The cause is dropped on purpose: UnicodeEncodeError carries the text.
        reason = f"{what} has a lone surrogate at position {error.start}"
        raise InvalidInput(
            f"{reason}, which is not Unicode text; decode its source with errors='replace'",
            index=index,
        ) from None
