"""Private search over a person's own files, mail and browsing history.

Run, from the folder ``examples``: ``python -m private_search ask "..." --sample``.

What reads what, each file readable alone:

    documents.py    Source, and what every source gives: Document, Unit, Skipped; walked
    files.py mail.py history.py    the sources: Folder(root), Mail(root), History(database, pages)
    text.py webpage.py chunks.py   clean text, main text of a page, passages with their places
    catalogue.py    one SQLite file: units, documents, passages, exact words (FTS5); Filter, Found
    library.py      Library: keeps catalogue and vectors equal to the disk; update, coverage
    search.py       Search: hybrid search, near-duplicates, sentences; Hit, Results
    abstention.py   whether the best hit says more than chance
    generators.py answer.py        a Gemma 3, its prompt, checked citations, safe output
    __main__.py     the command
    reader.py       Reader: one library for many threads, which sees what is indexed meanwhile
    server.py guard.py indexer.py projection.py page/            the page, for this machine only
    with_langchain.py with_llamaindex.py mcp_server.py           the same search elsewhere

The interface for pages, servers and frameworks:

    with Library(folder, runtime) as library:
        library.add(Folder(path), Mail(path), History(path, pages))
        library.update(progress)              # Progress(step, done, total, seconds)
        library.coverage()                    # a Coverage a source
        results = Search(library).ask("question", Filter(kind="mail", sender="anna"), limit=5)
        results.hits               # Hit: found (a Found), similarity, sentences, where, also
        results.answerable, results.confidence

A ``Library`` and what is made from it may be used by several threads, one at a time.
"""
