"""The subcommands of ``gemma-embed``, one a file; each imports what it needs when it runs."""
