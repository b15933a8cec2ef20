"""GGUF files of Gemma 3 embedding models: written with ``gguf``, their headers read with NumPy.

Keys, names and types of tensors are those of llama.cpp's converter for the architecture
``gemma-embedding``, with both Dense layers. ``gguf``'s own reader takes 18 seconds and 700 MB for
a vocabulary of 262,144 entries.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gemma_fast.architecture import Architecture
from gemma_fast.errors import Damaged, Unsupported
from gemma_fast.gguf_vocabulary import Vocabulary
from gemma_fast.weights import Floats, Weights

GgufPrecision = Literal["f32", "bf16", "q8_0", "q4_0"]

ARCHITECTURE = "gemma-embedding"
# Not llama.cpp's: a checkpoint's own prompts, as JSON, by their names in
# config_sentence_transformers.json.
PROMPTS = "gemma_embed.prompts"
# llama.cpp makes every sixth layer of this architecture one of full attention.
_PATTERN = 6
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_FIXED = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        keys: Its metadata; arrays of numbers as NumPy arrays, of strings as lists.
        shapes: Of its tensors, by name, in NumPy's order.
        types: How each is stored, in GGML's numbers.
    """

    keys: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]


def check_writable(sizes: Architecture, width: int) -> None:
    """Check that llama.cpp would compute this network.

    Args:
        sizes: Of the network.
        width: Numbers in a vector, after the Dense layers.

    Raises:
        Unsupported: If it would compute something else, or end the process.
    """
    full = tuple(layer % _PATTERN == _PATTERN - 1 for layer in range(len(sizes.full)))
    if sizes.hidden != width:
        raise Unsupported(
            f"its layers are {sizes.hidden} wide and its vectors {width}, which must be equal"
        )
    if sizes.full != full:
        raise Unsupported(f"full attention is not in every {_PATTERN}th layer and nowhere else")
    if not np.isclose(sizes.scale, sizes.head**-0.5):
        raise Unsupported("attention scores are not scaled by the size of a head")


