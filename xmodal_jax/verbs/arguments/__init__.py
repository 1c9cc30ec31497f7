"""The arguments of all verbs, by what the verbs are for; nothing heavy is imported."""

import argparse

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
