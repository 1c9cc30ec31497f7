"""`xmodal <verb>`: reads the command line, importing nothing heavy; the verb's module then takes over."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from xmodal_jax import __version__
from xmodal_jax.errors import UsageError, XmodalError
from xmodal_jax.verbs.arguments import EXIT_CODES, data, inference, training


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="xmodal",
        description="Image-text matching in JAX.",
        epilog=f"xmodal VERB --help shows an example; {EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"xmodal_jax {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (
        data.add_demo,
        data.add_data,
        training.add_train,
        training.add_eval,
        training.add_attend,
        inference.add_caption,
        inference.add_paraphrase,
        inference.add_export,
        inference.add_convert,
        inference.add_index,
        inference.add_search,
        inference.add_serve,
        training.add_baseline,
        training.add_bench,
        training.add_show,
        training.add_results,
        training.add_doctor,
    ):
        add(verbs)
    return parser


def run(argv: Sequence[str]) -> int:
    """Parse ``argv`` and run its verb; returns the exit code."""
    parser = make_parser()
    overrides = [word for word in argv if word.startswith("--config.")]
    debug = "--debug" in argv
    args = parser.parse_args([word for word in argv if word not in overrides and word != "--debug"])
    args.overrides = overrides
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax and clu tell developers much that users cannot act on
    try:
        if overrides and args.verb != "train":
            raise UsageError(f"{overrides[0]}: only `xmodal train` takes config overrides.")
        module, _, function = args.handler.partition(":")
        return getattr(importlib.import_module(f"xmodal_jax.{module}"), function)(args)
    except XmodalError as error:
        if debug:
            raise
        print(f"xmodal: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("xmodal: interrupted", file=sys.stderr)
        return 130


def entry() -> None:
    """The console script."""
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "3"
    )  # TensorFlow only feeds data here; its start-up notes help nobody
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `xmodal ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    entry()
