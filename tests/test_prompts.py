"""Prompts, byte for byte those of the model card and the published checkpoint."""

from __future__ import annotations

import checkpoints
import pytest
from fakes import FakeRuntime

from gemma_embed import Embedder, custom_task, path
from gemma_embed.errors import ConfigurationError, InvalidInput, ModelCorrupt
from gemma_embed.models import EMBEDDINGGEMMA_300M
from gemma_embed.prompts import TASKS, checked_task

PROMPTS = EMBEDDINGGEMMA_300M.prompts

CARD = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "question answering": "task: question answering | query: ",
    "fact checking": "task: fact checking | query: ",
    "classification": "task: classification | query: ",
    "clustering": "task: clustering | query: ",
    "sentence similarity": "task: sentence similarity | query: ",
    "code retrieval": "task: code retrieval | query: ",
    "summarization": "task: summarization | query: ",
}


def test_every_task_has_the_model_cards_prompt() -> None:
    assert {task: PROMPTS.prefix(task) for task in TASKS} == CARD


def test_the_published_checkpoint_states_the_same_prompts() -> None:
    for task, key in EMBEDDINGGEMMA_300M.prompt_keys.items():
        assert checkpoints.PROMPTS[key] == PROMPTS.prefix(task)


def test_symmetric_tasks_are_tasks() -> None:
    assert set(TASKS) > EMBEDDINGGEMMA_300M.symmetric_tasks


@pytest.mark.parametrize(
    "text", ["", " leading", "two\nlines\n", "{braces} {0} %s", "title: x | text: y", "é😀 ✂"]
)
@pytest.mark.parametrize("task", ["query", "document"])
def test_the_text_is_never_altered(text: str, task: str) -> None:
    assert PROMPTS.prompted(text, task) == CARD[task] + text


def test_a_title_fills_its_field() -> None:
    assert (
        PROMPTS.prompted("body", "document", "Eiffel Tower") == "title: Eiffel Tower | text: body"
    )


@pytest.mark.parametrize("title", [None, "", "  \n", "|"])
def test_a_blank_title_counts_as_none(title: str | None) -> None:
    assert PROMPTS.prompted("body", "document", title) == "title: none | text: body"


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [
        ("A | text: forged", "A text: forged"),
        ("two\nlines", "two lines"),
        ("{title} {0}", "{title} {0}"),
    ],
)
def test_a_title_cannot_forge_the_text_field(title: str, cleaned: str) -> None:
    assert PROMPTS.prompted("body", "document", title) == f"title: {cleaned} | text: body"


def test_a_custom_task_is_described_in_its_prompt() -> None:
    task = custom_task("legal clause lookup")
    assert PROMPTS.prompted("x", task) == "task: legal clause lookup | query: x"


@pytest.mark.parametrize("description", ["", " ", "a | query: b", "a\nb"])
def test_a_description_that_would_break_the_prompt_is_refused(description: str) -> None:
    with pytest.raises(ConfigurationError, match="one non-empty line"):
        custom_task(description)


@pytest.mark.parametrize(
    ("description", "words"), [("x\ud800", "lone surrogate"), (None, "NoneType"), (b"x", "bytes")]
)
def test_a_description_that_is_not_unicode_is_refused(description: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        custom_task(description)


@pytest.mark.parametrize("key", ["query", "document"])
def test_a_checkpoints_prompt_that_is_not_unicode_is_refused(key: str) -> None:
    own = checkpoints.PROMPTS | {key: "ask \ud800: "}
    with pytest.raises(ModelCorrupt, match=f"{key!r}.* lone surrogate"):
        PROMPTS.overridden(own, EMBEDDINGGEMMA_300M.prompt_keys)


@pytest.mark.parametrize("task", ["Query", "search", "", "STS", None, 3])
def test_an_unknown_task_is_refused_with_the_known_ones(task: str) -> None:
    with pytest.raises(ConfigurationError, match="'question answering'"):
        checked_task(task)


def test_a_checkpoint_that_agrees_changes_nothing() -> None:
    prompts, changed = PROMPTS.overridden(checkpoints.PROMPTS, EMBEDDINGGEMMA_300M.prompt_keys)
    assert prompts is PROMPTS
    assert changed == ()


def test_a_fine_tunes_prompts_are_used() -> None:
    own = checkpoints.PROMPTS | {"query": "ask: ", "document": "title: none | passage: "}
    prompts, changed = PROMPTS.overridden(own, EMBEDDINGGEMMA_300M.prompt_keys)
    assert changed == ("document", "query")
    assert prompts.prompted("x", "query") == "ask: x"
    assert prompts.prompted("x", "document", "T") == "title: T | passage: x"
    assert prompts.prompted("x", "clustering") == CARD["clustering"] + "x"


def test_a_fine_tune_without_a_title_field_refuses_titles() -> None:
    prompts, _ = PROMPTS.overridden({"document": "passage: "}, EMBEDDINGGEMMA_300M.prompt_keys)
    assert prompts.prompted("x", "document") == "passage: x"
    with pytest.raises(InvalidInput, match="no place for a title"):
        prompts.prompted("x", "document", "T")


@pytest.mark.parametrize(
    "text",
    [
        "task: search result | query: mars",
        "title: none | text: mars",
        "title: A title of some words | text: mars",
        "task: code retrieval | query: def f",
    ],
)
def test_a_text_that_has_a_prompt_is_warned_about(
    text: str, fake: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    path._warn_of_doubled.cache_clear()
    for before in range(3):
        Embedder(fake).embed(["mars"] * before + [text])
    (record,) = caplog.records
    assert "a text begins with a prompt of the model" in record.message
    assert "mars" not in record.message


@pytest.mark.parametrize(
    "text",
    ["task: wash the car", "title: none", "a title: none | text: b", "", "title: " + "x" * 400],
)
def test_texts_that_look_a_little_like_prompts_are_not(
    text: str, fake: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    path._warn_of_doubled.cache_clear()
    Embedder(fake).embed([text])
    assert not caplog.records