def write_gguf(
    path: Path,
    sizes: Architecture,
    weights: Weights,
    dense: Sequence[Floats],
    vocabulary: Vocabulary,
    special: Mapping[str, int],
    precision: GgufPrecision,
    texts: Mapping[str, str],
) -> None:
    """Write a file; in memory is one tensor at a time.

    Args:
        path: The file; overwritten.
        sizes: Of the network; see ``check_writable``.
        weights: Its tensors.
        dense: The matrices of the two Dense layers, each (outputs, inputs).
        vocabulary: As long as the embedding table.
        special: Ids of ``bos``, ``eos``, ``unk`` and ``pad``.
        precision: Of the matrices; norms are float32. At ``q4_0`` the table and the Dense layers
            take 8 bits.
        texts: More keys.

    Raises:
        Damaged: If a number is not finite.
        Unsupported: If a matrix cannot be cut into blocks of this precision.
    """
    import gguf

    kind, table_kind, file_kind = {
        "f32": (gguf.GGMLQuantizationType.F32,) * 2 + (gguf.LlamaFileType.ALL_F32,),
        "bf16": (gguf.GGMLQuantizationType.BF16,) * 2 + (gguf.LlamaFileType.MOSTLY_BF16,),
        "q8_0": (gguf.GGMLQuantizationType.Q8_0,) * 2 + (gguf.LlamaFileType.MOSTLY_Q8_0,),
        "q4_0": (
            gguf.GGMLQuantizationType.Q4_0,
            gguf.GGMLQuantizationType.Q8_0,
            gguf.LlamaFileType.MOSTLY_Q4_0,
        ),
    }[precision]
    shapes = _shapes(sizes, dense)
    layers = [name for name in shapes if name.startswith("blk.") and len(shapes[name]) == 2]
    kinds = {
        name: gguf.GGMLQuantizationType.F32
        if len(shape) == 1
        else (kind if name in layers else table_kind)
        for name, shape in shapes.items()
    }
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    for name, shape in shapes.items():
        block, size = gguf.GGML_QUANT_SIZES[kinds[name]]
        if shape[-1] % block:
            raise Unsupported(f"{name} has {shape[-1]} columns, {precision} takes {block} together")
        stored = (*shape[:-1], shape[-1] // block * size)
        floats = kinds[name] == gguf.GGMLQuantizationType.F32
        if floats:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
        else:
            writer.add_tensor_info(
                name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kinds[name]
            )
    writer.add_type(gguf.GGUFType.MODEL)
    for name, text in texts.items():
        writer.add_string(name, text)
    writer.add_size_label(gguf.size_label(sum(map(np.prod, shapes.values())), 0, 0, 0))
    writer.add_file_type(file_kind)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(sizes.full))
    writer.add_context_length(sizes.context)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.intermediate)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.key_value_heads)
    writer.add_key_length(sizes.head)
    writer.add_value_length(sizes.head)
    writer.add_layer_norm_rms_eps(sizes.epsilon)
    writer.add_rope_freq_base(sizes.full_base)
    writer.add_rope_freq_base_swa(sizes.local_base)
    # The full width of the window, which llama.cpp halves.
    writer.add_sliding_window(2 * (sizes.reach - 1))
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    for number, matrix in enumerate(dense, 2):
        writer.add_dense_features_dims(f"dense_{number}", matrix.shape[1], matrix.shape[0])
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token.encode() for token in vocabulary.tokens])
    writer.add_token_scores(list(vocabulary.scores))
    writer.add_token_types(list(vocabulary.types))
    writer.add_bos_token_id(special["bos"])
    writer.add_eos_token_id(special["eos"])
    writer.add_unk_token_id(special["unk"])
    writer.add_pad_token_id(special["pad"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)
    # Without it a blank would be put before every text.
    writer.add_add_space_prefix(False)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in _tensors(sizes, weights, dense):
            if not np.isfinite(tensor).all():
                raise Damaged(f"{name} holds numbers that are not finite; download the model again")
            if kinds[name] != gguf.GGMLQuantizationType.F32:
                tensor = gguf.quants.quantize(tensor, kinds[name])
            writer.write_tensor_data(tensor)
    finally:
        writer.close()


def read_header(path: Path) -> Header:
    """Read all of a file but its tensors.

    Raises:
        Damaged: If it is no GGUF file, or was cut short.
    """
    damaged = f"{path} is no complete GGUF file; download it again"
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            magic, version = data[:4], reader.number("I", 4)
            if magic != b"GGUF" or version < 2:
                raise Damaged(damaged)
            tensors, keys = reader.number("Q"), reader.number("Q")
            found = {reader.text(): reader.value(reader.number("I")) for _ in range(keys)}
            shapes, types, end = {}, {}, 0
            for _ in range(tensors):
                name = reader.text()
                sizes = [reader.number("Q") for _ in range(reader.number("I"))]
                shapes[name], types[name] = tuple(reversed(sizes)), reader.number("I")
                end = max(end, reader.number("Q"))
            if end > len(data) - reader.place:
                raise Damaged(damaged)
    except (OSError, ValueError, KeyError, struct.error, MemoryError) as error:
        raise Damaged(damaged) from error
    return Header(found, shapes, types)


class _Reader:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.place = 0

    def number(self, kind: str, start: int | None = None) -> Any:
        form = struct.Struct(f"<{kind}")
        (found,) = form.unpack_from(self._data, self.place if start is None else start)
        self.place = (self.place if start is None else start) + form.size
        return found

    def text(self) -> str:
        length = self.number("Q")
        start, self.place = self.place, self.place + length
        if self.place > len(self._data):
            raise ValueError("beyond the end")
        return self._data[start : self.place].decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_FIXED[kind])
        of, count = self.number("I"), self.number("Q")
        if of == _STRING:
            return [self.text() for _ in range(count)]
        found = np.frombuffer(self._data, f"<{_FIXED[of]}", count, self.place).copy()
        self.place += found.nbytes
        return found


def _shapes(sizes: Architecture, dense: Sequence[Floats]) -> dict[str, tuple[int, ...]]:
    shapes = {_name(name): shape for name, shape in sizes.shapes().items()}
    return {f"dense_{i}.weight": matrix.shape for i, matrix in enumerate(dense, 2)} | shapes


def _tensors(
    sizes: Architecture, weights: Weights, dense: Sequence[Floats]
) -> Iterator[tuple[str, Floats]]:
    """Yield tensors in the order of ``_shapes``."""
    yield from ((f"dense_{number}.weight", matrix) for number, matrix in enumerate(dense, 2))
    for name, shape in sizes.shapes().items():
        tensor = weights[name].read()
        # The complete factor of a norm, of which checkpoints store the distance from 1.
        yield _name(name), tensor + np.float32(1) if len(shape) == 1 else tensor


def _name(name: str) -> str:
    """Return llama.cpp's name of a checkpoint's tensor."""
    if not name.startswith("layers."):
        return {"embed_tokens.weight": "token_embd.weight"}.get(name, "output_norm.weight")
    _, number, part = name.removesuffix(".weight").split(".", 2)
    return f"blk.{number}.{_NAMES[part]}.weight"
