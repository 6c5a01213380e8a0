"""`python -m detr_fast`: the `detr-fast` command, as torchrun can start it."""

import sys

from .cli.main import main

sys.exit(main())
