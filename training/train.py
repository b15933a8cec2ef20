"""Distil the teacher into the student.

Two stages: the token table and the Dense layers alone (`without_layers`, seconds a pass), then the
whole model. Both learn the teacher's vectors and, at every Matryoshka width, the teacher's
similarities among the texts of a batch; the whole model first learns the teacher's state of every
token too.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from data import BATCH, Batch, Corpus, batches, pad
from export import exported
from safetensors.torch import load_file, save_file
from student import (
    SPECIAL,
    WIDTHS,
    Student,
    build_tokenizer,
    first_weights,
    grow,
    kept_pieces,
    layers_of,
    part_of,
    teacher_vocabulary,
)
from targets import Targets
from teacher import WIDTH as TEACHER_WIDTH
from teacher import Teacher, sentence_vectors
from torch import Tensor
from torch.nn import functional

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

HELD_OUT = 4096
SAMPLE = 20_000
PART = 64
TEMPERATURE = 0.05
TABLE_SHARE = 0.25
EMA_EVERY = 10
EMA_DECAY = 0.95


def distillation_loss(output: Tensor, target: Tensor) -> Tensor:
    """How far a batch is from the teacher.

    Args:
        output: Student output, before normalisation.
        target: Unit teacher vectors, rotated so that the first columns matter most.

    Returns:
        Cosine distance of the first columns to the teacher's vector, plus, averaged over the
        widths, the squared error of the similarities and the divergence of the rankings.
    """
    loss = 1 - functional.cosine_similarity(output[:, :TEACHER_WIDTH], target, dim=-1).mean()
    others = ~torch.eye(len(target), dtype=torch.bool)
    wanted = (target @ target.T)[others].view(len(target), -1)
    ranking = functional.softmax(wanted / TEMPERATURE, -1)
    for width in WIDTHS:
        cut = functional.normalize(output[:, :width], dim=-1)
        found = (cut @ cut.T)[others].view(len(target), -1)
        divergence = functional.kl_div(
            functional.log_softmax(found / TEMPERATURE, -1), ranking, reduction="batchmean"
        )
        error = functional.mse_loss(found, wanted)
        loss = loss + (20 * error + divergence) / len(WIDTHS)
    return loss


def rotation(vectors: np.ndarray) -> np.ndarray:
    """Orthogonal matrix whose first columns carry most of the vectors (PCA without centring)."""
    sample = vectors.astype(np.float32)
    return np.linalg.eigh(sample.T @ sample)[1][:, ::-1].copy()


def token_loss(found: Tensor, wanted: Tensor, scale: float) -> Tensor:
    """Share of the teacher's token states that the student's miss.

    A text's vector is the mean of its tokens, so this teaches the same thing, in as many examples
    as there are tokens.

    Args:
        found: Student output for each token, before pooling.
        wanted: The teacher's states, rotated.
        scale: Length of the student's states in the teacher's; pooled vectors have none to keep.

    Returns:
        Squared error, of the square of what is wanted.
    """
    return (found - scale * wanted).square().sum() / (scale * wanted).square().sum()


def outputs(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run a model on a batch, in parts that a processor's cache can hold.

    Returns:
        One row a text, and one row a token, text after text, without padding.
    """
    texts, tokens = [], []
    for ids, mask in batch.parts(PART):
        with torch.autocast("cpu", torch.bfloat16):
            output, states = run(ids, mask)
        texts.append(output)
        tokens.append(states[mask.bool()])
    return torch.cat(texts), torch.cat(tokens).float()


def agreement(student: Student, corpus: Corpus, target: Tensor, whole: bool) -> dict[str, float]:
    """How well held-out texts agree with the teacher.

    Args:
        student: The model.
        corpus: The texts; the first `HELD_OUT` are held out.
        target: Teacher vectors of the held-out texts.
        whole: Whether to run the encoder layers.

    Returns:
        Mean cosine, and for the query form of each text, how often the nearest document (other
        than itself) is the teacher's nearest, at 768 and 128 wide.
    """
    found = []
    for prompt in ("task: search result | query: ", "title: none | text: "):
        sequences = [corpus.prompted(i, prompt) for i in range(HELD_OUT)]
        order = np.argsort([len(s.ids) for s in sequences])
        output = torch.empty(HELD_OUT, WIDTHS[0])
        for part in order.reshape(-1, BATCH):
            batch = pad([sequences[i] for i in part], part)
            run = student if whole else student.without_layers
            with torch.inference_mode():
                output[torch.from_numpy(part)] = outputs(run, batch)[0]
        found.append(output)
    queries, documents = found

    def nearest(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T).fill_diagonal_(-1).argmax(-1)

    wanted = nearest(target, target)
    result = {
        "cosine": functional.cosine_similarity(queries[:, :TEACHER_WIDTH], target).mean().item()
    }
    for width in (768, 128):
        left, right = (functional.normalize(x[:, :width], dim=-1) for x in (queries, documents))
        result[f"nearest@{width}"] = (nearest(left, right) == wanted).float().mean().item()
    return {name: round(value, 4) for name, value in result.items()}


def rate(step: int, steps: int, decay: float) -> float:
    """Learning rate factor: a short rise, a plateau, and a fall over the last part."""
    left = (steps - step) / max(1, decay * steps)
    return min(1.0, (step + 1) / 200, max(0.0, left))


