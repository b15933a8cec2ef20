"""Gemma's tokenizer on memory-mapped arrays: byte-pair encoding in a few megabytes.

Hugging Face's ``tokenizers`` takes 250 MB and more for a vocabulary of 262,144 entries, more than
the rest of a quantised model. What the algorithm needs is stored in sorted arrays: the ids of
single characters, and for each pair of ids that can be merged its rank and result.

It follows what ``tokenizers`` documents for this kind of ``tokenizer.json``: added tokens are cut
out of the text, blanks become "▁", characters without an entry become their UTF-8 bytes, and
neighbours are merged, the lowest rank first and the leftmost among equals.
"""

from __future__ import annotations

import heapq
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_fast.errors import Unsupported

_BLANK = "▁"
# Where one word, with the blanks before it, ends and the next one starts. Words are encoded one by
# one and cached, because almost no merge crosses from one into the next: Gemma has one, ">▁</".
_BOUNDARY = re.compile(f"(?<=[^{_BLANK}])(?={_BLANK})")
_CACHED_WORDS = 8192
# The words of a text are found with a pattern of all merges that cross.
_MOST_CROSSING = 100
_ARRAYS = ("characters", "character_ids", "pairs", "ranks", "results")
_REST = "tokenizer.json"


class BpeTokenizer:
    """Byte-pair encoding with byte fallback."""

    def __init__(self, folder: Path) -> None:
        """Open what ``write_arrays`` wrote."""
        characters, character_ids, pairs, ranks, results = (
            memoryview(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _ARRAYS
        )
        self._characters, self._character_ids = characters, character_ids
        self._pairs, self._ranks, self._results = pairs, ranks, results
        rest = json.loads((folder / _REST).read_text(encoding="utf-8"))
        self._bytes: list[int] = rest["bytes"]
        self._before: list[int] = rest["before"]
        self._after: list[int] = rest["after"]
        # None for a special token: found, so that no other starts inside it, and left as text.
        self._added: dict[str, int | None] = rest["added"]
        # By first character the lengths, longest first: thousands of tokens have a dozen lengths.
        self._lengths: dict[str, list[int]] = {}
        for first, length in sorted({(text[0], len(text)) for text in self._added}, reverse=True):
            self._lengths.setdefault(first, []).append(length)
        firsts = "".join(map(re.escape, self._lengths))
        self._starts = re.compile(f"[{firsts}]") if firsts else None
        self._words = _words(rest["crossing"])
        self._cached = lru_cache(_CACHED_WORDS)(self._merged)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included, however many."""
        return [[*self._before, *self._encoded(text), *self._after] for text in texts]

    def _encoded(self, text: str) -> Iterator[int]:
        begun = 0
        for start, end, number in self._found(text):
            yield from self._segment(text[begun:start])
            yield number
            begun = end
        yield from self._segment(text[begun:])

    def _found(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Find added tokens: the leftmost, and the longest of those."""
        place = 0
        while self._starts and (match := self._starts.search(text, place)):
            start = match.start()
            place = start + 1
            for length in self._lengths[text[start]]:
                content = text[start : start + length]
                if content in self._added:
                    place = start + length
                    number = self._added[content]
                    if number is not None:
                        yield start, place, number
                    break

    def _segment(self, text: str) -> Iterator[int]:
        for word in self._words.findall(text.replace(" ", _BLANK)):
            # In a script without blanks a word can be a paragraph, which is unlikely to come again.
            yield from self._cached(word) if len(word) <= 32 else self._merged(word)

    def _merged(self, word: str) -> list[int]:
        ids = list(self._symbols(word))
        count = len(ids)
        following = list(range(1, count + 1))
        preceding = list(range(-1, count - 1))
        # What the pair that begins here becomes now; an older entry of the queue is skipped.
        becomes = [-1] * count
        queue: list[tuple[int, int, int]] = []

        def look(place: int) -> None:
            becomes[place] = -1
            other = following[place]
            if other < count:
                key = ids[place] << 32 | ids[other]
                found = bisect_left(self._pairs, key)
                if found < len(self._pairs) and self._pairs[found] == key:
                    becomes[place] = self._results[found]
                    heapq.heappush(queue, (self._ranks[found], place, becomes[place]))

        for place in range(count):
            look(place)
        while queue:
            _, place, result = heapq.heappop(queue)
            if becomes[place] != result:
                continue
            gone = following[place]
            ids[place], ids[gone], becomes[gone] = result, -1, -1
            following[place] = following[gone]
            if following[gone] < count:
                preceding[following[gone]] = place
            look(place)
            if preceding[place] >= 0:
                look(preceding[place])
        return [number for number in ids if number >= 0]

    def _symbols(self, word: str) -> Iterator[int]:
        for character in word:
            code = ord(character)
            found = bisect_left(self._characters, code)
            if found < len(self._characters) and self._characters[found] == code:
                yield self._character_ids[found]
            else:
                yield from (self._bytes[byte] for byte in character.encode())


def write_arrays(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a tokenizer's arrays.

    Args:
        folder: Where; exists.
        state: A parsed ``tokenizer.json``.

    Raises:
        Unsupported: If it is of another kind than ``BpeTokenizer`` encodes; nothing is written.
        KeyError, TypeError, ValueError: If it is damaged.
    """
    model, added = state["model"], state["added_tokens"]
    around = _around(state.get("post_processor"))
    if around is None or not is_known(state):
        raise Unsupported("the tokenizer is of another kind than Gemma's")
    vocabulary: dict[str, int] = model["vocab"]
    merges = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]
    ]
    crossing = sorted({a + b for a, b in merges if _BOUNDARY.search(a + b)})
    if len(crossing) > _MOST_CROSSING:
        raise Unsupported("the tokenizer merges across words")
    # A pair that is listed twice has its last rank.
    table = {
        vocabulary[left] << 32 | vocabulary[right]: (rank, vocabulary[left + right])
        for rank, (left, right) in enumerate(merges)
    }
    keys = sorted(table)
    single = sorted((ord(entry), number) for entry, number in vocabulary.items() if len(entry) == 1)
    columns: dict[str, npt.NDArray[Any]] = {
        "characters": np.array([code for code, _ in single], np.uint32),
        "character_ids": np.array([number for _, number in single], np.uint32),
        "pairs": np.array(keys, np.uint64),
        "ranks": np.array([table[key][0] for key in keys], np.uint32),
        "results": np.array([table[key][1] for key in keys], np.uint32),
    }
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    rest = {
        "bytes": [vocabulary[f"<0x{byte:02X}>"] for byte in range(256)],
        "before": around[0],
        "after": around[1],
        "added": {token["content"]: None if token["special"] else token["id"] for token in added},
        "crossing": crossing,
    }
    (folder / _REST).write_text(json.dumps(rest), encoding="utf-8")


def _words(crossing: Sequence[str]) -> re.Pattern[str]:
    """Return the pattern of a word with the blanks before it.

    Words between which one of the entries in ``crossing`` lies are found as one: whatever merges
    across that boundary ends up within such an entry.
    """
    joints = "|".join(
        f"(?<={re.escape(entry[: place.start()])})(?={re.escape(entry[place.start() :])})"
        for entry in crossing
        for place in _BOUNDARY.finditer(entry)
    )
    more = f"(?:(?:{joints}){_BLANK}+[^{_BLANK}]*)*" if joints else ""
    return re.compile(f"{_BLANK}*[^{_BLANK}]+{more}|{_BLANK}+")


def is_known(state: Mapping[str, Any]) -> bool:
    """Tell whether a parsed ``tokenizer.json`` is of Gemma's kind."""
    model = state["model"]
    plain = ("single_word", "lstrip", "rstrip", "normalized")
    return (
        model.get("type") == "BPE"
        and model.get("byte_fallback") is True
        and not any(
            model.get(name)
            for name in (
                "dropout",
                "continuing_subword_prefix",
                "end_of_word_suffix",
                "ignore_merges",
            )
        )
        and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
        and state.get("normalizer")
        == {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
        and state.get("pre_tokenizer")
        in (
            None,
            # Finds nothing to split at: blanks are gone by then.
            {
                "type": "Split",
                "pattern": {"String": " "},
                "behavior": "MergedWithPrevious",
                "invert": False,
            },
        )
        and not any(token[name] for token in state["added_tokens"] for name in plain)
        and all(token["content"] for token in state["added_tokens"])
    )


def _around(processor: Any) -> tuple[list[int], list[int]] | None:
    """Return the ids before and after a text, or None if it is not as simple as that."""
    if not isinstance(processor, dict) or processor.get("type") != "TemplateProcessing":
        return None
    before: list[int] = []
    after: list[int] = []
    now = before
    for piece in processor["single"]:
        if "Sequence" in piece:
            now = after
        else:
            now += processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return before, after
