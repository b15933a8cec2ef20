"""Token ids of any number of texts of any length, a page at a time.

Memory does not grow with the corpus, and the time for a text is bounded by the model's context: of
one far too long only as much is tokenized as shows that it is. A text of a megabyte would take a
second; its first 2,048 tokens take a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemma_embed.runtimes.base import TooLong
from gemma_embed.runtimes.local.tokenizer import Tokenizer

# A page: enough for batches of texts of like length; its ids take some 10 MB at most.
_TEXTS = 1024
_CHARACTERS = 1_000_000
# Characters read for each token of the context: enough for all but runs of blanks and the like, of
# which more is read then.
_CHARACTERS_A_TOKEN = 64
# What lies beyond a cut may change the tokens just before it: a word's, at most.
_MARGIN = 128

Row = tuple[int, list[int] | TooLong]


def token_pages(
    tokenize: Tokenizer, texts: Sequence[str], limit: int, *, truncate: bool
) -> Iterator[dict[int, list[int]] | TooLong]:
    """Tokenize texts page by page.

    Args:
        tokenize: Gives each text's ids, special tokens included.
        texts: Of any length and number.
        limit: Tokens that the model reads.
        truncate: Whether of a longer text the beginning is read, with the closing token.

    Yields:
        Texts that are too long, before the first page; then pages: for each row its ids, at most
        ``limit``.
    """

    def read(rows: Sequence[int]) -> Iterator[Row]:
        """Yield each row's ids, or that there are too many."""
        longest = limit * _CHARACTERS_A_TOKEN
        for row, ids in zip(rows, tokenize([texts[row][:longest] for row in rows]), strict=True):
            length = longest
            while length < len(texts[row]) and len(ids) <= limit + _MARGIN:
                length *= 4
                (ids,) = tokenize([texts[row][:length]])
            if len(ids) <= limit:
                yield row, ids
            elif truncate:
                # The right end goes, the closing token stays: what sentence-transformers does.
                yield row, [*ids[: limit - 1], ids[-1]]
            else:
                yield row, TooLong(row, len(ids) if length >= len(texts[row]) else None)

    pages = list(_pages(range(len(texts)), texts, limit))
    refused = set()
    if len(pages) > 1 and not truncate:
        # Hours of work on the pages before are not lost to a text at the end.
        suspects = [row for row, text in enumerate(texts) if _most_tokens(text) > limit]
        for rows in _pages(suspects, texts, limit):
            for row, ids in read(rows):
                if isinstance(ids, TooLong):
                    refused.add(row)
                    yield ids
    for rows in pages:
        page = {}
        for row, ids in read([row for row in rows if row not in refused]):
            if isinstance(ids, TooLong):
                yield ids
            else:
                page[row] = ids
        if page:
            yield page


def _pages(rows: Sequence[int], texts: Sequence[str], limit: int) -> Iterator[list[int]]:
    page: list[int] = []
    characters = 0
    for row in rows:
        size = min(len(texts[row]), limit * _CHARACTERS_A_TOKEN)
        if page and (len(page) == _TEXTS or characters + size > _CHARACTERS):
            yield page
            page, characters = [], 0
        page.append(row)
        characters += size
    if page:
        yield page


def _most_tokens(text: str) -> int:
    # A token is at least a byte; a blank is read as "▁", of three; <bos> and <eos> go around.
    return len(text.encode()) + 2 * text.count(" ") + 2
