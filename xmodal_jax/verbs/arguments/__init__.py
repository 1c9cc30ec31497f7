"""The arguments of all verbs, by what the verbs are for; nothing heavy is imported."""

import argparse
from pathlib import Path

EXIT_CODES = "exit codes: 0 ok, 2 usage, 3 data, 4 checkpoint, 5 not finite or collapsed, 75 saved on a signal"


def verb(verbs, name: str, handler: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Add a verb whose work is done by ``module:function``."""
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: {example}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def add_trained(parser: argparse.ArgumentParser) -> None:
    """The trained system that a verb uses: a step of a run, or a bundle; and the data that it is used on."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", type=Path, help="a run")
    which.add_argument("--bundle", type=Path, help="or a bundle")
    parser.add_argument("--step", type=int, help="a saved step of the run; the best by dev rsum by default")
    parser.add_argument("--data", type=Path, help="the data set, for a bundle or where it has moved since training")
