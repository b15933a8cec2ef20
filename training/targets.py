"""The student's targets: the teacher's vectors and token states, rotated."""

from pathlib import Path

import numpy as np
import torch
from data import Batch
from torch import Tensor


class Targets:
    """The texts that the teacher has read so far.

    Attributes:
        vectors: Unit vectors of the texts in bfloat16, one row each.
    """

    def __init__(self, path: Path, turn: np.ndarray, lengths: np.ndarray) -> None:
        """Open the files of `teacher.py`.

        Args:
            path: Its array of vectors; the token states are next to it.
            turn: Orthogonal matrix that every target is multiplied by.
            lengths: Tokens of each text as the teacher read it.

        Raises:
            ValueError: If the files belong to another corpus.
        """
        self._turn = torch.from_numpy(turn)
        self._first = torch.from_numpy(np.cumsum(lengths) - lengths)
        self._states = np.load(path.with_suffix(".states.npy"), mmap_mode="r")
        self._scales = np.load(path.with_suffix(".scales.npy"), mmap_mode="r")
        if len(self._states) != lengths.sum():
            raise ValueError(f"{path} belongs to another corpus: recreate it with teacher.py")
        done = int(path.with_suffix(".done").read_text())
        stored = np.load(path, mmap_mode="r")[:done]
        starts = range(0, done, 50_000)
        parts = [torch.from_numpy(stored[i : i + 50_000].astype(np.float32)) for i in starts]
        self.vectors = torch.cat([(part @ self._turn).bfloat16() for part in parts])

    def of_texts(self, batch: Batch) -> Tensor:
        """The teacher's vector of each text of a batch."""
        return self.vectors[torch.from_numpy(batch.rows)].float()

    def of_tokens(self, batch: Batch) -> Tensor:
        """The teacher's state for each token of a batch.

        Returns:
            One row a token, text after text, without padding. A prompt's tokens have no
            counterpart: they get the mean of the text's states, so that the mean over all tokens
            is the teacher's.
        """
        texts = batch.mask.nonzero()[:, 0]
        aligned = batch.aligned[batch.mask.bool()]
        has_state = aligned >= 0
        places = (self._first[torch.from_numpy(batch.rows)][texts] + aligned)[has_state].numpy()
        scales = torch.from_numpy(self._scales[places].astype(np.float32))
        states = (torch.from_numpy(self._states[places]) * scales[:, None]) @ self._turn
        counts = torch.bincount(texts[has_state], minlength=len(batch.rows))
        sums = torch.zeros(len(batch.rows), states.shape[1]).index_add_(0, texts[has_state], states)
        wanted = (sums / counts[:, None])[texts]
        wanted[has_state] = states
        return wanted
