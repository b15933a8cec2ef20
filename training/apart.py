"""Keep the written texts apart from the evaluation sets: drop entries that are too similar.

The same kind of author wrote both, and sometimes used the same words for the same subject. Run this
after writing; it only removes entries.
"""

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from teacher import Teacher, sentence_vectors
from written import FOLDER, parts

SHARED_WORDS = 5
# The teacher's cosine above which two passages are mostly about the same subject.
NEAREST = 0.7


def phrases(text: str) -> set[tuple[str, ...]]:
    """All runs of `SHARED_WORDS` words."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}


def evaluation_texts(folder: Path) -> list[str]:
    """Every passage, query and sentence of the evaluation sets."""
    texts: list[str] = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        texts += [row["text"] for key in ("passages", "queries") for row in content.get(key, [])]
        texts += [pair[side] for pair in content.get("pairs", []) for side in "ab"]
    return texts


def near(texts: list[str], others: Iterable[str], teacher: Teacher) -> np.ndarray:
    """Whether each text shares a phrase or its subject with one of the others."""
    others = list(others)
    known = set().union(*map(phrases, others))
    shared = np.array([bool(phrases(text) & known) for text in texts])
    left, right = (
        sentence_vectors(teacher.states(teacher.tokenise(side))).astype(np.float32)
        for side in (texts, others)
    )
    return shared | ((left @ right.T).max(1) >= NEAREST)


def main() -> None:
    """Rewrite the files without the similar entries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=Path, default=Path(__file__).parent / "evaluation")
    args = parser.parse_args()
    teacher = Teacher()
    others = evaluation_texts(args.sets)
    for path in sorted(FOLDER.glob("*.jsonl")):
        lines = path.read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        texts = [(index, text) for index, entry in enumerate(entries) for text in parts(entry)]
        hits = near([text for _, text in texts], others, teacher)
        dropped = {index for (index, _), hit in zip(texts, hits, strict=True) if hit}
        remaining = [line for index, line in enumerate(lines) if index not in dropped]
        path.write_text("".join(f"{line}\n" for line in remaining))
        print(f"{path.name}: {len(remaining)} left, {len(dropped)} dropped")


if __name__ == "__main__":
    main()
