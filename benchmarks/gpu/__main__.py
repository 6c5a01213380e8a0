"""`python benchmarks/gpu`, from anywhere: the checkout is what is built, tested and measured."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Instead of this folder, whose modules are not to be found by their bare names.
    sys.path[:1] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

    from gpu.cli import main

    sys.exit(main())
