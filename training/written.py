"""Text about everyday life, written for this training: documentation tells little of it.

The topics follow the divisions of the Dewey Decimal Classification, so that they cover what people
write notes about without a look at what the model is measured on. Licence: the project's.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).with_name("written")
SOURCE = "written"


def written_texts() -> Iterator[dict[str, str]]:
    """Rows like the collected ones: passages with and without their title, and all their parts."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            title, text = entry["title"], entry["text"]
            yield {"text": text, "title": title, "source": SOURCE}
            sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)
            for plain in (text, title, *sentences, *entry["questions"]):
                yield {"text": plain, "title": "", "source": SOURCE}
