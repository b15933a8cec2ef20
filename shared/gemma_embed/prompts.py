"""Tasks, and the prompt that each puts before a text.

EmbeddingGemma was trained with a prompt before every text; without it, retrieval quality drops
silently. The forms are those of Google's model card
(https://ai.google.dev/gemma/docs/embeddinggemma/model_card, section "Prompt instructions").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from gemma_embed.errors import ConfigurationError, InvalidInput, ModelCorrupt

Task = Literal[
    "query",
    "document",
    "question answering",
    "fact checking",
    "classification",
    "clustering",
    "sentence similarity",
    "code retrieval",
    "summarization",
]

TASKS: tuple[str, ...] = get_args(Task)

_CUSTOM = "custom:"


def custom_task(description: str) -> str:
    """Name a task that the model card does not list.

    Args:
        description: What goes into ``task: {description} | query: ``, for example ``legal clause
            lookup``.

    Returns:
        A task name, accepted wherever a ``Task`` is.

    Raises:
        ConfigurationError: If the description is not a str, is empty, or holds ``|`` or a line
            break.
    """
    if not isinstance(description, str):
        raise ConfigurationError(
            f"a custom task's description must be a str, got {type(description).__name__}"
        )
    return checked_task(_CUSTOM + description)


def checked_task(task: str) -> str:
    """Return ``task`` if it names a task.

    Raises:
        ConfigurationError: If it is neither in ``Task`` nor made by ``custom_task``.
    """
    if task in TASKS:
        return task
    if isinstance(task, str) and task.startswith(_CUSTOM):
        description = task.removeprefix(_CUSTOM)
        if not description.strip() or any(mark in description for mark in "|\r\n"):
            raise ConfigurationError(
                "a custom task's description must be one non-empty line without '|', "
                f"got {description!r}"
            )
        if not _is_unicode(description):
            raise ConfigurationError(
                f"a custom task's description has a lone surrogate, which is not Unicode text; "
                f"got {description!r}"
            )
        return task
    raise ConfigurationError(
        f"unknown task {task!r}; use one of {', '.join(map(repr, TASKS))}, "
        "or custom_task('a description')"
    )


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


# Characters within which a title ends in a text that begins with a prompt.
_TITLE_REACH = 300


@dataclass(frozen=True)
class Prompts:
    """The prompts of one model.

    Attributes:
        prefixes: The prompt before the text, by task, for every task except ``document``.
        document: The prompt before a document without a title.
        titled: The same with a title, for which ``{title}`` stands. None if the model's prompt has
            no place for a title.
        custom: The prompt of a custom task; ``{description}`` stands for its description.
    """

    prefixes: Mapping[str, str]
    document: str
    titled: str | None
    custom: str = field(default="task: {description} | query: ")

    def prefix(self, task: str, title: str | None = None, index: int | None = None) -> str:
        """Return the prompt before a text.

        Args:
            task: A task name that ``checked_task`` accepts.
            title: A document's title. Line breaks and ``|`` in it become spaces, so that a title
                cannot fake the text field; a blank one counts as None.
            index: The text's position in the caller's list, for errors.

        Raises:
            ConfigurationError: If this model has no prompt for the task.
            InvalidInput: If there is a title, and this model has no place for one.
        """
        if task == "document":
            cleaned = " ".join((title or "").replace("|", " ").split())
            if not cleaned:
                return self.document
            if self.titled is None:
                raise InvalidInput(
                    f"this checkpoint's own document prompt ({self.document!r}) has no place for "
                    "a title; leave titles out",
                    index=index,
                )
            # Not str.format: a title may contain braces.
            return self.titled.replace("{title}", cleaned)
        if task.startswith(_CUSTOM):
            return self.custom.replace("{description}", task.removeprefix(_CUSTOM).strip())
        if task not in self.prefixes:
            known = ", ".join(map(repr, ("document", *self.prefixes)))
            raise ConfigurationError(
                f"this model has no prompt for the task {task!r}; it has {known}"
            )
        return self.prefixes[task]

    def begins(self, text: str) -> bool:
        """Whether a text begins with one of these prompts, so that it would get a second one."""
        if text.startswith(tuple(filter(None, (self.document, *self.prefixes.values())))):
            return True
        before, _, after = (self.titled or "").partition("{title}")
        return bool(before and after) and text.startswith(before) and after in text[:_TITLE_REACH]

    def prompted(self, text: str, task: str, title: str | None = None) -> str:
        """Return the text as the model reads it; the text itself is never altered."""
        return self.prefix(task, title) + text

    def overridden(
        self, own: Mapping[str, str], keys: Mapping[str, str]
    ) -> tuple[Prompts, tuple[str, ...]]:
        """Return the prompts with those that a checkpoint states itself.

        Args:
            own: The ``prompts`` of a checkpoint's ``config_sentence_transformers.json``.
            keys: For each task the name of its prompt in a checkpoint.

        Returns:
            The prompts to use, and the tasks in which they differ from these. An empty prompt
            counts as not stated.

        Raises:
            ModelCorrupt: If one is not Unicode text.
        """
        for task, key in keys.items():
            if not _is_unicode(own.get(key, "")):
                raise ModelCorrupt(
                    f"the checkpoint's own prompt for {task!r} ({key!r} in "
                    "config_sentence_transformers.json) has a lone surrogate, which is not Unicode "
                    "text; download the model again"
                )
        # sentence-transformers 6.2 writes empty prompts for a model made without any: its default,
        # not a statement (sentence_transformers/base/model.py).
        stated = {task: own[key] for task, key in keys.items() if own.get(key)}
        changed = {task: prompt for task, prompt in stated.items() if prompt != self.prefix(task)}
        if not changed:
            return self, ()
        document = changed.get("document", self.document)
        titled = self.titled
        if document != self.document:
            named = document.replace("title: none", "title: {title}")
            titled = named if named != document else None
        prefixes = {task: changed.get(task, prefix) for task, prefix in self.prefixes.items()}
        prompts = replace(self, prefixes=prefixes, document=document, titled=titled)
        return prompts, tuple(sorted(changed))
