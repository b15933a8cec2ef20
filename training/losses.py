"""Losses: the student's distance from its targets."""

import torch
from data import Asked
from student import WIDTHS
from teacher import WIDTH as TEACHER_WIDTH
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.05
# The teacher's cosine above which another passage probably answers a question too.
SAME = 0.75


def distillation_loss(output: Tensor, target: Tensor) -> Tensor:
    """Distance of a batch from the teacher.

    Args:
        output: Student output, before normalisation.
        target: Unit teacher vectors, rotated so that the first columns carry most.

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


def token_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Share of the teacher's token states that the student's miss.

    A text's vector is the mean of its tokens, so this teaches the same, with one example a token.

    Args:
        found: Student output for each token, before pooling.
        wanted: The teacher's states, rotated.

    Returns:
        Squared error as a share of the targets' square.
    """
    return (found - wanted).square().sum() / wanted.square().sum()


def answer_loss(output: Tensor, target: Tensor, pairs: Asked) -> Tensor:
    """How hard it is to identify the passage that answers a question.

    Args:
        output: Student output, before normalisation.
        target: Unit teacher vectors.
        pairs: The batch, and which texts are questions and passages.

    Returns:
        Cross-entropy of each question's passage among the batch's, averaged over the widths.
    """
    passages = target[pairs.passages]
    alike = (passages @ passages.T >= SAME).fill_diagonal_(False)
    right = torch.arange(len(passages))
    losses = []
    for width in WIDTHS:
        cut = functional.normalize(output[:, :width], dim=-1)
        scores = cut[pairs.questions] @ cut[pairs.passages].T / TEMPERATURE
        losses.append(functional.cross_entropy(scores.masked_fill(alike, -torch.inf), right))
    return torch.stack(losses).mean()
