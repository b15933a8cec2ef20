"""The network of a checkpoint, loaded and proved sound: token ids in, vectors out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gemma_embed.errors import (
    ConfigurationError,
    EmbeddingError,
    ModelCorrupt,
    WrongModel,
)
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged
from gemma_embed.runtimes.local.memory import is_out_of_memory
from gemma_embed.runtimes.transformers.threads import on_sound_thread
from gemma_embed.vectors import Vectors, plan_batches

if TYPE_CHECKING:
    import torch

DType = Literal["float32", "bfloat16"]

# Two CPU cores were fastest from 1,024 to 4,096; beyond that only memory grows.
_TOKENS_PER_BATCH = 2048


class Network:
    """Tokenizer, backbone, pooling and Dense layers. Not safe for several threads at once."""

    def __init__(self, checkpoint: Checkpoint, device: str | None, dtype: DType) -> None:
        """Load a checkpoint.

        Raises:
            ConfigurationError: If the device cannot be used.
            ModelCorrupt: If files are damaged or incomplete.
            ModelChanged: If they changed while they were loaded.
            WrongModel: If tokenizer or attention are not the model's.
        """
        # Here and not at the top: importing torch takes seconds and 200 MB.
        import torch

        from gemma_embed.runtimes.transformers.parity import fastest_forward
        from gemma_embed.runtimes.transformers.stock import StockForward

        place = _device(device)
        with _loading("tokenizer", checkpoint):
            self._tokenizer = _tokenizer(checkpoint)

        def load(kind: torch.dtype) -> StockForward:
            backbone = _backbone(checkpoint, kind).to(place)
            dense = [_dense(path).to(place, kind) for path in checkpoint.dense]
            stock = StockForward(backbone, dense)
            stock.check_bidirectional(checkpoint.model)
            return stock

        with _loading("weights", checkpoint):
            self._forward = fastest_forward(load, place, getattr(torch, dtype))
        check_unchanged(checkpoint.files)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included, however many."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return [encoding.ids for encoding in encoded]

    def batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Group rows of so many tokens: each exactly once, largest first."""
        rows, sizes = list(lengths), list(lengths.values())
        padded = self._forward.padded
        for members in plan_batches(sizes, len(sizes), _TOKENS_PER_BATCH, padded=padded):
            yield [rows[member] for member in members]

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch: float32, shape (len(tokens), width), rows of norm 1."""
        vectors: Vectors = on_sound_thread(lambda: self._forward(tokens).cpu().numpy())
        return vectors


@contextmanager
def _loading(part: str, checkpoint: Checkpoint) -> Iterator[None]:
    """Say what an error of the libraries below means for a part of the model."""
    try:
        yield
    except Exception as error:  # A damaged file may raise any; tokenizers even Exception itself.
        if isinstance(error, EmbeddingError) or is_out_of_memory(error):
            raise
        raise ModelCorrupt(
            f"the {part} in {checkpoint.folder} cannot be loaded; download the model again"
        ) from error


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        best = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device("mps" if torch.backends.mps.is_available() else best)
    try:
        device = torch.device(name)
        # And back: the device "meta" computes nothing.
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device={name!r} cannot be used by this build of torch; use device='cpu', or "
            "install torch for that device"
        ) from error
    return device


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(
        checkpoint.folder, local_files_only=True, trust_remote_code=False
    )
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if tokenizer is None:
        raise ModelCorrupt(f"{checkpoint.folder} has no tokenizer.json; download the model again")
    # Off: lengths are this package's to judge.
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
    left_out = sorted(name for name in report["unexpected_keys"] if "layers." in name)
    if left_out:
        raise ModelCorrupt(
            f"the weights in {checkpoint.folder} hold {len(left_out)} tensors that its config.json "
            f"leaves out, {left_out[0]} first; download the model again"
        )
    return backbone.eval()


def _dense(path: Path) -> torch.Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)["linear.weight"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelCorrupt(f"{path} is no Dense layer; download the model again") from error
