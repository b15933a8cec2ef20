"""The student's first weights: the teacher's own, layer by layer.

BERT and Gemma differ in three ways:

- BERT has biases. A LayerNorm's result has mean 0 before its weights, so a change of basis frees
  one dimension; the student keeps it at 1, and the matrices read their biases from it.
- Gemma normalises queries, keys and block outputs. A large constant in an additional dimension
  preserves their own lengths almost exactly; it is scaled away after the norm.
- The student has fewer and narrower layers. Each block's last matrix is fitted by least squares to
  map the student's states before it to the teacher's states after it, which corrects the errors of
  earlier blocks.
"""

import math
from collections.abc import Sequence

import torch
from constants import steady
from student import (
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    PROMPT_TOKENS,
    PROMPTS,
    SPECIAL,
    UNK,
    Student,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

CONTENT = HIDDEN - 1
HEAD = HIDDEN // HEADS
# The teacher's layer that gives each layer its weights, and the one whose output it is fitted to.
# Of all ways to leave out two of the teacher's layers, this one changes its vectors least.
CARRIED = ((0, 2), (3, 3), (4, 4), (5, 5))
# Constants this much longer than the rest of a vector leave the rest nearly unchanged by a norm.
CONSTANT = 5.0
# The constant neuron's input; its gelu is a constant too.
GATE = 3.0
CHOSEN_FROM = 30_000
DROPPED_AT_ONCE = 48
RIDGE = 1e-5
# The teacher's token that corresponds to each special token of the student.
COUNTERPARTS = ("[PAD]", "[SEP]", "[CLS]", "[UNK]")


def zero_mean_basis() -> Tensor:
    """Orthonormal basis of the vectors whose mean is 0, one column each."""
    first = torch.full((HIDDEN, 1), HIDDEN**-0.5)
    return torch.linalg.qr(torch.cat((first, torch.eye(HIDDEN)[:, :CONTENT]), 1))[0][:, 1:]


class Seam:
    """One of the teacher's LayerNorms, and its counterpart in the student."""

    def __init__(self, norm: nn.LayerNorm, basis: Tensor) -> None:
        self._gain, self._shift, self._basis = norm.weight, norm.bias, basis

    def content(self, states: Tensor) -> Tensor:
        """The student's states without the constant, for the LayerNorm's results."""
        return (states - self._shift) / self._gain @ self._basis

    def reading(self, dense: nn.Linear) -> Tensor:
        """A dense layer of the teacher, converted to read the student's states."""
        bias = dense.weight @ self._shift + dense.bias
        return torch.cat((dense.weight * self._gain @ self._basis, bias[:, None]), 1)


def gram(features: Tensor) -> Tensor:
    """Products of all pairs of columns, slightly ridged, in float64."""
    products = (features.T @ features).double()
    return products + RIDGE * products.diag().mean() * torch.eye(len(products))


def least_squares(features: Tensor, wanted: Tensor) -> Tensor:
    """The matrix that maps features closest to the targets."""
    return torch.linalg.solve(gram(features), (features.T @ wanted).double()).float()


def completion(states: Tensor, features: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
    """What to add to states to get the targets, up to a factor: norms discard lengths.

    Returns:
        The factor, and the matrix: states + features @ matrix is closest to factor * wanted.
    """
    rest = states - features @ least_squares(features, states)
    rest_wanted = wanted - features @ least_squares(features, wanted)
    factor = (rest.square().sum() / (rest * rest_wanted).sum()).item()
    return factor, least_squares(features, factor * wanted - states)


def neurons(states: Tensor, features: Tensor, wanted: Tensor) -> Tensor:
    """Choose features by repeatedly dropping those whose loss costs least.

    Returns:
        Columns, in order; always including the last one.
    """
    rows = torch.randperm(len(features))[:CHOSEN_FROM]
    states, features, wanted = states[rows], features[rows], wanted[rows]
    factor, _ = completion(states, features, wanted)
    products = gram(features)
    crossed = (features.T @ (factor * wanted - states)).double()
    chosen = torch.arange(features.shape[1])
    while len(chosen) > INTERMEDIATE:
        inverse = torch.linalg.inv(products[chosen][:, chosen])
        # How much the squared error grows without each feature, after refitting the others.
        cost = (inverse @ crossed[chosen]).square().sum(1) / inverse.diag()
        cost[-1] = torch.inf
        count = min(DROPPED_AT_ONCE, len(chosen) - INTERMEDIATE)
        stays = torch.ones(len(chosen), dtype=torch.bool)
        stays[cost.topk(count, largest=False).indices] = False
        chosen = chosen[stays]
    return chosen


class Transplant:
    """Builds the student on texts that both models read.

    The student reads one more token: the prompt, after BOS.
    """

    def __init__(self, student: Student, bert: BertModel, ids: list[Tensor]) -> None:
        """Run the teacher on the texts.

        Args:
            student: The model to change.
            bert: The teacher, in float32.
            ids: The teacher's token ids; one array for all texts of one length.
        """
        self._student, self._bert, self._ids = student, bert, ids
        self._basis = zero_mean_basis()
        self._attended, self._left = self._read()
        # The student's states so far, and their length relative to the teacher's.
        self._states: list[Tensor] = []
        self._factor = 1.0

    def _read(self) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's states in the middle and at the end of each layer, without [CLS]."""
        found: dict[nn.Module, list[Tensor]] = {}
        layers = self._bert.encoder.layer
        blocks = [block for each in layers for block in (each.attention.output, each.output)]

        def keep(block: nn.Module, inputs: object, output: Tensor) -> None:
            del inputs
            found.setdefault(block, []).append(output[:, 1:].reshape(-1, HIDDEN))

        hooks = [block.register_forward_hook(keep) for block in blocks]
        for each in self._ids:
            self._bert(input_ids=each)
        for hook in hooks:
            hook.remove()
        states = [torch.cat(found[block]) for block in blocks]
        return states[0::2], states[1::2]

    @staticmethod
    def _flat(states: list[Tensor]) -> Tensor:
        """One row a token, without BOS and the prompt, which the teacher does not read."""
        return torch.cat([each[:, 2:].reshape(-1, each.shape[-1]) for each in states])

    def table(self, vocabulary: dict[str, int], pieces: list[str]) -> None:
        """The token table: the teacher's, after its first LayerNorm at a middle position."""
        names = [*COUNTERPARTS, *["query"] * len(PROMPT_TOKENS), *pieces]
        teachers = torch.tensor([vocabulary[name] for name in names])
        embeddings = self._bert.embeddings
        places = embeddings.position_embeddings.weight
        where = places[1:32].mean(0).expand(len(names), HIDDEN).clone()
        where[COUNTERPARTS.index("[CLS]")] = places[0]
        kind = embeddings.token_type_embeddings.weight[0]
        rows = embeddings.word_embeddings.weight[teachers] + where + kind
        content = functional.layer_norm(rows, (HIDDEN,), eps=1e-12) @ self._basis
        table = torch.cat((content, torch.ones(len(names), 1)), 1)
        backbone = self._student.backbone
        # embed_tokens multiplies by the square root of the width.
        backbone.embed_tokens.weight.copy_(table / math.sqrt(HIDDEN))

        first = len(SPECIAL) + len(PROMPT_TOKENS)
        ours = torch.full((len(vocabulary),), UNK)
        ours[teachers[: len(SPECIAL)]] = torch.arange(len(SPECIAL))
        ours[teachers[first:]] = torch.arange(first, len(names))
        prompts = [PROMPT_TOKENS.index(PROMPTS[name].strip()) for name in ("query", "document")]
        for number, each in enumerate(self._ids):
            prompt = torch.full((len(each), 1), len(SPECIAL) + prompts[number % 2])
            ids = torch.cat((ours[each[:, :1]], prompt, ours[each[:, 1:]]), 1)
            self._states.append(backbone.embed_tokens(ids))

    def layer(self, student: nn.Module, source: int, until: int) -> None:
        """One layer of the student.

        Args:
            student: The layer.
            source: The teacher's layer whose weights it gets.
            until: The teacher's layer whose output states are its targets.
        """
        teacher = self._bert.encoder.layer[source]
        below = self._bert.encoder.layer[source - 1].output if source else self._bert.embeddings
        seam = Seam(below.LayerNorm, self._basis)
        self._attention(student, teacher, seam, self._attended[source])
        seam = Seam(teacher.attention.output.LayerNorm, self._basis)
        end = Seam(self._bert.encoder.layer[until].output.LayerNorm, self._basis)
        gates = seam.reading(teacher.intermediate.dense)
        self._feed_forward(student, gates, end.content(self._left[until]))

    def _attention(self, layer: nn.Module, teacher: nn.Module, seam: Seam, states: Tensor) -> None:
        attention, own = layer.self_attn, teacher.attention.self
        normed = [layer.input_layernorm(each) for each in self._states]
        denses = (own.query, own.key, own.value)
        query, key, value = (seam.reading(dense).view(HEADS, HEAD, HIDDEN) for dense in denses)
        self._products(attention, self._flat(normed), query, key)
        # A constant replaces the weakest of the first head's values.
        _, sizes, right = torch.linalg.svd(
            teacher.attention.output.dense.weight[:, :HEAD] @ value[0]
        )
        value[0] = right[:HEAD] * sizes[:HEAD, None].sqrt()
        value[0, -1] = 0
        value[0, -1, -1] = 1
        attention.v_proj.weight.copy_(value.reshape(HIDDEN, HIDDEN))

        mixed: list[Tensor] = []
        hook = attention.o_proj.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0]))
        self._attend(attention, normed)
        hook.remove()
        wanted = Seam(teacher.attention.output.LayerNorm, self._basis).content(states)
        norm = layer.post_attention_layernorm
        attention.o_proj.weight.copy_(self._fit(norm, self._flat(mixed), wanted, HEAD - 1))
        added = self._attend(attention, normed)
        self._states = [s + norm(a) for s, a in zip(self._states, added, strict=True)]

    def _products(self, attention: nn.Module, flat: Tensor, query: Tensor, key: Tensor) -> None:
        """Queries and keys with the same products, without the two weakest of each head."""
        left, sizes, right = torch.linalg.svd(query.transpose(1, 2) @ key)
        root = sizes[:, : HEAD - 2, None].sqrt()
        half = HEAD // 2
        both = {"q": left.transpose(1, 2)[:, : HEAD - 2] * root, "k": right[:, : HEAD - 2] * root}
        for name, rows in both.items():
            squares = torch.einsum("nd,hfd->hnf", flat, rows).square().sum(-1).median(1).values
            total = (1 + CONSTANT**2) * squares.max()
            weight = torch.zeros(HEADS, HEAD, HIDDEN)
            # The rotary embedding turns the last pairs least, so the strongest go there.
            weight[:, 1:half] = rows[:, 0::2].flip(1)
            weight[:, half + 1 :] = rows[:, 1::2].flip(1)
            weight[:, 0, -1] = (total - squares).sqrt()
            getattr(attention, f"{name}_proj").weight.copy_(weight.view(HIDDEN, HIDDEN))
            gain = getattr(attention, f"{name}_norm").weight
            # Gemma's norms multiply by 1 + weight.
            gain.fill_((total / HEAD).sqrt() - 1)
            gain[[0, half]] = -0.9

    def _feed_forward(self, layer: nn.Module, gates: Tensor, wanted: Tensor) -> None:
        mlp, norm = layer.mlp, layer.post_feedforward_layernorm
        normed = [layer.pre_feedforward_layernorm(each) for each in self._states]
        flat = self._flat(normed)
        active = functional.gelu(flat @ gates.T, approximate="tanh") * flat[:, -1:]
        constant = functional.gelu(torch.full((len(flat), 1), GATE), approximate="tanh")
        active = torch.cat((active, constant), 1)
        chosen = neurons(self._flat(self._states)[:, :CONTENT], active, wanted)
        mlp.gate_proj.weight.zero_()
        mlp.gate_proj.weight[:-1] = gates[chosen[:-1]]
        mlp.gate_proj.weight[-1, -1] = GATE
        # BERT's neurons have one factor only; the other one starts as 1.
        mlp.up_proj.weight.zero_()
        mlp.up_proj.weight[:, -1] = 1
        mlp.down_proj.weight.copy_(self._fit(norm, active[:, chosen], wanted, INTERMEDIATE - 1))
        added = [mlp(each) for each in normed]
        self._states = [s + norm(a) for s, a in zip(self._states, added, strict=True)]

    def _attend(self, attention: nn.Module, normed: list[Tensor]) -> list[Tensor]:
        found = []
        for each in normed:
            places = torch.arange(each.shape[1])[None]
            turns = self._student.backbone.rotary_emb(each, places, "sliding_attention")
            found.append(attention(each, position_embeddings=turns, attention_mask=None)[0])
        return found

    def _fit(self, norm: nn.Module, features: Tensor, wanted: Tensor, constant: int) -> Tensor:
        """Fit a block's last matrix, and set the norm after it.

        Args:
            norm: The norm.
            features: What the matrix reads, one row a token.
            wanted: Target states after the block, up to a factor.
            constant: The feature that is always the same.

        Returns:
            The matrix.
        """
        states = self._flat(self._states)[:, :CONTENT]
        factor, matrix = completion(states, features, wanted)
        length = (features @ matrix).norm(dim=1).median().item()
        size = CONSTANT * length
        root = math.sqrt((length**2 + size**2) / HIDDEN)
        norm.weight.fill_(root - 1)
        # The states' constant grows like their content.
        norm.weight[-1] = (factor - self._factor) * root / size - 1
        self._factor = factor
        last = torch.zeros(1, len(matrix))
        last[0, constant] = size / features[0, constant]
        return torch.cat((matrix.T, last))

    def dense(self, turn: Tensor) -> None:
        """The Dense layers: the teacher's states, turned.

        Args:
            turn: Orthogonal matrix that the targets are multiplied by.
        """
        student = self._student
        states = self._flat([student.backbone.norm(each) for each in self._states])
        student.dense_in.weight.copy_(least_squares(states, self._left[-1]).T)
        student.dense_out.weight[: len(turn)] = turn.T
        student.dense_out.weight[len(turn) :].normal_(std=0.02, mean=0)


def transplant(
    student: Student,
    bert: BertModel,
    vocabulary: dict[str, int],
    pieces: list[str],
    ids: Sequence[Tensor],
    turn: Tensor,
) -> None:
    """Give the student its first weights.

    Args:
        student: The model to change.
        bert: The teacher, in float32.
        vocabulary: The teacher's word pieces and their ids.
        pieces: Those of the student.
        ids: The teacher's token ids of thousands of texts; one array for all texts of one length.
        turn: Orthogonal matrix that the targets are multiplied by.
    """
    with torch.no_grad():
        work = Transplant(student, bert, list(ids))
        work.table(vocabulary, pieces)
        for layer, (source, until) in zip(student.backbone.layers, CARRIED, strict=True):
            work.layer(layer, source, until)
        work.dense(turn)
    steady(student.backbone)
