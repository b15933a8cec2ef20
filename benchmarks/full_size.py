"""A checkpoint with all sizes of EmbeddingGemma 300M, for measuring speed and memory.

Google's weights are gated, and speed does not depend on their values: these are random, at the
scale of the model's initialisation. The tokenizer has 262,144 entries like the real one's, in the
order of a SentencePiece model (every way to build an entry from two others is a merge), so it takes
the same time and memory. Entries beyond the words of the example notes are made up.

Run: PYTHONPATH=tests python benchmarks/full_size.py FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import checkpoints

# Sizes: config.json of google/embeddinggemma-300m.
FULL_SIZE = checkpoints.Shape(
    hidden=768,
    layers=24,
    heads=3,
    head_dim=256,
    intermediate=1152,
    dense=3072,
    vocabulary=262_144,
)

_TRAINED = 16_000
_LONGEST_ENTRY = 16
# Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana, Chinese, Hangul, faces.
_SCRIPTS = (
    (0x20, 0x530),
    (0x5D0, 0x5EB),
    (0x620, 0x660),
    (0x900, 0x980),
    (0xE00, 0xE60),
    (0x2010, 0x2060),
    (0x3040, 0x3100),
    (0x4E00, 0x9FA0),
    (0xAC00, 0xD7A4),
    (0x1F600, 0x1F650),
)


def build(folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint (1.3 GB), if it does not exist yet."""
    if not (folder / "3_Dense" / "model.safetensors").is_file():
        tokenizer = tokenizer_json(FULL_SIZE.vocabulary, seed)
        checkpoints.build(folder, FULL_SIZE, scale=0.02, seed=seed, tokenizer=tokenizer)
    return folder


def tokenizer_json(vocabulary: int, seed: int) -> str:
    """Return a tokenizer.json with exactly this many entries."""
    state = json.loads(checkpoints.tokenizer_json(_TRAINED))
    entries: dict[str, int] = state["model"]["vocab"]
    for first, end in _SCRIPTS:
        for code in range(first, end):
            # A blank reaches the model as "▁".
            if chr(code) not in entries and chr(code) != " ":
                entries[chr(code)] = len(entries)
    _make_up(entries, vocabulary, random.Random(seed))
    state["model"]["merges"] = list(_merges(entries))
    return json.dumps(state, ensure_ascii=False)


def _make_up(entries: dict[str, int], vocabulary: int, source: random.Random) -> None:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    # With all pairs, an entry can be built in several ways, as in the real tokenizer.
    for first in letters:
        for second in letters:
            entries.setdefault(first + second, len(entries))
    latin = [entry for entry in entries if entry.removeprefix("▁").isascii()]
    latin = [entry for entry in latin if entry.removeprefix("▁").isalpha()]
    others = [entry for entry in entries if len(entry) == 1 and not entry.isascii()]
    while len(entries) < vocabulary:
        # As in the real tokenizer, an entry may begin a word but never extends into the next.
        if source.random() < 0.75:
            entry = source.choice(latin) + source.choice(letters)
            longer = latin
        else:
            entry = source.choice(others) + source.choice(others).strip("▁")
            longer = others
        if len(entry) <= _LONGEST_ENTRY and entry not in entries:
            entries[entry] = len(entries)
            longer.append(entry)


def _merges(entries: dict[str, int]) -> Iterator[tuple[str, str]]:
    for entry in sorted(entries, key=entries.__getitem__):
        if entry.startswith("<"):
            continue
        ways = [(entry[:cut], entry[cut:]) for cut in range(1, len(entry))]
        known = [way for way in ways if way[0] in entries and way[1] in entries]
        yield from sorted(known, key=lambda way: (entries[way[0]], entries[way[1]]))


def main() -> None:
    """Write the checkpoint and print its folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(build(options.folder, options.seed))


if __name__ == "__main__":
    main()
