"""A model for ``ollama_server``: a function from text to vector, and its description."""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

MODIFIED = "2026-01-15T10:20:30.123456789+01:00"


def count_tokens(text: str) -> int:
    """Count words, long ones once for every 8 bytes: never more tokens than bytes."""
    return sum(-(-len(word.encode()) // 8) for word in text.split())


@lru_cache(maxsize=1 << 16)
def _places(feature: str, width: int) -> list[tuple[int, int]]:
    """Return 32 positions of a vector, each with a sign, that represent a feature of a text."""
    numbers = struct.unpack("<32H", hashlib.sha512(feature.encode()).digest())
    return [(number % width, 1 if number & 0x8000 else -1) for number in numbers]


@lru_cache
def _base(width: int) -> list[float]:
    """Return the part that all vectors share, so that every cut of every vector is nonzero."""
    digest = hashlib.shake_256(b"base").digest(width)
    return [(byte - 127.5) / 256 for byte in digest]


def bag_of_words(text: str, width: int = 768) -> list[float]:
    """Embed a text: texts that share words are similar, in any order.

    Words count most, without case and punctuation; their exact spelling less; single characters,
    including spaces, a little, so that any change except one of order changes the vector.
    """
    features: Counter[str] = Counter()
    for word in text.split():
        features["word " + word.lower().strip(".,:;!?\"'()")] += 10
        features["spelling " + word] += 4
    for character in text:
        features["character " + character] += 1
    vector = _base(width).copy()
    for feature, weight in features.items():
        for place, sign in _places(feature, width):
            vector[place] += sign * weight
    return normalised(vector)


def normalised(vector: Sequence[float]) -> list[float]:
    """Normalise to unit length; zeros stay zeros, as in Ollama."""
    norm = max(math.sqrt(sum(number * number for number in vector)), 1e-12)
    return [number / norm for number in vector]


@dataclass(frozen=True)
class ServedModel:
    """A model that the server has; by default EmbeddingGemma as in the library.

    Attributes:
        name: Name and tag.
        architecture: ``general.architecture``; ``gemma-embedding`` in converted GGUF files.
        width: Length of a vector.
        context: Tokens it reads, including the two special ones.
        parameters: ``PARAMETER`` lines of its Modelfile: ``num_ctx``, ``num_batch``.
        blocks: Number of layers.
        digest: 64 hexadecimal digits.
        quantization: ``BF16``, ``Q8_0``, ``Q4_0``.
        capabilities: Embedding requires ``embedding``.
        space_prefix: ``tokenizer.ggml.add_space_prefix``; None in what ``ollama create`` makes of a
            folder.
        tensors: Names that a verbose show lists.
        embed: The model, without truncation and special tokens; ``bag_of_words`` if None.
        tokens: Counts a text's tokens, without special ones. Never less for a longer text.
        size: Bytes.
    """

    name: str = "embeddinggemma:300m"
    architecture: str = "gemma3"
    width: int = 768
    context: int = 2048
    parameters: Mapping[str, int] = field(default_factory=dict)
    blocks: int = 24
    digest: str = "85462619ee721b466c5927d109d4cb765861907d5417b9109caebc4e614679f1"
    quantization: str = "BF16"
    capabilities: tuple[str, ...] = ("embedding",)
    space_prefix: bool | None = False
    tensors: tuple[str, ...] = (
        "token_embd.weight",
        "output_norm.weight",
        "blk.0.attn_q.weight",
        "dense.0.weight",
        "dense.1.weight",
    )
    embed: Callable[[str], Sequence[float]] | None = None
    tokens: Callable[[str], int] = count_tokens
    size: int = 621875917

    def vector(self, text: str) -> list[float]:
        """Embed a text."""
        return list(self.embed(text) if self.embed else bag_of_words(text, self.width))

    @property
    def details(self) -> dict[str, Any]:
        """The part that show, tags and ps share."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.architecture,
            "families": [self.architecture],
            "parameter_size": "307.58M",
            "quantization_level": self.quantization,
        }

    def show(self, verbose: bool) -> dict[str, Any]:
        """The fields of ``/api/show`` in every version."""
        architecture = self.architecture
        info = {
            "general.architecture": architecture,
            "general.file_type": 32,
            "general.parameter_count": 307581696,
            f"{architecture}.attention.sliding_window": 512,
            f"{architecture}.block_count": self.blocks,
            f"{architecture}.context_length": self.context,
            f"{architecture}.embedding_length": self.width,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<pad>", "<eos>", "<bos>"] if verbose else None,
        }
        if self.space_prefix is not None:
            info["tokenizer.ggml.add_space_prefix"] = self.space_prefix
        if "embedding" in self.capabilities:
            info[f"{architecture}.pooling_type"] = 1
        answer: dict[str, Any] = {
            "license": "Gemma Terms of Use",
            "modelfile": f"FROM {self.name}\n",
            "template": "{{ .Prompt }}",
            "details": self.details,
            "model_info": info,
            "modified_at": MODIFIED,
        }
        if self.parameters:
            lines = [f"{name:<30} {value}" for name, value in self.parameters.items()]
            answer["parameters"] = "\n".join(lines)
        if verbose:
            kind = {"type": self.quantization, "shape": [self.width, self.width]}
            answer["tensors"] = [{"name": tensor, **kind} for tensor in self.tensors]
        return answer

    def layers(self) -> list[dict[str, Any]]:
        """The progress of a pull: two layers at the same time; zero is omitted, as in Go."""
        small = hashlib.sha256(self.digest.encode()).hexdigest()
        lines: list[dict[str, Any]] = []
        for part in (0, 2, 1):
            for digest, total in ((self.digest, self.size), (small, 17)):
                name = f"sha256:{digest}"
                line = {"status": f"pulling {digest[:12]}", "digest": name, "total": total}
                lines.append(line | ({"completed": total // part} if part else {}))
        return lines
