"""The model table, and which row a checkpoint, a hub id or a server's tag is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gemma_embed.errors import ConfigurationError, WrongModel
from gemma_embed.models.embeddinggemma2 import EmbeddingGemma2
from gemma_embed.models.gemma3 import Gemma3
from gemma_embed.models.model import Model
from gemma_embed.prompts import Prompts

# Sources: config and modules of google/embeddinggemma-300m; prompts from its model card; the
# prompt keys from its config_sentence_transformers.json; tags and architectures from Ollama's
# library page and its llama-server conversion. Question answering and fact checking have no key
# of their own in that file.
EMBEDDINGGEMMA_300M = Model(
    name="embeddinggemma-300m",
    family=Gemma3(),
    width=768,
    dimensions=(768, 512, 256, 128),
    context=2048,
    prompts=Prompts(
        prefixes={
            "query": "task: search result | query: ",
            "question answering": "task: question answering | query: ",
            "fact checking": "task: fact checking | query: ",
            "classification": "task: classification | query: ",
            "clustering": "task: clustering | query: ",
            "sentence similarity": "task: sentence similarity | query: ",
            "code retrieval": "task: code retrieval | query: ",
            "summarization": "task: summarization | query: ",
        },
        document="title: none | text: ",
        titled="title: {title} | text: ",
    ),
    prompt_keys={
        "query": "query",
        "document": "document",
        "classification": "Classification",
        "clustering": "Clustering",
        "sentence similarity": "STS",
        "code retrieval": "InstructionRetrieval",
        "summarization": "Summarization",
    },
    symmetric_tasks=frozenset(
        {"classification", "clustering", "sentence similarity", "summarization"}
    ),
    dense_layers=2,
    parameters=307_581_696,
    bos=2,
    eos=1,
    licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
    gated=True,
    repository="google/embeddinggemma-300m",
    onnx_repository="onnx-community/embeddinggemma-300m-ONNX",
    ollama_tag="embeddinggemma:300m",
    gguf="embeddinggemma-300M-Q8_0.gguf (334 MB) of ggml-org/embeddinggemma-300M-GGUF",
)

# Sources: the class in transformers 5.24 and the converter that wrote the checkpoint (sizes,
# modules, prompt keys); the model card (prompts, context, widths, licence); mteb (parameters of the
# text part); the tags from Ollama's library page. Unlike the 300M model's, the checkpoint embeds
# summarization as sentence similarity.
EMBEDDINGGEMMA_2 = replace(
    EMBEDDINGGEMMA_300M,
    name="embeddinggemma-2",
    family=EmbeddingGemma2(),
    context=8192,
    prompts=replace(
        EMBEDDINGGEMMA_300M.prompts,
        prefixes={
            **EMBEDDINGGEMMA_300M.prompts.prefixes,
            "summarization": "task: sentence similarity | query: ",
        },
    ),
    prompt_keys={
        "query": "query",
        "document": "document",
        "question answering": "QuestionAnswering",
        "fact checking": "FactChecking",
        "classification": "Classification",
        "clustering": "Clustering",
        "sentence similarity": "SentenceSimilarity",
        "code retrieval": "CodeRetrieval",
        "summarization": "Summarization",
    },
    dense_layers=0,
    parameters=271_002_624,
    licence="Apache-2.0",
    gated=False,
    repository="google/embeddinggemma-2",
    onnx_repository="onnx-community/embeddinggemma-2-ONNX",
    ollama_tag="embeddinggemma-2:270m-bf16-text",
    gguf="embeddinggemma-2-Q8_0.gguf (310 MB) of ggml-org/embeddinggemma-2-GGUF",
    misnamed=frozenset({"google/embeddinggemma-2-270m", "google/embeddinggemma-2-740m"}),
)

# The small demonstration model in this package, in the same architecture. Its vectors are
# comparable with no other model's.
BUNDLED = replace(
    EMBEDDINGGEMMA_300M,
    name="gemma-embed-bundled",
    licence="Apache-2.0",
    gated=False,
    repository="bundled",
    onnx_repository=None,
)

# The first row stands for whatever a name does not say: fine-tunes go by any name.
MODELS: tuple[Model, ...] = (EMBEDDINGGEMMA_300M, EMBEDDINGGEMMA_2)


def model_of_config(config: Mapping[str, Any], where: object) -> Model:
    """Return the row that a checkpoint's ``config.json`` describes.

    Args:
        config: The parsed file.
        where: Its folder, for messages.

    Raises:
        WrongModel: If it is of no family in the table.
    """
    rows = [
        row
        for row in MODELS
        if row.family.recognises(config)
        and all(config.get(name) == value for name, value in row.config.items())
    ]
    if not rows:
        names = ", ".join(row.name for row in MODELS)
        raise WrongModel(
            f"{where} holds a {config.get('model_type')!r} model, which is none of {names}; "
            "name a folder or hub id of one of these, or of a fine-tune of it"
        )
    # A row that says more about the file is the better match.
    return max(rows, key=lambda row: len(row.config))


def model_of_repository(name: str) -> Model:
    """Return the row of a hub id, or of ``bundled``; the first row for a name of someone else's.

    Raises:
        ConfigurationError: If it is a name that circulates for a model of another name.
    """
    for row in (BUNDLED, *MODELS):
        if name in (row.repository, row.onnx_repository):
            return row
        if name.lower() in row.misnamed:
            raise ConfigurationError(
                f"there is no {name}: the model is {row.repository}, of which this package reads "
                f"the text part; use model={row.repository!r}"
            )
    return MODELS[0]


def model_of_ollama_tag(tag: str) -> Model:
    """Return the row of a model's name on a server; the first row for a name of someone else's."""
    return next((row for row in MODELS if _base(row.ollama_tag) == _base(tag)), MODELS[0])


def is_ollama_tag(name: str) -> bool:
    """Tell whether a name is one on an Ollama server: it has a tag, or is a row's without it."""
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)*:[\w.-]+", name) is not None or name in {
        row.ollama_tag.partition(":")[0] for row in MODELS
    }


def _base(tag: str) -> str:
    name = tag.strip().lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    owner, slash, last = name.rpartition("/")
    return owner + slash + last.partition(":")[0]
