"""The model in this process, on ONNX Runtime: no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Never, get_args

from gemma_embed.errors import ConfigurationError, ModelCorrupt, WrongModel
from gemma_embed.files import expanded
from gemma_embed.identity import Identity
from gemma_embed.runtimes.local.cache import Cache, is_valid
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged
from gemma_embed.runtimes.local.in_flight import InFlight
from gemma_embed.runtimes.local.loaded import Forward, check_vectors
from gemma_embed.runtimes.local.loading import explained, loading, require
from gemma_embed.runtimes.local.runtime import LocalRuntime
from gemma_embed.runtimes.local.tokenizer import Tokenizer
from gemma_embed.runtimes.onnx.export import export_onnx
from gemma_embed.runtimes.onnx.published import GRAPHS, PublishedForward, holds_published_graphs
from gemma_embed.runtimes.onnx.tokenizer import open_tokenizer
from gemma_embed.runtimes.options import FLOAT16, check_choice, check_kind, checked_count
from gemma_embed.runtimes.unknown_options import reject_unknown
from gemma_fast.architecture import Architecture
from gemma_fast.graph import VERSION, write_graph
from gemma_fast.onnx_forward import OnnxForward, processor_cores
from gemma_fast.quantization import Precision
from gemma_fast.weights import dense_matrix

Layout = Literal["safetensors", "published"]

# Matrices of 192 rows are as fast as larger ones on two cores; a thousand would take 40 MB more.
_TOKENS_PER_BATCH = 192
# Padding is wasted work; one part in eight is what a second call would cost.
_PADDING = 1 / 8
_OR_UPDATE = ", or run: pip install -U onnxruntime"


class OnnxRuntime(LocalRuntime):
    """EmbeddingGemma, or a fine-tune of it, on ONNX Runtime and the CPU; see ``LocalRuntime``.

    On first use the graph is written from the safetensors files into the user's cache folder
    (``gemma-embed`` in ``XDG_CACHE_HOME`` or ``~/.cache``, on Windows in ``LOCALAPPDATA``): 412 MB
    for the 300M model in float32, 111 MB in int8, 99 MB in int4. Nothing is written into the
    model's folder.
    """

    _name = "onnx"
    _precision: Precision

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        precision: Precision = "float32",
        threads: int | None = None,
        layout: Layout | None = None,
        cache_dir: str | Path | None = None,
        offline: bool = False,
        **unknown: Never,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            model: A folder, or a hub id; None for Google's EmbeddingGemma 300M; ``bundled`` for
                the small demonstration model that comes with this package.
            revision: The hub's branch, tag or commit.
            precision: Of the layers' matrices. ``float32`` gives the reference's vectors;
                ``int8`` is several times faster in a quarter of the memory; ``int4`` mixes 4
                bits with 8 where 4 lose most, and keeps the weights of a checkpoint trained for
                Q4_0 as they are, in 4 bits.
            threads: Threads that compute; None for one a processor core. In int8 and int4 they
                share the batches of a large job, one each, on a second copy of the weights.
            layout: ``safetensors`` for a checkpoint, of which the graph is written; ``published``
                for finished graphs, as in ``onnx-community/embeddinggemma-300m-ONNX``. None for
                what a folder holds; for a hub id ``safetensors``, except for the one named here.
            cache_dir: Where the graph is written instead of the user's cache folder.
            offline: Never ask the hub.
            **unknown: Refused, with where they belong.

        Raises:
            ConfigurationError: If an option is unknown or has a value that cannot work.
        """
        if unknown:
            reject_unknown(unknown, "OnnxRuntime")
        if str(precision) == "float16":
            raise ConfigurationError(f"{FLOAT16}; use 'float32', 'int8' or 'int4'")
        check_choice("precision", precision, get_args(Precision))
        check_choice("layout", layout, (*get_args(Layout), None))
        check_kind("cache_dir", cache_dir, str, Path, None)
        self._threads = None if threads is None else checked_count("threads", threads, 1)
        self._layout = layout
        self._cache_dir = None if cache_dir is None else expanded(cache_dir)
        super().__init__(model, revision=revision, precision=precision, offline=offline)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments: what makes an equal runtime elsewhere."""
        return {
            "model": self._source,
            "revision": self._revision,
            "precision": self._precision,
            "threads": self._threads,
            "layout": self._layout,
            "cache_dir": None if self._cache_dir is None else str(self._cache_dir),
            "offline": self._offline,
        }

    @property
    def identity(self) -> Identity:
        """What decides the numbers. Reads a local folder's weights once, to name them."""
        identity = super().identity
        if self._precision == "float32" or _is_published(self._checkpoint()):
            return identity
        # Whoever writes the graph decides how matrices are rounded.
        return replace(identity, precision=f"{self._precision} v{VERSION}")

    def export(self, folder: str | Path) -> Path:
        """Write the model as one graph, which Transformers.js and others load; see ``export_onnx``.

        In this runtime's precision, in the published layout.

        Args:
            folder: Created if missing.

        Returns:
            The graph's file.

        Raises:
            ConfigurationError: If the model is such a graph already, or the folder is its own or
                cannot be written to.
            ModelError: If the model is missing, damaged, or not the one that it should be.
        """
        check_kind("folder", folder, str, Path)
        require("onnx", runtime="onnx")
        checkpoint = self._checkpoint()
        with explained(self._name):
            return export_onnx(checkpoint, expanded(folder), self._precision)

    def _require_packages(self) -> None:
        require("onnxruntime", runtime="onnx")

    def _graph(self) -> str | None:
        published = self._layout == "published"
        if self._layout is None:
            published = self._source == self._model.onnx_repository
            published |= holds_published_graphs(expanded(self._source))
        if published:
            return GRAPHS[self._precision]
        if not self._model.family.fast:
            # Before anything is downloaded.
            raise WrongModel(
                f"runtime='onnx' writes no graph of {self._model.name} from its weights; use the "
                f"published one, OnnxRuntime({self._model.onnx_repository!r}), or "
                "runtime='transformers'"
            )
        return None

    def _open(self, checkpoint: Checkpoint) -> _Network:
        cache = Cache(checkpoint, self._cache_dir)
        tokenize = open_tokenizer(checkpoint, cache)
        in_flight = None
        if _is_published(checkpoint):
            graph = checkpoint.weights[0]
            with loading(str(graph), f"download the model again{_OR_UPDATE}"):
                forward: Forward = PublishedForward(graph, self._threads)
        else:
            forward = written = self._written(checkpoint, cache)
            if self._precision != "float32":
                load = partial(_loaded_again, written)
                in_flight = InFlight(load, self._threads or processor_cores())
        check_vectors(forward, checkpoint, "onnxruntime")
        check_unchanged(checkpoint.files)
        return _Network(tokenize, batches_by_length, forward, in_flight)

    def _written(self, checkpoint: Checkpoint, cache: Cache) -> OnnxForward:
        """Load a checkpoint's graph, and write it if it is not cached."""
        sizes = Architecture.of(checkpoint.config, checkpoint.max_tokens)
        weights = checkpoint.tensors()
        weights.check(sizes.shapes())

        def write(folder: Path) -> None:
            require("onnx", runtime="onnx")
            dense = [dense_matrix(file) for file in checkpoint.dense]
            write_graph(folder, sizes, weights, dense, self._precision)

        folder = cache.folder(self._precision, VERSION, write)
        with loading(str(folder), f"remove that folder, so that it is recreated{_OR_UPDATE}"):
            return OnnxForward(folder, sizes, weights, self._threads)


