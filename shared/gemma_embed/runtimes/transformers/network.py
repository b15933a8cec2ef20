"""The network of a checkpoint on torch, loaded and verified: token ids in, vectors out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from gemma_embed.errors import ConfigurationError, MissingDependency
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged
from gemma_embed.runtimes.local.loading import loading
from gemma_embed.runtimes.local.tokenizer import HuggingFaceTokenizer, check_special_tokens
from gemma_embed.runtimes.transformers.probes import PROBES
from gemma_embed.runtimes.transformers.threads import on_sound_thread
from gemma_embed.vectors import Vectors, plan_batches
from gemma_fast.weights import dense_matrix

if TYPE_CHECKING:
    import torch

DType = Literal["float32", "bfloat16"]

# Two CPU cores were fastest from 1,024 to 4,096; beyond that only memory grows.
_TOKENS_PER_BATCH = 2048


class Network:
    """Tokenizer, backbone, pooling and Dense layers. Not safe for several threads at once."""

    # Measured: no faster, in float32 and bfloat16.
    in_flight = None

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

        from gemma_embed.runtimes.transformers.stock import StockForward
        from gemma_embed.runtimes.transformers.verification import Forward, fastest_forward
        from gemma_fast.packed import PackedForward

        place = _device(device)
        with loading(f"the tokenizer in {checkpoint.folder}"):
            self.tokenize = HuggingFaceTokenizer(checkpoint.tokenizer)
            check_special_tokens(self.tokenize, checkpoint)

        def load(kind: torch.dtype) -> StockForward:
            backbone = _backbone(checkpoint, kind).to(place)
            dense = [
                torch.from_numpy(dense_matrix(file)).to(place, kind) for file in checkpoint.dense
            ]
            stock = StockForward(backbone, dense)
            stock.check_bidirectional(checkpoint.model)
            return stock

        with loading(f"the weights in {checkpoint.folder}"):
            kind = getattr(torch, dtype)
            self._forward: Forward
            if checkpoint.model.family.fast:
                self._forward = fastest_forward(load, self.tokenize(PROBES), place, kind)
            else:
                self._forward = load(kind)
            # A mapped table costs no memory of its own, and only rows in use are read.
            stored = checkpoint.tensors()["embed_tokens.weight"].stored
            mapped = place.type == "cpu" and stored == "F32"
            if isinstance(self._forward, PackedForward) and not mapped:
                self._forward.store_table_as(kind)
        check_unchanged(checkpoint.files)

    def batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Group rows of so many tokens: each exactly once, largest first."""
        yield from plan_batches(lengths, _TOKENS_PER_BATCH, padded=self._forward.padded)

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch: float32, shape (len(tokens), width)."""
        vectors: Vectors = on_sound_thread(lambda: self._forward(tokens).cpu().numpy())
        return vectors


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


def _backbone(checkpoint: Checkpoint, dtype: torch.dtype) -> torch.nn.Module:
    """Load the backbone from the judged files only.

    transformers gets tensors and no folder: in a folder it looks for weights by rules of its own,
    and adds adapters to them where peft is installed.
    """
    import torch
    import transformers
    from safetensors import safe_open

    family = checkpoint.model.family
    kind: Any = getattr(transformers, family.transformers_class, None)
    if kind is None:
        raise MissingDependency(
            f"{checkpoint.model.name} needs transformers {family.transformers_version} or later, "
            f"this is {transformers.__version__}; run: pip install -U 'transformers>="
            f"{family.transformers_version},<6'"
        )
    config = kind.config_class.from_dict(dict(checkpoint.config))
    with torch.device("meta"):
        expected = kind(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    checkpoint.tensors().check(shapes)
    tensors: dict[str, torch.Tensor] = {}
    for path in checkpoint.weights:
        with safe_open(path, "pt") as file:
            for stored in file.keys():  # noqa: SIM118 - it is no mapping
                name = stored.removeprefix("model.")
                inside = name.startswith(checkpoint.prefix)
                name = name.removeprefix(checkpoint.prefix)
                if inside and name in shapes:
                    tensors[name] = file.get_tensor(stored)
    with _quiet():
        backbone: torch.nn.Module = kind.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, attn_implementation="sdpa"
        )
    return backbone.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no progress bar of transformers."""
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
