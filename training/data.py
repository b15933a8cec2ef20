"""Tokenised corpus and batches: prompts as at use, neighbours in meaning side by side."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from student import BOS, EOS, PROMPTS
from tokenizers import Tokenizer
from torch import Tensor

BATCH = 256
POOL = 32 * BATCH
MAX_TOKENS = 160
OTHER_PROMPTS = (
    *sorted({*PROMPTS.values()} - {PROMPTS["query"], PROMPTS["document"]}),
    "task: question answering | query: ",
    "task: fact checking | query: ",
)
# Share of each prompt for a text without a title; the rest has none at all.
QUERY_SHARE, DOCUMENT_SHARE, OTHER_SHARE = 0.44, 0.34, 0.15
TITLED_SHARE = 0.75


class Corpus:
    """All texts as token ids, in flat arrays."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        with path.open() as file:
            rows = [json.loads(line) for line in file]
        self._texts = self._encode(tokenizer, [row["text"] for row in rows])
        self._titles = self._encode(tokenizer, [row["title"] for row in rows])
        self._prompts = {
            prompt: tokenizer.encode(prompt, add_special_tokens=False).ids
            for prompt in (*PROMPTS.values(), *OTHER_PROMPTS, "title: ", " | text: ", ".")
        }

    def _encode(self, tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        flat: list[np.ndarray] = []
        ends = [0]
        for start in range(0, len(texts), 20_000):
            chunk = texts[start : start + 20_000]
            for encoding in tokenizer.encode_batch(chunk, add_special_tokens=False):
                flat.append(np.array(encoding.ids, np.uint16))
                ends.append(ends[-1] + len(encoding.ids))
        return np.concatenate(flat), np.array(ends)

    @staticmethod
    def _row(arrays: tuple[np.ndarray, np.ndarray], index: int) -> list[int]:
        flat, ends = arrays
        return flat[ends[index] : ends[index + 1]].tolist()

    def counts(self, vocab_size: int) -> np.ndarray:
        """How often each token occurs in the texts."""
        return np.bincount(self._texts[0], minlength=vocab_size)

    def bare(self, index: int) -> list[int]:
        """Token ids of a text as the teacher read it, without BOS and EOS."""
        title = self._row(self._titles, index)
        text = self._row(self._texts, index)
        return [*title, *self._prompts["."], *text] if title else text

    def prompted(self, index: int, prompt: str | None) -> list[int]:
        """Token ids of a text under a prompt, or under the titled document prompt if None."""
        if prompt is None:
            start = self._prompts["title: "] + self._row(self._titles, index)
            body = start + self._prompts[" | text: "] + self._row(self._texts, index)
        else:
            body = (self._prompts[prompt] if prompt else []) + self.bare(index)
        return [BOS, *body[: MAX_TOKENS - 2], EOS]

    def sample(self, index: int, rng: np.random.Generator) -> list[int]:
        """Token ids of a text under a random prompt."""
        draw = rng.random()
        if self._row(self._titles, index):
            if draw < TITLED_SHARE:
                return self.prompted(index, None)
            draw = rng.random()
        if draw < QUERY_SHARE:
            return self.prompted(index, PROMPTS["query"])
        if draw < QUERY_SHARE + DOCUMENT_SHARE:
            return self.prompted(index, PROMPTS["document"])
        if draw < QUERY_SHARE + DOCUMENT_SHARE + OTHER_SHARE:
            return self.prompted(index, OTHER_PROMPTS[rng.integers(len(OTHER_PROMPTS))])
        return self.prompted(index, "")


@dataclass(frozen=True)
class Batch:
    """Texts of similar length and the rows of their teacher vectors."""

    ids: Tensor
    mask: Tensor
    rows: np.ndarray


def pad(sequences: list[list[int]], rows: np.ndarray) -> Batch:
    """Pad to a common length, a multiple of 8 so that few shapes occur."""
    length = -(-max(map(len, sequences)) // 8) * 8
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros(len(sequences), length, dtype=torch.long)
    for number, sequence in enumerate(sequences):
        ids[number, : len(sequence)] = torch.tensor(sequence)
        mask[number, : len(sequence)] = 1
    return Batch(ids, mask, rows)


def nearest_pivots(vectors: Tensor, pivots: Tensor) -> np.ndarray:
    """The nearest pivot of each vector: a cheap clustering."""
    parts = [(part @ pivots.T).argmax(-1) for part in vectors.split(20_000)]
    return torch.cat(parts).numpy()


def batches(
    corpus: Corpus, vectors: Tensor, first: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """One pass over the corpus in batches that hold several texts of each of a few topics.

    A random batch teaches little about telling neighbours apart. So texts are grouped by their
    nearest of many random texts, some dozens of groups are pooled, and the pool is cut by length.

    Args:
        corpus: The texts.
        vectors: Teacher vectors (bfloat16) of the first texts; the rest is not used yet.
        first: Texts before this one are held out.
        rng: Source of the sampling.

    Yields:
        Batches of `BATCH` texts.
    """
    count = len(vectors)
    pivots = rng.choice(np.arange(first, count), min(2000, count // 200), replace=False)
    groups = nearest_pivots(vectors[first:], vectors[torch.from_numpy(pivots)])
    order = rng.permutation(len(pivots))[groups]
    rows = first + np.lexsort((rng.random(len(groups)), order))
    starts = rng.permutation(np.arange(0, len(rows) - POOL + 1, POOL))
    for start in starts:
        pool = rows[start : start + POOL]
        sequences = [corpus.sample(int(row), rng) for row in pool]
        # The noise keeps batches from holding texts of exactly one length.
        by_length = np.argsort([len(s) * rng.uniform(0.9, 1.1) for s in sequences])
        for part in rng.permutation(by_length.reshape(-1, BATCH)):
            yield pad([sequences[i] for i in part], pool[part])
