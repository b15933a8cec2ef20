.PHONY: install test quick llama-server browser stores lint format types check bench

install:
	python -m pip install torch==2.13.0
	python -m pip install -e ".[test]"

test:
	python -m pytest -n 2 --dist loadfile

# The core's rules: no checkpoint is loaded, no index is filled.
quick:
	python -m pytest tests/test_prompts.py tests/test_vectors.py tests/test_gate.py \
		tests/test_models.py tests/test_long_texts.py tests/test_embedder.py tests/test_errors.py \
		tests/test_store.py tests/runtimes/test_options.py tests/runtimes/test_open_runtime.py \
		tests/runtimes/remote

# The real llama.cpp on EmbeddingGemma's real weights, in this process and as a server, broken ones
# too: GEMMA_EMBED_WEIGHTS=<folder> make llama-server, after pip install -e ".[test,gguf]".
llama-server:
	python -m pytest -m llama_server tests/live

# Needs Debian's chromium and chromium-driver, and the extra [browser].
browser:
	python -m pytest -m browser tests/private_search

# Other vector stores: pip install -e ".[stores]", and PostgreSQL with pgvector for those of it.
stores:
	python -m pytest -m stores tests/stores

lint:
	ruff check .
	ruff format --check .
	bandit -q -c pyproject.toml -r shared langchain_gemma_embed llamaindex_gemma_embed examples

format:
	ruff check --fix .
	ruff format .

types:
	mypy

check: lint types test

bench:
	PYTHONPATH=tests python benchmarks/engines.py --model "$${GEMMA_EMBED_WEIGHTS:-.full-size}"
	PYTHONPATH=tests python benchmarks/adapters.py
	PYTHONPATH=tests python benchmarks/growth.py
	PYTHONPATH=tests python benchmarks/server.py
	PYTHONPATH=tests python benchmarks/matryoshka.py
