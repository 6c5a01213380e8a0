"""The `detr-fast` command: finds the verb, runs it, and turns its errors into one line.

Each verb is a module of this package with `add_parser(subparsers)`, which imports nothing heavy,
and `run(args) -> int`, whose result is the exit code.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from .._version import __version__
from .parser import Parser

VERBS = ("train", "eval", "predict", "verify", "bench", "demo", "env")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `detr-fast` with `argv`, the process's own arguments if None.

    Returns:
        The exit code: what the verb returned; 1 after an error of the user's input or of the
        system (`ValueError`, `OSError`), which is printed as one line unless `--debug` or
        DETR_FAST_DEBUG=1 asks for its traceback; 130 after an interrupt.

    Raises:
        SystemExit: with code 2, after an error in the arguments.
    """
    args = build_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    try:
        return importlib.import_module(f"{__package__}.{args.verb}").run(args)
    except KeyboardInterrupt:
        print("detr-fast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output has left (`| head`); the interpreter must not flush into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if getattr(args, "debug", False) or os.environ.get("DETR_FAST_DEBUG") == "1":
            traceback.print_exc()
        print(f"detr-fast: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1


def build_parser() -> Parser:
    """The parser of the command with all its verbs; needs no torch."""
    parser = Parser(
        prog="detr-fast",
        description="Train, evaluate and run DETR detectors.",
        epilog="`detr-fast VERB --help` tells what a verb takes.",
    )
    parser.add_argument("--version", action="version", version=f"detr-fast {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for verb in VERBS:
        importlib.import_module(f"{__package__}.{verb}").add_parser(subparsers)
    return parser
