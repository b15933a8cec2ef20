"""EmbeddingGemma with one thing broken: every cause that ``verify`` names, made for real.

``Broken`` is a runtime of its own on a checkpoint folder, in torch, float32 arithmetic. Its forward
pass has an option for each cause; matrices, and inputs where the format rounds them too, are
rounded as the precision does. The golden values are its, and ``tests/verify`` finds the project's
runtimes equal to them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.functional import gelu, scaled_dot_product_attention

from gemma_embed.identity import Identity
from gemma_embed.models import BUNDLED, EMBEDDINGGEMMA_300M, Model
from gemma_embed.runtimes import Batch, Runtime, TooLong
from gemma_embed.vectors import Vectors
from gemma_fast.architecture import LAYER_TENSORS, Architecture
from gemma_fast.quantization import BLOCK, to_int4, to_int8
from gemma_fast.weights import Rows, Weights, dense_matrix

Precision = Literal["float32", "bfloat16", "int8", "int4", "q8_0", "q4_0"]

QUERY = "task: search result | query: "
DOCUMENT = "title: none | text: "
PROMPT = re.compile(r"task: search result \| query: |title: (?P<title>.*?) \| text: ")
BOS, EOS, PAD = EMBEDDINGGEMMA_300M.bos, EMBEDDINGGEMMA_300M.eos, 0
PADDED = 64


# What the network computes, apart from texts, tokens and pooling.
@dataclass(frozen=True)
class Attention:
    """Options of a forward pass; the defaults are the model's own."""

    causal: bool = False
    reach: int | None = -1  # of local layers: tokens to either side; -1 as trained, None for all
    local_base: float | None = None
    full_base: float | None = None
    split: int | None = None  # tokens of a part that sees only itself
    scaled_table: bool = True
    norm_offset: bool = True
    head_scale: bool = True
    read: int | None = None  # tokens that may be seen; the rest is padding

    def for_length(self, length: int, reach: int) -> Attention:
        """Return equal options in one form, so that nothing is computed twice."""
        own = reach if self.reach == -1 else self.reach
        return replace(
            self,
            reach=None if own is None or own >= length else own,
            split=None if self.split is None or self.split >= length else self.split,
            read=None if self.read is None or self.read >= length else self.read,
        )


Pool = Callable[[torch.Tensor, int], torch.Tensor]


def _mean(states: torch.Tensor, prompt: int) -> torch.Tensor:
    del prompt
    return states.mean(0)


def _same_text(text: str) -> str:
    return text


def _same_ids(ids: list[int]) -> list[int]:
    return ids


@dataclass(frozen=True)
class Fault:
    """One thing broken. The defaults break nothing.

    Attributes:
        text: Changes a prompted text.
        ids: Changes its token ids.
        attention: Options of the network.
        pool: Makes one state of all, and of the number of tokens of BOS and prompt.
        dense: Dense layers that are there.
        finish: Changes a vector, unit length or not, before it is returned.
        pad: ``unseen`` pads texts to 64 tokens and pools the padding, ``seen`` attends to it, too,
            ``attended`` attends to it and pools without it.
        pad_batch: Pads to the longest text of a call in place of 64.
    """

    text: Callable[[str], str] = _same_text
    ids: Callable[[list[int]], list[int]] = _same_ids
    attention: Attention = Attention()
    pool: Pool = _mean
    dense: int = 2
    finish: Callable[[Vectors], Vectors] = lambda v: v / np.linalg.norm(v)
    pad: Literal["unseen", "seen", "attended"] | None = None
    pad_batch: bool = False


def _parts(text: str) -> tuple[str, str | None, str]:
    """Return prompt, title and the text itself; no prompt for a bare text."""
    found = PROMPT.match(text)
    if found is None:
        return "", None, text
    return found[0], found["title"], text[found.end() :]


