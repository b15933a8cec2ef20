"""The forward pass as transformers computes it, padded: the reference for the packed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.func import functional_call
from torch.nn.functional import linear, normalize

from gemma_embed.errors import WrongModel
from gemma_embed.models import Model


class StockForward:
    """Token ids in, vectors out. Not safe for several threads at once."""

    padded = True

    def __init__(self, backbone: Any, dense: Sequence[torch.Tensor]) -> None:
        """Take a loaded network.

        Args:
            backbone: The text network, as transformers computes it.
            dense: Weights of the Dense layers, in order, on its device and in its type.
        """
        self.backbone = backbone
        self.dense = dense
        self._device = backbone.embed_tokens.weight.device

    @torch.inference_mode()
    def __call__(
        self, tokens: Sequence[Sequence[int]], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Compute one batch: float32, shape (len(tokens), width), rows of norm 1.

        Args:
            tokens: Ids of each text.
            dtype: Type of the arithmetic, and of copies of the layers' weights for the time of this
                call; None for the loaded one.
        """
        hidden, mask = self._hidden(tokens, dtype)
        # The mean in float32: in bfloat16 a sum over 2,048 tokens loses the small ones.
        weights = mask.unsqueeze(-1).float()
        pooled = (hidden.float() * weights).sum(1) / weights.sum(1)
        for layer in self.dense:
            pooled = linear(pooled.to(hidden.dtype), layer.to(hidden.dtype))
        return normalize(pooled.float(), dim=1)

    @torch.inference_mode()
    def check_bidirectional(self, model: Model) -> None:
        """Check that tokens see those after them.

        Raises:
            WrongModel: If they do not.
        """
        # The numbers tell, whatever the version: if only the last token differs and the first
        # one's state does not, attention is causal.
        bos, eos = model.bos, model.eos
        hidden, _ = self._hidden([[bos, bos, bos, bos], [bos, bos, bos, eos]])
        if torch.equal(hidden[0, 0], hidden[1, 0]):
            raise WrongModel(
                "this build of transformers runs the model with causal attention, which silently "
                "ruins retrieval; run: pip install -U 'transformers>=5,<6'"
            )

    def _hidden(
        self, tokens: Sequence[Sequence[int]], dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, tokens))
        ids = torch.zeros(len(tokens), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        # Embedded here: rounding the entire table for a few texts would cost 400 MB.
        states = self.backbone.embed_tokens(ids)
        weights = {}
        if dtype not in (None, states.dtype):
            states = states.to(dtype)
            weights = {
                name: weight.to(dtype)
                for name, weight in self.backbone.named_parameters()
                if weight is not self.backbone.embed_tokens.weight
            }
        inputs = {"inputs_embeds": states, "attention_mask": mask, "use_cache": False}
        output = functional_call(self.backbone, weights, (), inputs)
        return output.last_hidden_state, mask
