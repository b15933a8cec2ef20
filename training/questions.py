"""Synthetic questions: documentation has few, and a search model gets little else.

The teacher embeds any wording, so these need not be true or sensible: they only need the form of
what people type.
"""

import random
import re
from math import isqrt
from pathlib import Path

NOUN_FILES = {
    4: "act", 5: "animal", 6: "thing", 7: "quality", 8: "body", 9: "idea", 10: "message",
    11: "event", 12: "feeling", 13: "food", 14: "group", 15: "place", 17: "nature", 18: "person",
    19: "phenomenon", 20: "plant", 21: "money", 23: "amount", 26: "state", 27: "substance",
    28: "time",
}  # fmt: skip

# Beginnings of questions, and complete questions and statements with slots for kinds of words.
STEMS = Path(__file__).with_name("stems.txt").read_text().splitlines()
TEMPLATES = Path(__file__).with_name("templates.txt").read_text().splitlines()


def lexicon(folder: Path) -> dict[str, list[str]]:
    """Common words of WordNet by kind: nouns by lexicographer file, verbs and adjectives.

    Args:
        folder: The folder of the WordNet database.

    Returns:
        Kind to words. A word is included if its first sense occurs in WordNet's tagged texts. It is
        repeated by the square root of its count, so that frequent words are drawn more often.
    """
    words: dict[str, list[str]] = {}
    for line in (folder / "cntlist.rev").read_text().splitlines():
        key, sense, tagged = line.split()
        lemma, _, rest = key.partition("%")
        kind, file_number = (int(part) for part in rest.split(":")[:2])
        name = {2: "verb", 3: "adj", 5: "adj"}.get(kind, NOUN_FILES.get(file_number))
        if sense == "1" and name and kind != 4 and re.fullmatch(r"[a-z_]{3,20}", lemma):
            words.setdefault(name, []).extend([lemma.replace("_", " ")] * isqrt(400 * int(tagged)))
    for line in (folder / "data.noun").read_text().splitlines():
        # The tagged texts have few animals, plants and foods: take the rest of them too.
        columns = line.split()
        if not line.startswith(" ") and columns[1] in ("05", "13", "20", "15"):
            name = NOUN_FILES[int(columns[1])]
            if columns[4].isalpha() and columns[4].islower() and columns[2] == "n":
                words[name].append(columns[4])
    return words


def template_questions(
    words: dict[str, list[str]], rng: random.Random, count: int
) -> list[dict[str, str]]:
    """Fill the templates with random words."""

    def fill(match: re.Match[str]) -> str:
        word = rng.choice(words[match[1]])
        if match[2] and match[1] == "verb":
            # Approximate spelling: "make" + "ing" is "making".
            return word.removesuffix("e") + match[2]
        return word + match[2]

    texts = (re.sub(r"\{(\w+)\}((?:ing|ed)?)", fill, rng.choice(TEMPLATES)) for _ in range(count))
    return [{"text": text, "title": "", "source": "templates"} for text in texts]


def questions_about(
    rows: list[dict[str, str]], rng: random.Random, count: int
) -> list[dict[str, str]]:
    """Questions and keyword searches made from pieces of the collected texts.

    Args:
        rows: The collected texts.
        rng: Source of the sampling.
        count: How many to make.

    Returns:
        Rows like the collected ones.
    """

    def piece() -> str:
        words = rng.choice(rows)["text"].rstrip(".!?").split()
        size = rng.choice((1, 2, 3, 3, 4, 5, 6, 8))
        start = rng.randrange(max(1, len(words) - size + 1))
        return " ".join(words[start : start + size]).strip(",;:()\"'")

    def keywords() -> str:
        words = [w.strip(".,;:()\"'") for w in rng.choice(rows)["text"].split()]
        long = [word for word in words if len(word) > 4] or words
        return " ".join(rng.sample(long, min(len(long), rng.randint(2, 6))))

    texts: list[str] = []
    for _ in range(count):
        stem = rng.choice(STEMS)
        question = stem.format(*(piece() for _ in range(stem.count("{}"))))
        text = rng.choice((question, question, keywords()))
        texts.append(text.lower() + "?" if rng.random() < 0.4 else text)
    return [{"text": text, "title": "", "source": "questions"} for text in texts]