def _prompts(query: str | None, document: str | None) -> Callable[[str], str]:
    """Put other prompts in place of these; None leaves them."""

    def change(text: str) -> str:
        own, title, rest = _parts(text)
        if not own:
            return text
        new = query if title is None else document
        return text if new is None else new + rest

    return change


def _doubled(text: str) -> str:
    return (_parts(text)[0] or DOCUMENT).replace("City library", "none") + text


def _stripped(text: str) -> str:
    own, _, rest = _parts(text)
    return own.strip() + rest


def _untitled(text: str) -> str:
    own, title, rest = _parts(text)
    return DOCUMENT + rest if title is not None else own + rest


def _truncated(limit: int, *, end: bool) -> Callable[[list[int]], list[int]]:
    def change(ids: list[int]) -> list[int]:
        if len(ids) <= limit:
            return ids
        return [*ids[: limit - 1], EOS] if end else ids[:limit]

    return change


def _last_part(sequence: torch.Tensor | list[int]) -> torch.Tensor | list[int]:
    return sequence[(len(sequence) - 1) // 512 * 512 :]


FAULTS: dict[str, Fault] = {
    "ok": Fault(),
    "no_dense": Fault(dense=0),
    "no_second_dense": Fault(dense=1),
    "pooling_first_token": Fault(pool=lambda states, _: states[0]),
    "pooling_last_token": Fault(pool=lambda states, _: states[-1]),
    "pooling_last_token/before_eos": Fault(pool=lambda states, _: states[-2]),
    "pooling_max": Fault(pool=lambda states, _: states.amax(0)),
    "pooling_without_special_tokens": Fault(pool=lambda states, _: states[1:-1].mean(0)),
    "pooling_without_prompt": Fault(
        pool=lambda states, n: states[min(n, len(states) - 2) :].mean(0)
    ),
    "pooling_last_micro_batch": Fault(pool=lambda states, _: _last_part(states).mean(0)),
    "padding_read/pooled": Fault(pad="unseen"),
    "padding_read/both": Fault(pad="seen"),
    "padding_read/attended": Fault(pad="attended"),
    "no_prompt": Fault(text=_prompts("", "")),
    "doubled_prompt": Fault(text=_doubled),
    "query_prompt_on_documents": Fault(text=_prompts(None, QUERY)),
    "document_prompt_on_queries": Fault(text=_prompts(DOCUMENT, None)),
    "prompts_swapped": Fault(text=_prompts(DOCUMENT, QUERY)),
    "no_prompt_on_queries": Fault(text=_prompts("", None)),
    "no_prompt_on_documents": Fault(text=_prompts(None, "")),
    "similarity_prompt": Fault(text=_prompts(*["task: sentence similarity | query: "] * 2)),
    "foreign_prompts": Fault(text=_prompts("query: ", "passage: ")),
    "title_dropped": Fault(text=_untitled),
    "lowercase": Fault(text=str.lower),
    "whitespace_collapsed": Fault(text=lambda text: " ".join(text.split())),
    "newlines_to_spaces": Fault(text=lambda text: text.replace("\n", " ")),
    "text_stripped": Fault(text=lambda text: text.strip()),
    "prompt_stripped": Fault(text=_stripped),
    "space_before": Fault(text=lambda text: " " + text),
    "no_bos": Fault(ids=lambda ids: ids[1:]),
    "no_eos": Fault(ids=lambda ids: ids[:-1]),
    "no_bos_no_eos": Fault(ids=lambda ids: ids[1:-1]),
    "two_bos": Fault(ids=lambda ids: [BOS, *ids]),
    "two_eos": Fault(ids=lambda ids: [*ids, EOS]),
    "truncated/256": Fault(ids=_truncated(256, end=True)),
    "truncated/512": Fault(ids=_truncated(512, end=True)),
    "truncated/256_without_eos": Fault(ids=_truncated(256, end=False)),
    "truncated/512_without_eos": Fault(ids=_truncated(512, end=False)),
    "last_micro_batch": Fault(ids=_last_part),
    "micro_batches_apart": Fault(attention=Attention(split=512)),
    "causal": Fault(attention=Attention(causal=True, reach=512)),
    "causal_last_token": Fault(
        attention=Attention(causal=True, reach=512), pool=lambda states, _: states[-1]
    ),
    "window_too_narrow/129": Fault(attention=Attention(reach=129)),
    "window_too_narrow/65": Fault(attention=Attention(reach=65)),
    "window_too_wide/512": Fault(attention=Attention(reach=512)),
    "window_too_wide/none": Fault(attention=Attention(reach=None)),
    "rope_all_global/no_window": Fault(attention=Attention(reach=None, local_base=1e6)),
    "rope_all_global": Fault(attention=Attention(local_base=1e6)),
    "rope_all_local": Fault(attention=Attention(full_base=1e4)),
    "rope_all_global/swapped": Fault(attention=Attention(local_base=1e6, full_base=1e4)),
    "embeddings_unscaled": Fault(attention=Attention(scaled_table=False)),
    "norm_without_one": Fault(attention=Attention(norm_offset=False)),
    "attention_scale": Fault(attention=Attention(head_scale=False)),
}
# Seen at the numbers themselves, or only from one call to the next; they need no golden values.
OTHER_FAULTS: dict[str, Fault] = {
    "not_finite": Fault(finish=lambda v: np.full_like(v, np.nan)),
    "not_finite/zeros": Fault(finish=np.zeros_like),
    "not_normalised": Fault(finish=lambda v: v),
    "cut_not_normalised": Fault(finish=lambda v: v[:256] / np.linalg.norm(v)),
    "batch/padding_read": Fault(pad="attended", pad_batch=True),
    "batch/padding_pooled": Fault(pad="unseen", pad_batch=True),
}


class Network:
    """A checkpoint's network at one precision, over texts laid end to end."""

    def __init__(self, folder: Path, precision: Precision = "float32") -> None:
        """Read and round the weights."""
        config = json.loads((folder / "config.json").read_text())
        self._config = own = Architecture.of(config, 2048)
        self._precision = precision
        weights = Weights([folder / "model.safetensors"])
        self._table = Rows(weights["embed_tokens.weight"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

        def read(name: str) -> torch.Tensor:
            array = torch.from_numpy(weights[f"{name}.weight"].read())
            return array if array.ndim == 1 else self._rounded(array)

        self._layers = [
            {name: read(f"layers.{number}.{name}") for name in LAYER_TENSORS}
            for number in range(len(own.full))
        ]
        self._norm = read("norm")
        files = [folder / name / "model.safetensors" for name in ("2_Dense", "3_Dense")]
        whole = precision in ("int8", "int4")  # as OnnxRuntime: its Dense layers stay float32
        self._dense = [
            torch.from_numpy(dense_matrix(file))
            if whole
            else self._rounded(torch.from_numpy(dense_matrix(file)))
            for file in files
        ]
        self.inner = len(self._dense[0])
        self._states: dict[tuple[tuple[int, ...], Attention], torch.Tensor] = {}

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text, BOS and EOS included."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def states(self, rows: Sequence[tuple[list[int], Attention]]) -> list[torch.Tensor]:
        """Return the last hidden states of each row; what was computed before is remembered."""
        keys = [(tuple(ids), how.for_length(len(ids), self._config.reach)) for ids, how in rows]
        missing: dict[Attention, list[tuple[tuple[int, ...], Attention]]] = {}
        for ids, how in dict.fromkeys(keys):
            if (ids, how) not in self._states:
                alike = replace(how, causal=False, reach=None, split=None, read=None)
                missing.setdefault(alike, []).append((ids, how))
        for group in missing.values():
            self._states.update(zip(group, self._forward(group), strict=True))
        return [self._states[key] for key in keys]

    def dense(self, pooled: torch.Tensor, layers: int) -> torch.Tensor:
        """Apply the first Dense layers to pooled states."""
        for matrix in self._dense[:layers]:
            pooled = self._linear(pooled, matrix)
        return pooled

    def _forward(self, group: Sequence[tuple[tuple[int, ...], Attention]]) -> list[torch.Tensor]:
        own, how = self._config, group[0][1]
        lengths = [len(ids) for ids, _ in group]
        table = torch.from_numpy(self._table.take([i for ids, _ in group for i in ids]))
        x = table if self._precision in ("float32", "int8", "int4") else self._rounded(table)
        if how.scaled_table:
            x = x * math.sqrt(own.hidden)
        offset = 1.0 if how.norm_offset else 0.0
        scale = own.scale if how.head_scale else own.hidden**-0.5
        shape = (-1, own.heads, own.head)
        places = torch.cat([torch.arange(n) for n in lengths])

        def norm(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            size = rows.square().mean(-1, keepdim=True) + own.epsilon
            return rows * torch.rsqrt(size) * (offset + weight)

        rotations = {
            True: _rotation(places, how.full_base or own.full_base, own.head),
            False: _rotation(places, how.local_base or own.local_base, own.head),
        }
        masks: dict[tuple[int, Attention, bool], torch.Tensor | None] = {}
        for full, layer in zip(own.full, self._layers, strict=True):
            h = norm(x, layer["input_layernorm"])
            q = norm(
                self._linear(h, layer["self_attn.q_proj"]).view(shape), layer["self_attn.q_norm"]
            )
            k = self._linear(h, layer["self_attn.k_proj"]).view(-1, own.key_value_heads, own.head)
            k = norm(k, layer["self_attn.k_norm"])
            v = self._linear(h, layer["self_attn.v_proj"]).view(-1, own.key_value_heads, own.head)
            q, k = _rotated(q, *rotations[full]), _rotated(k, *rotations[full])
            parts = []
            split = (part.split(lengths) for part in (q, k, v))
            for qs, ks, vs, (ids, each) in zip(*split, group, strict=True):
                key = (len(ids), each, full)
                if key not in masks:
                    masks[key] = _mask(*key)
                attended = scaled_dot_product_attention(
                    *(part.transpose(0, 1)[None] for part in (qs, ks, vs)),
                    attn_mask=masks[key],
                    scale=scale,
                    enable_gqa=True,
                )
                parts.append(attended[0].transpose(0, 1).reshape(len(ids), -1))
            h = self._linear(torch.cat(parts), layer["self_attn.o_proj"])
            x = x + norm(h, layer["post_attention_layernorm"])
            h = norm(x, layer["pre_feedforward_layernorm"])
            gate = gelu(self._linear(h, layer["mlp.gate_proj"]), approximate="tanh")
            h = self._linear(gate * self._linear(h, layer["mlp.up_proj"]), layer["mlp.down_proj"])
            x = x + norm(h, layer["post_feedforward_layernorm"])
        return list(norm(x, self._norm).split(lengths))

    def _rounded(self, matrix: torch.Tensor) -> torch.Tensor:
        kind = self._precision
        if kind == "float32":
            return matrix
        if kind == "bfloat16":
            return matrix.bfloat16().float()
        if kind == "int8":
            codes, scales = to_int8(matrix.numpy())
            return torch.from_numpy((codes * scales).T.copy())
        if kind == "int4":
            pairs, scales = to_int4(matrix.numpy())
            codes = np.stack([pairs & 15, pairs >> 4], -1).reshape(*scales.shape, BLOCK)
            values = ((codes.astype(np.float32) - 8) * scales[..., None]).reshape(len(matrix), -1)
            return torch.from_numpy(values[:, : matrix.shape[1]].copy())
        # llama.cpp: blocks of 32 along a row, a float16 scale each.
        blocks = matrix.reshape(len(matrix), -1, 32)
        if kind == "q8_0":
            scale = _stored_scale(blocks.abs().amax(2, keepdim=True) / 127)
            return (torch.round(blocks / scale) * scale).reshape(matrix.shape)
        furthest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
        scale = _stored_scale(furthest / -8)
        codes4 = torch.clamp(torch.floor(blocks / scale + 8.5), 0, 15) - 8
        return (codes4 * scale).reshape(matrix.shape)

    def _linear(self, rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        if self._precision == "bfloat16":
            return (rows.bfloat16().float() @ matrix.T).bfloat16().float()
        if self._precision == "int8":  # one unsigned scale a token
            low = rows.amin(-1, keepdim=True).clamp(max=0)
            high = rows.amax(-1, keepdim=True).clamp(min=0)
            step = torch.where(high == low, 1.0, (high - low) / 255)
            zero = torch.round(-low / step)
            rows = (torch.clamp(torch.round(rows / step) + zero, 0, 255) - zero) * step
        return rows @ matrix.T


def _stored_scale(scale: torch.Tensor) -> torch.Tensor:
    stored = scale.half().float()
    return torch.where(stored == 0, 1.0, stored)


def _rotation(places: torch.Tensor, base: float, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = base ** -(torch.arange(0, size, 2).float() / size)
    angles = (places.float()[:, None] * frequencies).repeat(1, 2)[:, None]
    return angles.cos(), angles.sin()


def _rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


def _mask(length: int, how: Attention, full: bool) -> torch.Tensor | None:
    to, of = torch.arange(length)[:, None], torch.arange(length)
    seen = torch.ones(length, length, dtype=torch.bool)
    if how.read is not None:
        seen &= of < how.read
    if how.causal:
        seen &= of <= to
    if how.reach is not None and not full:
        seen &= (to - of).abs() < how.reach
    if how.split is not None:
        seen &= to // how.split == of // how.split
    seen |= to == of
    return None if bool(seen.all()) else seen


class Broken(Runtime):
    """A runtime on a network with a fault."""

    def __init__(self, network: Network, fault: Fault, model: Model = EMBEDDINGGEMMA_300M) -> None:
        """Take both; several runtimes may share a network."""
        self.network, self.fault, self._model = network, fault, model

    @property
    def model(self) -> Model:
        """The row of the model table."""
        return self._model

    @property
    def identity(self) -> Identity:
        """Of no index."""
        return Identity(self._model.name, "broken", "1", "broken", "float32", 2048)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute wrong vectors; see ``Runtime.embed``."""
        del truncate
        yield Batch(range(len(texts)), self.vectors(texts))

    def vectors(self, texts: Sequence[str]) -> list[Vectors]:
        """Return a vector for each prompted text."""
        fault, network = self.fault, self.network
        texts = [fault.text(text) for text in texts]
        rows = [fault.ids(network.tokens(text)) for text in texts]
        wide = max(map(len, rows)) if fault.pad_batch else PADDED
        padded = [ids + [PAD] * (wide - len(ids)) if fault.pad is not None else ids for ids in rows]
        how = fault.attention
        states = network.states(
            [
                (ids, replace(how, read=len(own)) if fault.pad == "unseen" else how)
                for ids, own in zip(padded, rows, strict=True)
            ]
        )
        if fault.pad == "attended":
            states = [each[: len(ids)] for each, ids in zip(states, rows, strict=True)]
        prompts = [len(network.tokens(_parts(text)[0])) - 1 for text in texts]
        pooled = torch.stack(
            [fault.pool(each, count) for each, count in zip(states, prompts, strict=True)]
        )
        return [fault.finish(v) for v in network.dense(pooled, fault.dense).numpy()]


def broken(folder: Path, fault: str, precision: Precision = "float32") -> Broken:
    """Return a runtime with a fault of ``FAULTS`` or ``OTHER_FAULTS``."""
    model = BUNDLED if folder.name == "bundled" else EMBEDDINGGEMMA_300M
    return Broken(Network(folder, precision), (FAULTS | OTHER_FAULTS)[fault], model)
