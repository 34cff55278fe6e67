"""``python -m t2ikit`` is the command ``t2ikit``."""

import sys

from t2ikit.cli import main

if __name__ == "__main__":
    sys.exit(main())
