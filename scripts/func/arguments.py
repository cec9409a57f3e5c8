"""What the scripts' command lines have in common."""

from __future__ import annotations

import argparse


def script_parser(docstring: str) -> argparse.ArgumentParser:
    """A parser whose help is the script's own docstring: its first line above the options, the rest below."""
    description, _, epilog = docstring.partition("\n")
    return argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_overwrite(parser: argparse.ArgumentParser, default: bool) -> None:
    """``--overwrite`` and ``--no-overwrite``."""
    parser.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=default,
        help="replace results that are already there (default: keep them)",
    )
