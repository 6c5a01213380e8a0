"""`python benchmarks/paper`, from anywhere."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Instead of this folder, whose modules are not to be found by their bare names.
    sys.path[:1] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

    from paper.cli import main

    sys.exit(main())
