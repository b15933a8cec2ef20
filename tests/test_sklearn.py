"""GemmaEmbedTransformer: scikit-learn's own checks, and what people do with a transformer."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from fakes import FakeRuntime, vector_of
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.exceptions import SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from gemma_embed import Embedder
from gemma_embed.errors import ConfigurationError, InvalidInput
from gemma_embed.runtimes import OnnxRuntime
from gemma_embed.sklearn import GemmaEmbedTransformer
from gemma_embed.testing import bundled_runtime

TEXTS = [
    *("Thanks, it works perfectly now.", "What a lovely evening!", "The best bread in town."),
    *("My parcel is lost again.", "Nobody answers the phone.", "The screen broke on day two."),
]
GOOD = np.array([1, 1, 1, 0, 0, 0])


class Shared(FakeRuntime):
    """Its copies are itself, as with this package's own runtimes."""

    def __deepcopy__(self, memo: dict[int, object]) -> Shared:
        return self


class OfNumbers(GemmaEmbedTransformer):
    """The transformer on tables of numbers, which scikit-learn's checks are made of.

    By its tags it takes texts only, and scikit-learn then checks little more than `clone`. Here
    each row of a table is written down as a text, so that all checks run, on the same class.
    """

    def fit(self, X: Any, y: object = None) -> OfNumbers:  # noqa: N803
        validate_data(self, X)
        return super().fit(X, y)

    def transform(self, X: Any) -> Any:  # noqa: N803
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False)
        return super().transform([" ".join(map(repr, row)) for row in rows.tolist()])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array = False, True
        tags.requires_fit = True  # The width of the table is learnt.
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")


with warnings.catch_warnings():
    # By the tags nearly every check is left out for the class itself; hence OfNumbers.
    warnings.simplefilter("ignore", SkipTestWarning)
    scikit_learns_own = parametrize_with_checks(
        [GemmaEmbedTransformer(FakeRuntime()), OfNumbers(FakeRuntime())]
    )


@scikit_learns_own
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_vectors_are_those_of_the_embedder_under_the_task() -> None:
    runtime = FakeRuntime()
    transformer = GemmaEmbedTransformer(runtime)
    vectors = transformer.fit_transform(TEXTS)
    assert vectors.dtype == np.float32
    assert runtime.texts[0].startswith("task: classification | query: ")
    np.testing.assert_array_equal(vectors, Embedder(runtime).embed(TEXTS, "classification"))
    narrow = transformer.set_params(task="clustering", dimensions=128).transform(TEXTS)
    full = vector_of("task: clustering | query: " + TEXTS[0])[:128]
    np.testing.assert_allclose(narrow[0], full / np.linalg.norm(full), atol=1e-6)


def test_tags_say_that_it_takes_texts() -> None:
    tags = get_tags(GemmaEmbedTransformer())
    assert tags.input_tags.string
    assert tags.input_tags.one_d_array
    assert not tags.input_tags.two_d_array
    assert not tags.requires_fit


def test_clones_share_the_loaded_model() -> None:
    by_object = GemmaEmbedTransformer(OnnxRuntime("bundled"))
    assert clone(by_object).runtime is by_object.runtime
    by_name = GemmaEmbedTransformer("onnx", "bundled")
    assert clone(by_name)._embedder().runtime is by_name._embedder().runtime
    assert clone(by_name).get_params() == by_name.get_params()


@pytest.mark.parametrize(
    "parameters",
    [
        {"task": "classify"},
        {"dimensions": 100},
        {"overlong": "cut"},
        {"runtime": "torch"},
        {"model": "some/model"},
    ],
)
def test_a_wrong_parameter_is_found_by_fit(parameters: dict[str, Any]) -> None:
    transformer = GemmaEmbedTransformer(**{"runtime": FakeRuntime(), **parameters})
    with pytest.raises(ConfigurationError):
        transformer.fit(TEXTS)


@pytest.mark.parametrize(
    "texts", ["one text", [["a table"]], pd.DataFrame({"text": TEXTS}), [1.5], None]
)
def test_what_is_not_a_list_of_texts_is_refused(texts: Any) -> None:
    with pytest.raises(InvalidInput):
        GemmaEmbedTransformer(FakeRuntime()).fit_transform(texts)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series])
def test_any_column_of_texts_will_do(kind: Any) -> None:
    transformer = GemmaEmbedTransformer(FakeRuntime())
    np.testing.assert_array_equal(transformer.transform(kind(TEXTS)), transformer.transform(TEXTS))


def test_a_column_of_a_table_beside_another() -> None:
    table = pd.DataFrame({"text": TEXTS, "length": [len(text) for text in TEXTS]}, index=range(6))
    columns = ColumnTransformer(
        [("mail", GemmaEmbedTransformer(FakeRuntime(), dimensions=128), "text")],
        remainder="passthrough",
    ).set_output(transform="pandas")
    rows = columns.fit_transform(table)
    assert rows.shape == (6, 129)
    assert rows.columns[0] == "mail__gemmaembedtransformer0"
    assert rows.columns[-1] == "remainder__length"


def test_output_as_a_table_keeps_the_index() -> None:
    column = pd.Series(TEXTS, index=list("abcdef"))
    transformer = GemmaEmbedTransformer(FakeRuntime()).set_output(transform="pandas")
    rows = transformer.fit_transform(column)
    assert list(rows.index) == list("abcdef")
    assert list(rows.columns) == list(transformer.get_feature_names_out())
    assert len(rows.columns) == 768


def test_a_grid_search_with_a_store_computes_each_text_once(tmp_path: Any) -> None:
    runtime = Shared()
    pipeline = Pipeline(
        [
            ("vectors", GemmaEmbedTransformer(runtime, store=str(tmp_path / "vectors.sqlite"))),
            ("head", LogisticRegression()),
        ]
    )
    grid = {"vectors__dimensions": [768, 128], "head__C": [1, 10]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(TEXTS, GOOD)
    assert len(search.cv_results_["params"]) == 4
    assert sorted(runtime.texts) == sorted(f"task: classification | query: {t}" for t in TEXTS)


def test_worker_processes_and_a_saved_pipeline(tmp_path: Any) -> None:
    head = make_pipeline(GemmaEmbedTransformer("onnx", "bundled"), PCA(2), LogisticRegression())
    # The workers see nothing of this process but the pickle.
    search = GridSearchCV(
        head, {"logisticregression__C": [1, 10]}, cv=2, n_jobs=2, error_score="raise"
    )
    search.fit(TEXTS, GOOD)
    path = tmp_path / "model.joblib"
    joblib.dump(search.best_estimator_, path)
    assert path.stat().st_size < 200_000
    loaded = joblib.load(path)
    np.testing.assert_array_equal(loaded.predict(TEXTS), search.predict(TEXTS))


def test_forked_workers_compute_after_their_parent() -> None:
    transformer = GemmaEmbedTransformer(bundled_runtime())
    here = transformer.transform(TEXTS)
    with joblib.parallel_config("multiprocessing", n_jobs=2):
        parts = joblib.Parallel()(
            joblib.delayed(transformer.transform)(part) for part in (TEXTS[:3], TEXTS[3:])
        )
    np.testing.assert_allclose(np.vstack(parts), here, atol=1e-5)


def test_the_core_imports_no_scikit_learn() -> None:
    code = "import sys, gemma_embed, gemma_embed.runtimes; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_scikit_learn_the_error_has_the_command() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import gemma_embed.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "gemma-embed[sklearn]"' in done.stderr.splitlines()[-1]
