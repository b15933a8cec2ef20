"""A checkpoint as a GGUF file, for Ollama, LM Studio and llama.cpp."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from gemma_embed.errors import ConfigurationError, ModelCorrupt, WrongModel
from gemma_embed.files import expanded
from gemma_embed.models import BUNDLED, model_of_config
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged
from gemma_embed.runtimes.local.hub import model_folder
from gemma_embed.runtimes.local.layout import read_config
from gemma_embed.runtimes.local.loading import loading, require
from gemma_embed.runtimes.options import check_choice, check_kind
from gemma_fast.architecture import Architecture
from gemma_fast.errors import Damaged, Unsupported
from gemma_fast.gguf_file import PROMPTS, GgufPrecision, check_writable, write_gguf
from gemma_fast.gguf_vocabulary import Vocabulary
from gemma_fast.weights import dense_matrix


@dataclass(frozen=True)
class GgufExport:
    """A file that was written, and how to serve it.

    Attributes:
        path: The file.
        precision: Of its matrices.
        max_tokens: Tokens that are read of a text.
        own_prompts: Whether the checkpoint states prompts that are not the model's.
    """

    path: Path
    precision: GgufPrecision
    max_tokens: int
    own_prompts: bool

    @property
    def modelfile(self) -> str:
        """What ``ollama create NAME -f Modelfile`` takes."""
        # Else OLLAMA_CONTEXT_LENGTH of the server decides.
        return f"FROM {self.path}\nPARAMETER num_ctx {self.max_tokens}\n"

    @property
    def llama_server(self) -> tuple[str, ...]:
        """The command that serves it with llama.cpp."""
        limit = str(self.max_tokens)
        return ("llama-server", "-m", str(self.path), "--embeddings", "-ub", limit, "-np", "1")

    def __str__(self) -> str:
        prompts = (
            "It keeps the checkpoint's own prompts, which only GgufRuntime reads: elsewhere the "
            "client must send them.\n"
            if self.own_prompts
            else ""
        )
        return (
            f"{self.path}: {self.path.stat().st_size / 1e6:,.0f} MB, {self.precision}.\n{prompts}\n"
            f"Ollama, with this Modelfile (ollama create NAME -f Modelfile):\n{self.modelfile}\n"
            f"llama.cpp:\n{shlex.join(self.llama_server)}\n"
            f"-ub: longer texts are refused, and without it those of more than 512 tokens. "
            "-np: 1, 2, 4 or 8; with 3 llama.cpp ends at start, and with -c all slots share it.\n"
            "Neither server adds prompts: OllamaRuntime and OpenAIRuntime do. Verify with\n"
            "gemma-embed verify ollama:NAME\ngemma-embed verify http://127.0.0.1:8080/v1"
        )


def export_gguf(
    model: str | Path, path: str | Path, *, precision: GgufPrecision = "bf16"
) -> GgufExport:
    """Write a checkpoint as one GGUF file with both Dense layers, as llama.cpp's converter would.

    The file is complete or absent, also after a crash.

    Args:
        model: A folder, as ``TransformersRuntime`` takes it, or a hub id that is on this disk.
        path: The file, ending in ``.gguf``; an existing one is replaced.
        precision: ``f32`` and ``bf16`` give the reference's vectors (cosine 0.9999), ``q8_0`` is
            the usual size (0.998), ``q4_0`` loses much in long texts unless the checkpoint was
            trained for it. There is no 16-bit float: Ollama's runtime here refuses such files.

    Raises:
        ConfigurationError: If the place cannot be written to, or an option has a wrong value.
        MissingDependency: If ``gguf`` is not installed.
        ModelCorrupt: If the checkpoint is damaged.
        WrongModel: If it is not EmbeddingGemma, or llama.cpp would compute something else.
    """
    check_kind("model", model, str, Path)
    check_kind("path", path, str, Path)
    check_choice("precision", precision, get_args(GgufPrecision))
    target = expanded(path)
    if target.suffix != ".gguf":
        raise ConfigurationError(f"{str(path)!r} must end in .gguf")
    require("gguf", runtime="gguf")
    folder = model_folder(str(model), None, offline=True)
    bundled = str(model) == BUNDLED.repository
    row = BUNDLED if bundled else model_of_config(read_config(folder), folder)
    checkpoint = Checkpoint.read(folder, row)
    if not row.family.fast:
        raise WrongModel(f"{folder} holds {row.name}, which is not written as GGUF")
    own = checkpoint.prompts != row.prompts
    try:
        sizes = Architecture.of(checkpoint.config, checkpoint.max_tokens)
        check_writable(sizes, row.width)
        weights = checkpoint.tensors()
        weights.check(sizes.shapes())
        dense = [dense_matrix(file) for file in checkpoint.dense]
        with loading(str(checkpoint.tokenizer)):
            state = json.loads(checkpoint.tokenizer.read_text(encoding="utf-8"))
            vocabulary = Vocabulary.of(state, sizes.vocabulary)
            special = {"bos": row.bos, "eos": row.eos} | {
                name: state["model"]["vocab"][f"<{name}>"] for name in ("unk", "pad")
            }
        # Of a hub id the folder is a commit.
        texts = {"general.name": expanded(model).name, "general.license": row.licence}
        if own:
            texts[PROMPTS] = json.dumps(
                {key: checkpoint.prompts.prefix(task) for task, key in row.prompt_keys.items()}
            )
        with _replacing(target) as new:
            write_gguf(new, sizes, weights, dense, vocabulary, special, precision, texts)
            check_unchanged(checkpoint.files)
    except Damaged as error:
        raise ModelCorrupt(str(error)) from error
    except Unsupported as error:
        raise WrongModel(f"{folder} cannot be written as GGUF: {error}") from error
    return GgufExport(target, precision, checkpoint.max_tokens, own)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a file to write beside ``target``, which becomes it once it is complete."""
    new = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        try:
            yield new
            with new.open("rb+") as file:
                os.fsync(file.fileno())
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{target} cannot be written ({error.strerror or error}); free some space, or name "
            "another place"
        ) from error
