"""``python -m gemma_embed`` is the command ``gemma-embed``."""

import sys

from gemma_embed.cli import main

if __name__ == "__main__":
    sys.exit(main())
