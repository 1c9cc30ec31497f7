"""`xmodal <verb>`: reads the command line, importing nothing heavy; the verb's module then takes over."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from xmodal_jax import __version__, digest
from xmodal_jax.errors import SAVED_ON_SIGNAL, CheckpointError, CutWarning, UsageError, XmodalError
from xmodal_jax.verbs.arguments import EXIT_CODES, data, inference, training


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, with what was probably meant."""

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            message += near(wrong[1], re.findall(r"[\w.-]+", wrong[2]))
        print(f"xmodal: {message.removesuffix('.')}; see {self.prog} --help.", file=sys.stderr)
        raise SystemExit(UsageError.exit_code)

    def refuse(self, word: str, words: Sequence[str]) -> None:
        """End with the sentence on a word that the innermost verb of ``words`` does not take."""
        parser: Parser = self
        for verb in words:
            nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
            parser = nested[0].choices.get(verb, parser) if nested else parser
        options = parser._option_string_actions
        name = word.partition("=")[0]
        hint = near(name, options) if word.startswith("-") else ""
        if not hint and word.startswith("--") and "--config" in options:
            hint = f" A key of the config is given as --config.{name[2:]}=VALUE."
        parser.error(f'nothing is known of "{word}".{hint}')


def near(word: str, known: Iterable[str]) -> str:
    """`` Did you mean "train"?`` for the closest of ``known``."""
    guess = difflib.get_close_matches(word, list(known), n=1)
    return f' Did you mean "{guess[0]}"?' if guess else ""


def make_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
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
        data.add_extract,
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
        training.add_compare,
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
    for word, value in pairwise([*argv, "-"]):
        if word.startswith("--config.") and "=" not in word:
            value = "VALUE" if value.startswith("-") else value
            parser.error(f'a value of the config follows "=", as in {word}={value}')
    words = [word for word in argv if word not in overrides and word != "--debug"]
    args, unknown = parser.parse_known_args(words)
    if unknown:
        parser.refuse(unknown[0], words)
    args.overrides = overrides
    # Orbax and clu tell developers much that users cannot act on, and tracebacks of errors that come up here anyway.
    logging.getLogger("absl").setLevel(logging.ERROR if debug else logging.CRITICAL)
    if not debug:
        sys.unraisablehook = unraisable
    warnings.simplefilter("ignore", CutWarning)  # verbs say it themselves
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
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug or (code := disk_refused(error)) is None:
            raise
        return code
    except KeyboardInterrupt:
        print("xmodal: interrupted", file=sys.stderr)
        return 130


def unraisable(error: Any) -> None:
    """Print an error that nobody can catch, of the main thread: TensorStore's threads print what comes up again as one
    sentence, a save that fails on a full disk, say."""
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(error)


def disk_refused(error: Exception) -> int | None:
    """The exit code of an error that comes from a disk, once one sentence has said so; None for any other error."""
    where = getattr(error, "filename", None)
    if reason := digest.full(error):
        advice = "free some space, or choose a folder that can be"
        print(f"xmodal: {where or 'a file'} cannot be written ({reason}); {advice}.", file=sys.stderr)
        return CheckpointError.exit_code
    if isinstance(error, OSError) and where:
        reason = error.strerror or type(error).__name__
        print(f"xmodal: {where} cannot be read or written ({reason}).", file=sys.stderr)
        return XmodalError.exit_code
    return None


def entry() -> None:
    """The console script."""
    # TensorFlow only feeds data here: its start-up notes help nobody, and what they are about changes nothing.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `xmodal ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        known = None if "--debug" in sys.argv else disk_refused(error)  # as of a full disk behind standard output
        if known is None:
            traceback.print_exception(error)
        code = known or 1
    if code in (0, SAVED_ON_SIGNAL):
        sys.exit(code)
    # What was reading ahead when the work failed must not keep the program from its end.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