def save(path: Path, student: Student, average: Student, turn: np.ndarray, scale: float) -> None:
    """Write a checkpoint in one move, so that a reader never finds half of one."""
    tensors = {"turn": torch.from_numpy(turn), "scale": torch.tensor(scale)}
    for name, model in (("model", student), ("average", average)):
        tensors |= {f"{name}.{key}": value for key, value in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.rename(path)


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("build/training/corpus.jsonl"))
    parser.add_argument("--teacher", type=Path, default=Path("build/training/teacher.npy"))
    parser.add_argument("--out", type=Path, default=Path("build/training/checkpoint.safetensors"))
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--resume", type=Path, help="go on from this checkpoint")
    origin.add_argument("--start", type=Path, help="grow from this exported folder")
    parser.add_argument("--layers", type=int, default=3, help="of a new or grown model")
    parser.add_argument("--table-passes", type=int, default=2, help="passes of the first stage")
    parser.add_argument("--steps", type=int, default=8000, help="steps of the second stage")
    parser.add_argument("--decay", type=float, default=0.3, help="share of steps that slow down")
    parser.add_argument("--token-share", type=float, default=1.0, help="of the loss of tokens")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    known = teacher_vocabulary()
    pieces = kept_pieces(known)
    corpus = Corpus(args.corpus, build_tokenizer(pieces))
    vocab_size = len(SPECIAL) + len(pieces)
    resumed = load_file(args.resume) if args.resume else None
    layers = layers_of(part_of(resumed, "model")) if resumed else args.layers
    student = Student(vocab_size, layers)
    # On a CPU and for texts this short, plain attention compiles to faster code than the fused one.
    student.backbone.set_attn_implementation("eager")
    weights = sum(parameter.numel() for parameter in student.parameters())
    print(f"{vocab_size} pieces, {weights} weights", flush=True)

    if resumed:
        turn = resumed["turn"].numpy()
        student.load_state_dict(part_of(resumed, "model"))
    else:
        turn = rotation(np.load(args.teacher, mmap_mode="r")[:SAMPLE])
    if args.start:
        grow(student, exported(args.start))
    elif not resumed:
        frame = (known["[CLS]"], known["[SEP]"])
        states = Teacher().states([[frame[0], known[piece], frame[1]] for piece in pieces])
        counts = corpus.counts(vocab_size)[len(SPECIAL) :]
        vectors = sentence_vectors(states).astype(np.float32)
        first_weights(student, vectors @ turn, counts / counts.sum())
    lengths = corpus.lengths()
    targets = Targets(args.teacher, turn, lengths)
    held_out = targets.vectors[:HELD_OUT].float()
    scale = resumed["scale"].item() if resumed else 0.0

    def learn(
        batch: Batch, run: Run, token_share: float, *optimizers: torch.optim.Optimizer
    ) -> list[float]:
        nonlocal scale
        output, tokens = outputs(run, batch)
        losses = [distillation_loss(output, targets.of_texts(batch))]
        if token_share:
            wanted = targets.of_tokens(batch)
            scale = scale or ((tokens * wanted).sum() / wanted.square().sum()).item()
            losses.append(token_share * token_loss(tokens, wanted, scale))
        loss = torch.stack(losses).sum()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        return [each.item() for each in losses]

    began = time.monotonic()
    if resumed or args.start:
        print("start", agreement(student, corpus, held_out, whole=True), flush=True)
    else:
        print("start", agreement(student, corpus, held_out, whole=False), flush=True)
        optimizer = torch.optim.AdamW(
            student.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0, fused=True
        )
        for number in range(args.table_passes):
            losses = [
                learn(batch, student.without_layers, 0, optimizer)
                for batch in batches(corpus, targets.vectors, HELD_OUT, rng)
            ]
            for group in optimizer.param_groups:
                group["lr"] /= 2
            seconds = time.monotonic() - began
            result = agreement(student, corpus, held_out, whole=False)
            print(f"table {number} {seconds:.0f}s loss {np.mean(losses):.4f} {result}", flush=True)
            targets = Targets(args.teacher, turn, lengths)

    # Adam takes as large a step for a rare word seen once as for a weight seen always: slow it.
    table = student.backbone.embed_tokens.weight
    matrices = [p for p in student.backbone.layers.parameters() if p.ndim == 2]
    known_to_others = {id(p) for p in (table, *matrices)}
    rest = [p for p in student.parameters() if id(p) not in known_to_others]
    groups = [{"params": rest, "share": 1.0}, {"params": [table], "share": TABLE_SHARE}]
    optimizers = (
        torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        torch.optim.Muon(
            [{"params": matrices, "share": 1.0}],
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        ),
    )
    average = copy.deepcopy(student)
    if resumed:
        average.load_state_dict(part_of(resumed, "average"))
    run = torch.compile(student, dynamic=True)
    step = 0
    losses = []
    while step < args.steps:
        targets = Targets(args.teacher, turn, lengths)
        for batch in batches(corpus, targets.vectors, HELD_OUT, rng):
            factor = rate(step, args.steps, args.decay)
            for group in (group for each in optimizers for group in each.param_groups):
                group["lr"] = args.learning_rate * factor * group["share"]
            losses.append(learn(batch, run, args.token_share * factor, *optimizers))
            step += 1
            if step % EMA_EVERY == 0:
                with torch.no_grad():
                    pairs = zip(average.parameters(), student.parameters(), strict=True)
                    for old, new in pairs:
                        old.lerp_(new, 1 - EMA_DECAY)
            if step % 100 == 0 or step == args.steps:
                seconds = time.monotonic() - began
                means = np.mean(losses, 0).round(4)
                print(f"step {step} {seconds:.0f}s losses {means}", flush=True)
                losses = []
            if step % 1000 == 0 or step == args.steps:
                print(json.dumps(agreement(average, corpus, held_out, whole=True)), flush=True)
                save(args.out, student, average, turn, scale)
            if step == args.steps:
                break


if __name__ == "__main__":
    main()
