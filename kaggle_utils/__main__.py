"""``python -m kaggle_utils COMMAND``: the command line of :mod:`kaggle_utils.cli`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
