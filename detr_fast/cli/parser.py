"""The strict argument parser of every verb: what it does not know is an error with a suggestion."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from itertools import takewhile


class Parser(argparse.ArgumentParser):
    """An `argparse` parser without abbreviations, whose errors name what was probably meant.

    Parsers of verbs are of the same class, because `add_subparsers` takes the class of its parser.
    An error ends the process with exit code 2 after one line on stderr and a pointer to the help.
    """

    def __init__(self, *args, **kwargs):
        kwargs["allow_abbrev"] = False
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(*args, **kwargs)
        # Suppressed, so that a verb's default does not undo what was given before the verb.
        self.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error",
        )

    def parse_known_args(self, args=None, namespace=None):
        # Unknown arguments come first: a misspelt one often leaves a required one missing.
        if args is not None:
            self._reject_unknown(args)
        namespace, extra = super().parse_known_args(args, namespace)
        if extra:
            self.error(f"unexpected argument {extra[0]}")
        return namespace, extra

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\nrun `{self.prog} --help` for what it takes\n")

    def _reject_unknown(self, args: Sequence[str]):
        known = self._option_string_actions
        own = takewhile(lambda arg: arg != "--", args)
        if self._subparsers is not None:
            own = takewhile(lambda arg: arg.startswith("-"), own)
        for arg in own:
            name = arg.partition("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"unknown argument {name}{did_you_mean(name, known)}")

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            name = "/".join(action.option_strings) or action.metavar or action.dest
            hint = did_you_mean(str(value), choices)
            self.error(f"{value!r} is not a choice of {name}{hint} ({', '.join(choices)})")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an argument where it says something."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`: did you mean X?` with the nearest of `known`, empty where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""
