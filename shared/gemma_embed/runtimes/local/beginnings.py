"""Token ids of texts of any length, in a time that the model's context bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Characters for each token that the model reads: enough for all but runs of blanks and the like,
# of which more is read then.
_CHARACTERS = 64
# What lies beyond a cut may change the tokens just before it: a word's, at most.
_MARGIN = 128


def longest_read(limit: int) -> int:
    """Characters of a text that are read to begin with, for a model of so many tokens."""
    return limit * _CHARACTERS


def token_ids(
    tokenize: Callable[[Sequence[str]], list[list[int]]], texts: Sequence[str], limit: int
) -> tuple[list[list[int]], list[bool]]:
    """Tokenize texts; of one far too long, only as much as shows that it is.

    A text of a megabyte takes a second to tokenize, and its first 2,048 tokens a few milliseconds.

    Args:
        tokenize: Gives ids, special tokens included.
        texts: Of any length.
        limit: Tokens that the model reads.

    Returns:
        The ids of each text, and whether they are all of them. Where they are not, there are more
        than ``limit``, and the first ``limit`` are those of the whole text.
    """
    longest = longest_read(limit)
    ids = tokenize([text[:longest] for text in texts])
    whole = [len(text) <= longest for text in texts]
    for row, text in enumerate(texts):
        read = longest
        while not whole[row] and len(ids[row]) <= limit + _MARGIN:
            read *= 4
            (ids[row],) = tokenize([text[:read]])
            whole[row] = len(text) <= read
    return ids, whole
