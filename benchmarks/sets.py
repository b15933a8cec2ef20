"""The sets of passages and questions that the project ships.

Everyday and technical matters, whose questions share few words with the passages, and the example
notes.
"""

from __future__ import annotations

import json
from pathlib import Path

from gemma_embed.evaluate import Question, read_passages, read_questions
from gemma_embed.passages import Passage

ROOT = Path(__file__).parent.parent
Set = tuple[list[Passage], list[Question]]


def committed(name: str) -> Set:
    """Return one of the sets of ``training/evaluation``."""
    data = json.loads((ROOT / "training" / "evaluation" / f"{name}.json").read_text())
    passages = [
        Passage(each["text"], each["id"], metadata={"title": each["title"]})
        for each in data["passages"]
    ]
    return passages, [Question(each["text"], tuple(each["relevant"])) for each in data["queries"]]


def all_sets() -> dict[str, Set]:
    """Return the three sets."""
    examples = ROOT / "examples"
    notes = read_passages(examples / "notes"), read_questions(examples / "questions.json")
    return {"everyday": committed("everyday"), "technical": committed("technical"), "notes": notes}
