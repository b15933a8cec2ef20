"""Gemma's vocabulary in a GGUF file, made from a ``tokenizer.json`` and read back into one.

llama.cpp has no list of merges for this kind of vocabulary (``tokenizer.ggml.model`` "llama"): it
merges neighbours to the entry of the highest score, whatever pair it is made of. So a tokenizer
can be written only if its merges are all pairs that make an entry, in the order of the entries.
Types and scores follow llama.cpp's converter (``convert_hf_to_gguf.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_fast.bpe import is_known
from gemma_fast.errors import Unsupported

_BLANK = "▁"
NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
_ADDED_SCORE = -1000.0
_UNUSED_SCORE = -10000.0
_BYTE = re.compile("<0x[0-9A-F]{2}>")
# Added tokens that a tokenizer.json calls ordinary, and the converter control tokens.
_LOOKS_SPECIAL = re.compile(r"<mask>|<unused\d+>")


@dataclass(frozen=True)
class Vocabulary:
    """The entries, by id.

    Attributes:
        tokens: Their text.
        types: What each is, in llama.cpp's numbers.
        scores: Of two merges the one to the entry with the higher score comes first.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]

    @classmethod
    def of(cls, state: Mapping[str, Any], size: int) -> Vocabulary:
        """Convert a tokenizer.

        Args:
            state: A parsed ``tokenizer.json``.
            size: Rows of the embedding table; entries beyond them are left out.

        Raises:
            Unsupported: If llama.cpp would split texts into other tokens.
            KeyError, TypeError, ValueError: If it is damaged.
        """
        if not is_known(state):
            raise Unsupported("the tokenizer is of another kind than Gemma's")
        entries: dict[str, int] = state["model"]["vocab"]
        added = {token["content"]: token for token in state["added_tokens"]}
        _check_merges(state["model"]["merges"], entries, added)
        # As the converter does for rows without an entry.
        tokens = [f"[PAD{number}]" for number in range(size)]
        types, scores = [UNUSED] * size, [_UNUSED_SCORE] * size
        first = min(
            number
            for entry, number in entries.items()
            if entry not in added and not _BYTE.fullmatch(entry)
        )
        for entry, number in entries.items():
            if number < size:
                is_byte = _BYTE.fullmatch(entry) is not None
                tokens[number] = entry
                types[number] = BYTE if is_byte else NORMAL
                scores[number] = 0.0 if is_byte else float(first - number)
        for content, token in added.items():
            if (number := token["id"]) < size:
                special = token["special"] or _LOOKS_SPECIAL.fullmatch(content)
                # A control token is looked for as it is, any other in the text as it was sent.
                tokens[number] = content if special else content.replace(_BLANK, " ")
                types[number] = CONTROL if special else USER_DEFINED
                scores[number] = _ADDED_SCORE
        return cls(tokens, types, scores)

    def state(self, before: int, after: int) -> dict[str, Any]:
        """Return a ``tokenizer.json`` that splits texts as the one that this was made of.

        Args:
            before: Id of the token that starts every text.
            after: Id of the one that ends it.
        """
        contents = [
            token.replace(" ", _BLANK) if kind == USER_DEFINED else token
            for token, kind in zip(self.tokens, self.types, strict=True)
        ]
        entries = {content: number for number, content in enumerate(contents)}

        def rank(pair: tuple[str, str]) -> tuple[float, int, int]:
            """As Hugging Face's converter ranks them: added ones first, of equals the longest."""
            number = entries["".join(pair)]
            score = 0.0 if self.types[number] == USER_DEFINED else self.scores[number]
            return -score, -len(pair[0]), -len(pair[1])

        merges = sorted(_pairs(entries), key=rank)
        added = [
            {
                "id": number,
                "content": contents[number],
                "special": kind == CONTROL and not _LOOKS_SPECIAL.fullmatch(contents[number]),
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            }
            for number, kind in enumerate(self.types)
            if kind in (CONTROL, USER_DEFINED)
        ]
        around = {contents[number]: {"ids": [number]} for number in (before, after)}
        return {
            "model": {"type": "BPE", "byte_fallback": True, "vocab": entries, "merges": merges},
            "added_tokens": added,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": contents[before]}},
                    {"Sequence": {"id": "A"}},
                    {"SpecialToken": {"id": contents[after]}},
                ],
                "special_tokens": around,
            },
        }


def _pairs(entries: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    for entry in entries:
        for place in range(1, len(entry)):
            left, right = entry[:place], entry[place:]
            if left in entries and right in entries:
                yield left, right


def _check_merges(
    merges: Sequence[Any], entries: Mapping[str, int], added: Mapping[str, object]
) -> None:
    listed = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    results = [left + right for left, right in listed]
    # Added tokens are cut out of a text before anything is merged.
    numbers = [entries[result] for result in results if result not in added]
    if numbers != sorted(numbers) or set(listed) != set(_pairs(entries)):
        raise Unsupported(
            "the tokenizer's merges are not all pairs of its vocabulary in the vocabulary's order, "
            "and llama.cpp would use these"
        )
