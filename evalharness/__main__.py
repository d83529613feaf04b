"""``python -m evalharness``."""

from __future__ import annotations

import sys

from evalharness.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
