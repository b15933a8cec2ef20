"""Token ids of any number of texts, a page at a time: memory does not grow with the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gemma_embed.runtimes.base import TooLong
from gemma_embed.runtimes.local.beginnings import longest_read, token_ids

# Enough for batches of like lengths; a page's ids take some 10 MB at most.
_TEXTS = 1024
_CHARACTERS = 1_000_000

Tokenize = Callable[[Sequence[str]], list[list[int]]]


def token_pages(
    tokenize: Tokenize, texts: Sequence[str], limit: int, *, truncate: bool
) -> Iterator[dict[int, list[int]] | TooLong]:
    """Tokenize texts page by page.

    Args:
        tokenize: Gives ids, special tokens included.
        texts: Of any length and number.
        limit: Tokens that the model reads.
        truncate: Whether of a text with more the first are read, and the closing one.

    Yields:
        Texts that are too long, before any page where that is possible; then pages: for each row
        its ids, at most ``limit``.
    """
    pages = list(_pages(range(len(texts)), texts, limit))
    refused: set[int] = set()
    if len(pages) > 1 and not truncate:
        # Hours of work on the pages before are not lost to a text at the end.
        suspects = [row for row, text in enumerate(texts) if _most_tokens(text) > limit]
        for rows in _pages(suspects, texts, limit):
            for row, ids, whole in _read(tokenize, rows, texts, limit):
                if len(ids) > limit:
                    refused.add(row)
                    yield TooLong(row, len(ids) if whole else None)
    for rows in pages:
        page: dict[int, list[int]] = {}
        kept = [row for row in rows if row not in refused]
        for row, ids, whole in _read(tokenize, kept, texts, limit):
            if len(ids) <= limit:
                page[row] = ids
            elif truncate:
                # The right end goes, the closing token stays: what the reference does.
                page[row] = [*ids[: limit - 1], ids[-1]]
            else:
                yield TooLong(row, len(ids) if whole else None)
        if page:
            yield page


def _read(
    tokenize: Tokenize, rows: Sequence[int], texts: Sequence[str], limit: int
) -> Iterator[tuple[int, list[int], bool]]:
    ids, whole = token_ids(tokenize, [texts[row] for row in rows], limit)
    return zip(rows, ids, whole, strict=True)


def _pages(rows: Sequence[int], texts: Sequence[str], limit: int) -> Iterator[list[int]]:
    page: list[int] = []
    characters = 0
    for row in rows:
        size = min(len(texts[row]), longest_read(limit))
        if page and (len(page) == _TEXTS or characters + size > _CHARACTERS):
            yield page
            page, characters = [], 0
        page.append(row)
        characters += size
    if page:
        yield page


def _most_tokens(text: str) -> int:
    # A token is at least a byte; a blank is read as "▁", of three; <bos> and <eos> are put round.
    return len(text.encode()) + 2 * text.count(" ") + 2