@dataclass(frozen=True)
class _Network:
    tokenize: Tokenizer
    batches: Callable[[Mapping[int, int]], Iterator[list[int]]]
    forward: Forward
    in_flight: InFlight | None


def _loaded_again(forward: OnnxForward) -> OnnxForward:
    """Load a cached graph once more, for one thread: raises ModelCorrupt if it changed since."""
    if not is_valid(forward.graph.parent):
        raise ModelCorrupt(f"{forward.graph.parent} is gone, or was damaged since it was loaded")
    return forward.of_one_thread()


def _is_published(checkpoint: Checkpoint) -> bool:
    return checkpoint.weights[0].suffix == ".onnx"


def batches_by_length(lengths: Mapping[int, int]) -> Iterator[list[int]]:
    """Group texts of nearly equal length, longest first, so that little is padding.

    Args:
        lengths: Tokens of each row.

    Yields:
        Rows; together each exactly once.
    """
    batch: list[int] = []
    total = 0
    for row in sorted(lengths, key=lambda row: -lengths[row]):
        padded = lengths[batch[0]] * (len(batch) + 1) if batch else 0
        full = padded > _TOKENS_PER_BATCH
        if batch and (full or padded > (total + lengths[row]) * (1 + _PADDING)):
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += lengths[row]
    if batch:
        yield batch
