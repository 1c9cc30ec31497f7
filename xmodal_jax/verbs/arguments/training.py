"""Arguments of the verbs that train, evaluate and compare."""

from pathlib import Path

from xmodal_jax.verbs.arguments import add_trained, verb


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
    which.add_argument(
        "--ensemble",
        type=Path,
        nargs="+",
        metavar="W",
        help="runs (W@STEP: another step than the best), bundles and kept baselines whose score matrices are averaged",
    )
    which.add_argument("--bundle", type=Path, help="what `xmodal export` or `xmodal convert` wrote, on --data")
    which.add_argument(
        "--embeddings",
        type=Path,
        nargs=2,
        metavar=("IMAGE", "TEXT"),
        help="two .npy arrays [items, numbers] of any program, scored by inner products",
    )
    parser.add_argument(
        "--map", type=Path, metavar="JSON", help="of --embeddings: a list with the row of the image of each caption"
    )
    parser.add_argument("--scale", action="store_true", help="ensemble: divide scores by their deviation on dev first")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--protocol",
        choices=["auto", "full", "fold5"],
        default="auto",
        help="fold5: mean over five folds of 1,000 images",
    )
    parser.add_argument(
        "--duplicates",
        choices=["separate", "shared"],
        default="separate",
        help="captions that equal one of another image are right for their own image alone, or for all of these",
    )
    parser.add_argument("--step", type=int, help="a saved step; the best by dev rsum by default")
    parser.add_argument(
        "--data", type=Path, help="the data set where it has moved since training, or another, kept in a record apart"
    )
    parser.add_argument(
        "--allow-unknown", action="store_true", help="rank captions of which the vocabulary knows less than half, too"
    )
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="also draw curves, ranks, scores, errors by length and examples, as DIR/report.md with its pictures",
    )
    parser.add_argument("--latex", action="store_true", help="also print its row as LaTeX")
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
    add_trained(parser)
    parser.add_argument("--image", required=True, metavar="ID", help="an image of the data set")
    parser.add_argument("--caption", help="any text; by default the first caption of the image itself")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    parser.add_argument("--split", help="where to look for the image; everywhere by default")


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


def add_show(verbs) -> None:
    parser = verb(verbs, "show", "verbs.show:main", "the resolved config and state of a run", "xmodal show runs/vsepp")
    parser.add_argument("workdir", type=Path, nargs="+", help="one run folder, or several for what differs")
    parser.add_argument("--curves", type=Path, help="draw loss and dev recall to this picture")
    parser.add_argument(
        "--modalities",
        type=Path,
        metavar="PNG",
        help="draw where images and captions lie (t-SNE) to this picture, with their distance, and to JSON beside it",
    )
    parser.add_argument(
        "--samples",
        type=Path,
        metavar="HTML",
        help="of a system that speaks: write a page of pictures with their generated captions, paraphrases, retrieved "
        "captions and the ground truth",
    )
    parser.add_argument("--count", type=int, default=8, help="of --samples: how many pictures")
    parser.add_argument("--beams", type=int, default=1, help="of --samples: beam search with so many beams")
    parser.add_argument(
        "--imagined",
        type=Path,
        metavar="PNG",
        help="draw pictures that a system makes of captions (GXN) to this picture, beside the real ones",
    )
    parser.add_argument(
        "--split", help="of --modalities and --imagined, by default dev, and of --samples, by default test"
    )
    parser.add_argument("--data", type=Path, help="of the three: another data set than the one trained on")
    parser.add_argument("--seed", type=int, default=0, help="of the three")


def add_compare(verbs) -> None:
    parser = verb(
        verbs,
        "compare",
        "verbs.compare:main",
        "two runs on the same queries: what differs, by how much, how surely, and on which queries",
        "xmodal compare runs/vsepp runs/scan --html compare.html",
    )
    what = "a run folder (its best step), RUN@STEP, a folder of evaluations, or a file of one (eval/test-STEP.json)"
    parser.add_argument("a", type=Path, metavar="A", help=what)
    parser.add_argument("b", type=Path, metavar="B", help="another; all differences are B minus A")
    parser.add_argument("--split", default="test", help="of folders; test by default")
    parser.add_argument("--data", type=Path, help="the data set where it has moved since, or another for both runs")
    parser.add_argument("-k", type=int, default=10, help="queries to show each way, those whose rank changed most")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page, pictures and all in one file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write it as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures as JSON")


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
        choices=[
            "all",
            "kernels",
            "step",
            "eval",
            "batch",
            "scaling",
            "pipeline",
            "pixels",
            "search",
            "rerank",
            "load",
        ],
        help="kernels: scores and losses; step: a training step; eval: scores and ranks of a test set; batch: the "
        "largest batch in 4 GiB; all (default): these four; scaling: against batch and gallery size; pipeline: MB/s of "
        "36 x 2048 float16 regions from disk; pixels: pictures a second from files to crops; search: 10 of 100,000 "
        "vectors; rerank: coarse search and re-ranking of a bundle against scoring all; load: the service on 100,000 "
        "images",
    )
    parser.add_argument("--only", metavar="NAMES", help="rows to measure, separated by commas")
    parser.add_argument("--plot", type=Path, help="scaling: draw the rows to this picture")
    parser.add_argument("--bundle", type=Path, help="rerank: what `xmodal export` wrote")
    parser.add_argument("--data", type=Path, help="rerank, pixels: a prepared data set")
    parser.add_argument("--items", type=int, default=100_000, help="rerank: images, those that are made up included")
    parser.add_argument("--images", type=int, default=1500, help="pipeline: records in the temporary set, 147 kB each")
    parser.add_argument("--seconds", type=float, default=10.0, help="pipeline, pixels, load: how long each")
    parser.add_argument("--json", type=Path, help="also write the rows here")


def add_doctor(verbs) -> None:
    parser = verb(
        verbs, "doctor", "verbs.doctor:main", "versions, devices, extras and a short self-test", "xmodal doctor"
    )
    parser.add_argument("--json", type=Path, help="also write the findings here")
