"""A scikit-learn transformer: texts in, vectors out, in pipelines and grid searches."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from gemma_embed.embedder import Embedder
from gemma_embed.errors import MissingDependency
from gemma_embed.long_texts import Overlong
from gemma_embed.prompts import Task
from gemma_embed.runtimes import Runtime, RuntimeName, open_runtime
from gemma_embed.store import EmbeddingStore
from gemma_embed.vectors import Vectors

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
except ImportError as error:
    raise MissingDependency(
        'GemmaEmbedTransformer needs scikit-learn; run: pip install "gemma-embed[sklearn]"'
    ) from error

# A grid search clones the transformer for every candidate and fold, and its worker processes get
# pickles, which carry no weights: a model given by name is loaded once per process.
_by_name = lru_cache(maxsize=2)(open_runtime)


class GemmaEmbedTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Embeds texts for a model of scikit-learn, under the prompt of one task.

    ``X`` is a list of texts, or one column of a table, as for ``CountVectorizer``; in a
    ``ColumnTransformer`` name the column, without brackets. Nothing is learnt from the texts, so
    ``transform`` needs no ``fit``. Clones share the loaded model; pickles carry the parameters, not
    the weights.

    Parameters are checked when they are used, as scikit-learn expects.

    Example:
        ```python
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(GemmaEmbedTransformer("onnx"), LogisticRegression(C=10))
        model.fit(["Great, thanks!", "It broke again."], ["good", "bad"])
        ```
    """

    def __init__(
        self,
        runtime: RuntimeName | Runtime = "transformers",
        model: str | None = None,
        *,
        task: Task | str = "classification",
        dimensions: int | None = None,
        overlong: Overlong = "error",
        store: EmbeddingStore | str | Path | None = None,
    ) -> None:
        """Keep the parameters.

        Args:
            runtime: A runtime's name, or a runtime object. In worker processes a name is better:
                it is loaded once per process, an object once per task.
            model: What a runtime given by name loads.
            task: Whose prompt comes before every text: ``classification``, ``clustering``, or
                another; see ``Embedder.embed``.
            dimensions: One of the model's widths; None for the full one.
            overlong: What happens to a text that is too long; see ``Embedder``.
            store: An ``EmbeddingStore`` or the path of its file. With it a grid search computes
                each text once, not once per candidate and fold.
        """
        self.runtime = runtime
        self.model = model
        self.task = task
        self.dimensions = dimensions
        self.overlong = overlong
        self.store = store

    def fit(self, X: Iterable[str], y: object = None) -> Self:  # noqa: ARG002, N803
        """Check the parameters; nothing is loaded or learnt.

        Raises:
            ConfigurationError: If a parameter has a value that cannot work.
        """
        self._embedder()
        return self

    def transform(self, X: Iterable[str]) -> Vectors:  # noqa: N803
        """Embed texts: float32, shape (n, dimensions), rows of norm 1, in order.

        Raises:
            EmbeddingError: As ``Embedder.embed`` does.
        """
        return self._embedder().embed(X, self.task)

    @property
    def _n_features_out(self) -> int:
        # Read by get_feature_names_out.
        return self._embedder().dimensions

    def _embedder(self) -> Embedder:
        runtime = self.runtime
        if isinstance(runtime, str):
            runtime = _by_name(runtime, self.model)
        elif self.model is not None:
            open_runtime(runtime, self.model)  # Refuses a model beside an object.
        return Embedder(
            runtime,
            document_task=self.task,
            dimensions=self.dimensions,
            overlong=self.overlong,
            store=self.store,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags
