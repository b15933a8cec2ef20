"""Text about everyday life, written for this training: documentation tells little of it.

The topics follow the divisions of the Dewey Decimal Classification, so that they cover what people
write notes about without a look at what the model is measured on. Licence: the project's.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sentences import sentences

FOLDER = Path(__file__).with_name("written")
SOURCE = "written"


def parts(entry: dict) -> list[str]:
    """All texts of an entry that training reads by themselves."""
    return [entry["text"], entry["title"], *sentences(entry["text"]), *entry["questions"]]


def entries() -> Iterator[dict]:
    """Passages, each with its title, its text and questions that it answers in other words."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        yield from map(json.loads, path.read_text().splitlines())
