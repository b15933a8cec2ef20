"""The model in this process, on llama.cpp, from a GGUF file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Never

from gemma_embed.errors import ConfigurationError
from gemma_embed.files import expanded
from gemma_embed.identity import Identity
from gemma_embed.models import EMBEDDINGGEMMA_300M
from gemma_embed.runtimes.gguf.file import precision_of, read_model, vocabulary_of
from gemma_embed.runtimes.local.cache import Cache
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged
from gemma_embed.runtimes.local.loaded import check_vectors
from gemma_embed.runtimes.local.loading import loading, require
from gemma_embed.runtimes.local.runtime import LocalRuntime, Network
from gemma_embed.runtimes.local.tokenizer import check_special_tokens
from gemma_embed.runtimes.options import check_kind, checked_count
from gemma_embed.runtimes.unknown_options import reject_unknown
from gemma_fast.bpe import BpeTokenizer, write_arrays

# Raise it with every change of the tokenizer's files.
_VERSION = 1


class GgufRuntime(LocalRuntime):
    """EmbeddingGemma, or a fine-tune of it, on llama.cpp (``xllamacpp``); see ``LocalRuntime``.

    Texts are split into tokens here and not by llama.cpp, so that ``<bos>`` in a text is text. On
    first use the tokenizer's arrays are written into the user's cache folder, 8 MB.
    """

    _name = "gguf"

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        threads: int | None = None,
        cache_dir: str | Path | None = None,
        **unknown: Never,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            model: A ``.gguf`` file, of ``gemma-embed export gguf`` or llama.cpp's converter.
            threads: Threads that compute; None for llama.cpp's choice. They wait for each other
                by spinning: take fewer than cores where something else computes.
            cache_dir: Where the tokenizer's arrays are written instead of the user's cache folder.
            **unknown: Refused, with where they belong.

        Raises:
            ConfigurationError: If an option is unknown or has a value that cannot work.
        """
        if unknown:
            reject_unknown(unknown, "GgufRuntime")
        check_kind("model", model, str, Path, None)
        if model is None:
            raise ConfigurationError(
                "runtime 'gguf' needs a file: GgufRuntime('embeddinggemma.gguf'), or "
                f"runtime='gguf' with model=. Get {EMBEDDINGGEMMA_300M.gguf}, or write one: "
                "gemma-embed export"
            )
        check_kind("cache_dir", cache_dir, str, Path, None)
        self._threads = None if threads is None else checked_count("threads", threads, 1)
        self._cache_dir = None if cache_dir is None else expanded(cache_dir)
        super().__init__(expanded(model), revision=None, precision="gguf", offline=True)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments: what makes an equal runtime elsewhere."""
        return {
            "model": self._source,
            "threads": self._threads,
            "cache_dir": None if self._cache_dir is None else str(self._cache_dir),
        }

    @property
    def identity(self) -> Identity:
        """What decides the numbers. Reads the file once, to name its content."""
        return replace(super().identity, precision=precision_of(self._checkpoint()))

    def close(self) -> None:
        """Free the model, once calls under way are done. The next call loads it again."""
        loaded = self._per_process.get()
        with loaded.lock:
            loaded.network = loaded.checkpoint = None

    def _require_packages(self) -> None:
        require("xllamacpp", runtime="gguf")

    def _read(self) -> Checkpoint:
        return read_model(Path(self._source), self._model)

    def _open(self, checkpoint: Checkpoint) -> Network:
        from gemma_embed.runtimes.gguf.engine import LlamaNetwork

        (path,), model = checkpoint.weights, checkpoint.model

        def write(folder: Path) -> None:
            write_arrays(folder, vocabulary_of(checkpoint).state(model.bos, model.eos))

        with loading(str(path)):
            cache = Cache(checkpoint, self._cache_dir)
            tokenize = BpeTokenizer(cache.folder("vocabulary", _VERSION, write))
            network = LlamaNetwork(path, tokenize, checkpoint.max_tokens, self._threads)
        check_special_tokens(tokenize, checkpoint)
        check_vectors(network.forward, checkpoint, "xllamacpp")
        check_unchanged(checkpoint.files)
        return network
