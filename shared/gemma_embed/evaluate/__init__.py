"""Which runtimes, precisions, widths, prompts and titles search your own texts best.

Needs the extra ``evaluate``.
"""

from gemma_embed.evaluate.comparison import Agreement, Comparison, agreement, compare
from gemma_embed.evaluate.evaluation import evaluate
from gemma_embed.evaluate.questions import (
    Question,
    draw_questions,
    read_passages,
    read_questions,
)
from gemma_embed.evaluate.report import Report, Row
from gemma_embed.evaluate.scores import Interval
from gemma_embed.evaluate.settings import Setting

__all__ = [
    "Agreement",
    "Comparison",
    "Interval",
    "Question",
    "Report",
    "Row",
    "Setting",
    "agreement",
    "compare",
    "draw_questions",
    "evaluate",
    "read_passages",
    "read_questions",
]
