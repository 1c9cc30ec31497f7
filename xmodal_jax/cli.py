"""`xmodal <verb>`: the arguments of all verbs, importing nothing heavy; the verb's module then takes over."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from xmodal_jax import __version__
from xmodal_jax.errors import UsageError, XmodalError

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


def add_demo(verbs) -> None:
    parser = verb(
        verbs, "demo", "verbs.demo:main", "the main job on the built-in data set, with a report", "xmodal demo"
    )
    parser.add_argument("--workdir", type=Path, default=Path("demo"), help="folder for data, run and report")
    parser.add_argument("--tiny", action="store_true", help="60 pictures and two epochs, for a quick check")
    parser.add_argument("--seed", type=int, default=0)


def add_data(verbs) -> None:
    parser = verbs.add_parser("data", help="make, import and check data sets", epilog=EXIT_CODES)
    kinds = parser.add_subparsers(dest="data_verb", required=True, metavar="scenes|import|check|text-features")
    example = "xmodal data scenes --out data/scenes"
    scenes = verb(kinds, "scenes", "data.scenes:main", "make the built-in data set", example)
    scenes.add_argument("--out", type=Path, required=True)
    scenes.add_argument("--images", type=int, default=3000, help="number of pictures, 5 captions each")
    scenes.add_argument("--seed", type=int, default=0)
    check = verb(kinds, "check", "data.check:main", "check a prepared data set", "xmodal data check data/f8k")
    check.add_argument("directory", type=Path)
    check.add_argument("--json", type=Path, help="also write the findings here")
    add_import(kinds)
    add_text_features(kinds)


def add_import(kinds) -> None:
    parser = verb(
        kinds,
        "import",
        "data.sources:main",
        "import features and captions",
        "xmodal data import precomp f8k_precomp --out data/f8k --features ims,glob",
    )
    parser.add_argument("kind", choices=["precomp", "karpathy", "csv", "butd"], help="layout of the source")
    parser.add_argument("source", type=Path, help="folder (precomp) or file (the others)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="name of the data set; that of the source by default")
    parser.add_argument(
        "--features",
        action="extend",
        type=lambda text: text.split(","),
        help="precomp: arrays to take, ims and, or, glob; others: the feature file",
    )
    parser.add_argument("--images", type=Path, help="folder of pictures to attach")
    parser.add_argument("--ids", type=Path, help="ids of the feature file's rows, one a line")
    parser.add_argument("--captions", type=Path, help="butd: Karpathy's dataset_*.json")
    parser.add_argument("--captions-per-image", type=int, help="precomp: where it cannot be told from the files")
    parser.add_argument("--on-nonfinite", choices=["error", "drop-image"], default="error")
    parser.add_argument("--restval-to-train", action="store_true", help="karpathy, butd: restval images train too")
    parser.add_argument("--image-col", help="csv: column of the image file names")
    parser.add_argument("--caption-col", help="csv: column of the captions")
    parser.add_argument("--split-col", help="csv: column of the splits")
    parser.add_argument("--delimiter", help="csv: column separator; found out by default")
    parser.add_argument("--dev", type=float, default=0.0, help="csv without splits: share of dev images")
    parser.add_argument("--test", type=float, default=0.0, help="csv without splits: share of test images")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float32", help="butd: stored type")
    parser.add_argument("--max-broken", type=float, default=0.01, help="butd: share of broken rows to tolerate")


def add_text_features(kinds) -> None:
    parser = verb(
        kinds,
        "text-features",
        "baselines.text_features:main",
        "add a dense vector of every caption to a prepared data set; goes on after an interruption",
        "xmodal data text-features fisher data/f8k --vectors glove.6B.300d.txt",
    )
    parser.add_argument("kind", choices=["mean", "tfidf", "fisher"], help="mean or Fisher vector of words, or tf-idf")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--vectors", type=Path, help="mean, fisher: GloVe text file, or prefix of _words.txt and .npy")
    parser.add_argument("--whiten", choices=["none", "pca", "ica"], help="mean, fisher: turn the word vectors first")
    parser.add_argument("--components", type=int, help="fisher: of the mixture; 30 by default")
    parser.add_argument("--mixture", choices=["hglmm", "gmm"], help="fisher: hybrid (default) or Gaussian")
    parser.add_argument("--fit", choices=["words", "tokens"], help="fisher: each word once (default) or as it occurs")
    parser.add_argument("--pca", type=int, help="axes to keep, 0 for all; fisher: 6000 by default where longer")
    parser.add_argument("--missing", choices=["zeros", "error"], default="zeros", help="for captions of unknown words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="the kind by default")


def add_train(verbs) -> None:
    parser = verb(
        verbs,
        "train",
        "train:main",
        "train a system, or go on with a run",
        "xmodal train --config vse.py:vsepp,f8k --workdir runs/vsepp --config.optim.lr=1e-4",
    )
    parser.add_argument("--config", required=True, help="FILE.py:ARG; override keys by --config.KEY=VALUE")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run; an existing run is resumed")
    parser.add_argument("--data", help="a prepared data set of any name, with the settings of the published sets")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes that SLURM, Open MPI, a TPU pod or Kubernetes started; elsewhere set "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID",
    )


def add_eval(verbs) -> None:
    parser = verb(
        verbs,
        "eval",
        "evaluate:main",
        "recall of a run on a split",
        "xmodal eval --workdir runs/vsepp --split test --json vsepp.json",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", type=Path)
    which.add_argument("--ensemble", type=Path, nargs="+", metavar="W", help="runs whose score matrices are averaged")
    parser.add_argument("--scale", action="store_true", help="ensemble: divide scores by their deviation on dev first")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--protocol",
        choices=["auto", "full", "fold5"],
        default="auto",
        help="fold5: mean over five folds of 1,000 images",
    )
    parser.add_argument("--step", type=int, help="a saved step; the best by dev rsum by default")
    parser.add_argument("--data", type=Path, help="the data set, where it has moved since training")
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--watch", action="store_true", help="evaluate every new checkpoint until the run ends")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between looks of --watch")
    parser.add_argument("--beams", type=int, default=1, help="of a system that speaks: beam search with so many beams")
    parser.add_argument(
        "--char-noise",
        type=float,
        nargs="+",
        metavar="P",
        help="recall with these shares of the captions' characters replaced at random, as a table and a curve",
    )
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="W", help="runs to draw in the same curve"
    )


def add_attend(verbs) -> None:
    parser = verb(
        verbs,
        "attend",
        "verbs.attend:main",
        "draw which regions of an image the words of a caption look at",
        'xmodal attend --workdir demo/run --image scene-0-000003 --caption "two red squares" --out attention.png',
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--image", required=True, metavar="ID", help="an image of the data set")
    parser.add_argument("--caption", help="any text; by default the first caption of the image itself")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    parser.add_argument("--split", help="where to look for the image; everywhere by default")
    parser.add_argument("--step", type=int, help="a saved step; the best by dev rsum by default")
    parser.add_argument("--data", type=Path, help="the data set, where it has moved since training")


def add_decoding(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", type=Path, help="a run")
    which.add_argument("--bundle", type=Path, help="or a bundle")
    parser.add_argument("--split", help="all of a split instead")
    parser.add_argument("--data", type=Path, help="the data set, for a bundle or where it has moved since training")
    parser.add_argument("--step", type=int, help="a saved step of the run; the best by dev rsum by default")
    parser.add_argument("--longest", type=int, default=20, help="most tokens of a sentence")
    parser.add_argument("--beams", type=int, default=1, help="beam search with so many beams")
    parser.add_argument("--temperature", type=float, help="sample, from a distribution this flat")
    parser.add_argument("--top-p", type=float, help="sample, from the likeliest words of this probability in all")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--json", type=Path, help="write the sentences here")


def add_caption(verbs) -> None:
    parser = verb(
        verbs,
        "caption",
        "verbs.caption:caption",
        "say a sentence for images, with a system that speaks",
        "xmodal caption --workdir runs/stt --image 1001773457_577c3a7d70.jpg",
    )
    parser.add_argument("--image", nargs="+", metavar="ID|FILE", help="images of the data set, or picture files")
    add_decoding(parser)


def add_paraphrase(verbs) -> None:
    parser = verb(
        verbs,
        "paraphrase",
        "verbs.caption:paraphrase",
        "say sentences in other words, with a system that speaks",
        'xmodal paraphrase --workdir runs/stt "two dogs run on a beach"',
    )
    parser.add_argument("text", nargs="*", help="sentences")
    add_decoding(parser)


def add_export(verbs) -> None:
    parser = verb(
        verbs,
        "export",
        "export.run:main",
        "a run as a bundle, for use without the training code",
        "xmodal export --workdir runs/vsepp --out vsepp.bundle",
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--step", type=int, help="a saved step; the best by dev rsum by default")
    parser.add_argument("--data", type=Path, help="the data set, where it has moved since training")
    parser.add_argument("--onnx", action="store_true", help="each function as ONNX too (extra onnx), checked")


def add_convert(verbs) -> None:
    parser = verb(
        verbs,
        "convert",
        "convert.flow:main",
        "a PyTorch checkpoint of the original code as a bundle, without running anything in it",
        "xmodal convert scan model_best.pth.tar --vocab f30k_precomp_vocab.json --out scan.bundle",
    )
    parser.add_argument("system", choices=["vsepp", "scan", "vse_infty", "adapt"], help="whose code wrote it")
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="model_best.pth.tar or another such file")
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="V",
        help="its vocabulary: JSON or pickle of the original, or our vocabulary.json; without it the bundle takes "
        "token ids only",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the folder to write")


def add_index(verbs) -> None:
    parser = verb(
        verbs,
        "index",
        "inference.index:main",
        "embed a data set once, as a gallery to search; the same command goes on after an interruption",
        "xmodal index --bundle vsepp.bundle --data data/f8k --out f8k.gallery",
    )
    parser.add_argument("--bundle", type=Path, required=True, help="what `xmodal export` wrote")
    parser.add_argument("--data", type=Path, required=True, help="a prepared data set")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--split", default="test", help="the split to index; test by default")
    parser.add_argument(
        "--coarse",
        type=Path,
        metavar="BUNDLE",
        help="another bundle, of one vector an item, that finds the candidates for a system that scores pairs of "
        "fragments; by default the pooled fragments do",
    )
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="stored type")


def add_search(verbs) -> None:
    parser = verb(
        verbs,
        "search",
        "verbs.search:main",
        "images for a sentence, or captions for an image",
        'xmodal search f8k.gallery "a dog on the beach" -k 5',
    )
    parser.add_argument("gallery", type=Path, help="what `xmodal index` wrote")
    parser.add_argument("text", nargs="?", help="a sentence")
    parser.add_argument("--image", metavar="FILE|ID", help="an image of the gallery, or a picture")
    parser.add_argument("-k", type=int, default=10, help="how many to find, at most 1,000")
    parser.add_argument(
        "--engine", default="exact", metavar="NAME", help="exact (default), faiss or qdrant[:ADDRESS|FOLDER]"
    )
    parser.add_argument(
        "--rerank", metavar="N", help="candidates to score in full, or all; only where scores are no inner products"
    )
    parser.add_argument(
        "--measure", action="store_true", help="what re-ranking keeps of scoring everything, and how fast"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_serve(verbs) -> None:
    parser = verb(verbs, "serve", "serve.main:main", "a gallery as a web service with a page", "xmodal serve gallery")
    parser.add_argument("gallery", type=Path, help="what `xmodal index` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="another address needs a token in XMODAL_TOKEN")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--engine", default="exact", help="exact, faiss or qdrant[:LOCATION]")
    parser.add_argument(
        "--rerank",
        type=lambda text: text if text == "all" else int(text),
        metavar="N",
        help="candidates to score in full, or all; only where scores are no inner products",
    )
    parser.add_argument("--queue", type=int, default=256, help="requests that may wait; more get 429")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds that a request may take")


def add_baseline(verbs) -> None:
    parser = verb(
        verbs,
        "baseline",
        "baselines:main",
        "baselines without a network",
        "xmodal baseline cca --data data/f8k --features global",
    )
    parser.add_argument(
        "method",
        choices=["cca", "ncca", "nearest"],
        help="canonical correlation, plain or weighted; or captions of the nearest training images",
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--features", type=lambda text: text.split(","), default=["global"], help="global, region or both"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--workdir", type=Path, help="keep the result here, as a member for `xmodal eval --ensemble`")
    parser.add_argument("--json", type=Path, help="also write the table here")


def add_bench(verbs) -> None:
    parser = verb(
        verbs,
        "bench",
        "bench:main",
        "measure this machine",
        "xmodal bench kernels --only scan_t2i_hardest --json rows.json",
    )
    parser.add_argument(
        "what",
        nargs="?",
        default="all",
        choices=["all", "kernels", "step", "eval", "batch", "scaling", "pipeline", "search", "rerank", "load"],
        help="kernels: scores and losses; step: a training step; eval: scores and ranks of a test set; batch: the "
        "largest batch in 4 GiB; all (default): these four; scaling: against batch and gallery size; pipeline: MB/s of "
        "36 x 2048 float16 regions from disk; search: 10 of 100,000 vectors; rerank: coarse search and re-ranking "
        "of a bundle against scoring all; load: the service on 100,000 images",
    )
    parser.add_argument("--only", metavar="NAMES", help="rows to measure, separated by commas")
    parser.add_argument("--plot", type=Path, help="scaling: draw the rows to this picture")
    parser.add_argument("--bundle", type=Path, help="rerank: what `xmodal export` wrote")
    parser.add_argument("--data", type=Path, help="rerank: a data set, whose test images are searched for")
    parser.add_argument("--items", type=int, default=100_000, help="rerank: images, those that are made up included")
    parser.add_argument("--images", type=int, default=1500, help="pipeline: records in the temporary set, 147 kB each")
    parser.add_argument("--seconds", type=float, default=10.0, help="pipeline, load: how long each")
    parser.add_argument("--json", type=Path, help="also write the rows here")


def add_show(verbs) -> None:
    parser = verb(verbs, "show", "verbs.show:main", "the resolved config and state of a run", "xmodal show runs/vsepp")
    parser.add_argument("workdir", type=Path, nargs="+", help="one run folder, or several to compare")
    parser.add_argument("--curves", type=Path, help="draw loss and dev recall to this picture")


def add_results(verbs) -> None:
    parser = verb(
        verbs,
        "results",
        "verbs.results:main",
        "one table of many runs, as Markdown, as a chart, or written into a page",
        "xmodal results runs --chart runs.png",
    )
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="FILE|DIR", help="run folders, evaluation files, registers (.jsonl)"
    )
    parser.add_argument("--split", default="test", help="of run folders; test by default")
    parser.add_argument("--section", metavar="NAME", help="of registers, the rows of this section alone")
    parser.add_argument("--chart", type=Path, help="draw the figures with their intervals to this picture")
    parser.add_argument("--metric", choices=["rsum", "i2t.r1", "t2i.r1"], default="rsum", help="what --chart draws")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables between the marks of this page")
    parser.add_argument("--json", type=Path, help="also write the rows here, each as a line for a register")


def add_doctor(verbs) -> None:
    parser = verb(
        verbs, "doctor", "verbs.doctor:main", "versions, devices, extras and a short self-test", "xmodal doctor"
    )
    parser.add_argument("--json", type=Path, help="also write the findings here")


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
        add_demo,
        add_data,
        add_train,
        add_eval,
        add_attend,
        add_caption,
        add_paraphrase,
        add_export,
        add_convert,
        add_index,
        add_search,
        add_serve,
        add_baseline,
        add_bench,
        add_show,
        add_results,
        add_doctor,
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
