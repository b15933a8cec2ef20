"""The network of a checkpoint, loaded and proved sound: token ids in, vectors out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gemma_embed.errors import ConfigurationError, ModelCorrupt, WrongModel
from gemma_embed.runtimes.transformers.checkpoint import Checkpoint
from gemma_embed.vectors import Vectors

if TYPE_CHECKING:
    import torch

DType = Literal["float32", "bfloat16"]


class Network:
    """Tokenizer, backbone, pooling and Dense layers. Not safe for several threads at once."""

    def __init__(self, checkpoint: Checkpoint, device: str | None, dtype: DType) -> None:
        """Load a checkpoint.

        Raises:
            ConfigurationError: If the device cannot be used.
            ModelCorrupt: If files are damaged or incomplete.
            WrongModel: If tokenizer or attention are not the model's.
        """
        # Here and not at the top: importing torch takes seconds and 200 MB.
        import torch

        self._torch = torch
        self._device = _device(device)
        self._tokenizer = _tokenizer(checkpoint)
        self._backbone = _backbone(checkpoint, getattr(torch, dtype)).to(self._device)
        self._dense = [
            _dense(folder).to(self._device, getattr(torch, dtype)) for folder in checkpoint.dense
        ]
        self._check_bidirectional(checkpoint)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included, however many."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=True)
        return [encoding.ids for encoding in encoded]

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch: float32, shape (len(tokens), width), rows of norm 1."""
        torch = self._torch
        with torch.inference_mode():
            hidden, mask = self._hidden(tokens)
            # The mean in float32: in bfloat16 a sum over 2,048 tokens loses the small ones.
            weights = mask.unsqueeze(-1).float()
            pooled = (hidden.float() * weights).sum(1) / weights.sum(1)
            for layer in self._dense:
                pooled = torch.nn.functional.linear(pooled.to(layer.dtype), layer)
            unit = torch.nn.functional.normalize(pooled.float(), dim=1)
        vectors: Vectors = unit.cpu().numpy()
        return vectors

    def _hidden(self, tokens: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        torch = self._torch
        longest = max(map(len, tokens))
        ids = torch.zeros(len(tokens), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        output = self._backbone(input_ids=ids, attention_mask=mask, use_cache=False)
        return output.last_hidden_state, mask

    def _check_bidirectional(self, checkpoint: Checkpoint) -> None:
        # Asked of the numbers rather than of a version: if only the last token differs and the
        # first one's state does not, attention is causal.
        bos, eos = checkpoint.model.bos, checkpoint.model.eos
        with self._torch.inference_mode():
            hidden, _ = self._hidden([[bos, bos, bos, bos], [bos, bos, bos, eos]])
        if self._torch.equal(hidden[0, 0], hidden[1, 0]):
            raise WrongModel(
                "this build of transformers runs the model with causal attention, which silently "
                "ruins retrieval; run: pip install -U 'transformers>=5,<6'"
            )


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        best = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device("mps" if torch.backends.mps.is_available() else best)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device={name!r} cannot be used by this build of torch; use device='cpu', or "
            "install torch for that device"
        ) from error
    return device


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelCorrupt(
            f"the tokenizer in {checkpoint.folder} cannot be loaded; download the model again"
        ) from error
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if tokenizer is None:
        raise ModelCorrupt(f"{checkpoint.folder} has no tokenizer.json; download the model again")
    # A copy, with truncation and padding off: lengths are this package's to judge.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # "<bos>" in a user's text is five characters, not a control token.
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode("a").ids
    model = checkpoint.model
    if len(ids) < 3 or ids[0] != model.bos or ids[-1] != model.eos:
        raise WrongModel(
            f"the tokenizer in {checkpoint.folder} does not put <bos> ({model.bos}) and <eos> "
            f"({model.eos}) round a text, as {model.name} was trained; use the original "
            "tokenizer.json and tokenizer_config.json"
        )
    return tokenizer


def _backbone(checkpoint: Checkpoint, dtype: torch.dtype) -> torch.nn.Module:
    from safetensors import SafetensorError
    from transformers import Gemma3TextModel
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded: Any = Gemma3TextModel.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelCorrupt(
            f"the weights in {checkpoint.folder} cannot be loaded; download the model again"
        ) from error
    finally:
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    backbone: torch.nn.Module = loaded[0]
    report = loaded[1]
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise ModelCorrupt(
            f"the weights in {checkpoint.folder} lack or misshape {len(missing)} tensors, "
            f"{missing[0]} first, which would be random; download the model again"
        )
    return backbone.eval()


def _dense(folder: Path) -> torch.Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / "model.safetensors")["linear.weight"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelCorrupt(
            f"{folder}/model.safetensors is no Dense layer; download the model again"
        ) from error
