"""`xmodal demo`: the main job on the built-in data set, from pictures to a report, in a few minutes on a laptop."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from xmodal_jax import config as configs
from xmodal_jax.data import scenes
from xmodal_jax.errors import require
from xmodal_jax.evaluate import record
from xmodal_jax.evaluation import table
from xmodal_jax.evaluation.run import Run
from xmodal_jax.evaluation.vote import Member, rank_split
from xmodal_jax.export import run as export
from xmodal_jax.inference import index, load
from xmodal_jax.progress import clock
from xmodal_jax.train import Trainer
from xmodal_jax.training import setup
from xmodal_jax.verbs import attend, curves, diagnosis, report

IMAGES, TINY_IMAGES = 3000, 60
LOOKS = 3  # images on the page of attention pictures


def main(args: argparse.Namespace) -> int:
    """Generate, import, train, evaluate on test, print the recall table, write the report; goes on where it stopped."""
    for module in ("tensorflow", "matplotlib", "PIL"):
        require(module, "train")
    began = time.monotonic()
    root: Path = args.workdir
    data, workdir = root / "data", root / "run"
    spec = "scan.py:t2i_lse,scenes" + (",tiny" if args.tiny else "")
    images = TINY_IMAGES if args.tiny else IMAGES
    overrides = [f"--config.data.dir={data}", f"--config.seed={args.seed}"]
    print(f"1/5 data: {images:,} rendered pictures with 5 captions each in {data}", flush=True)
    scenes.make(data, images, args.seed)
    print(f"2/5 train: xmodal train --config {spec} --workdir {workdir} {' '.join(overrides)}", flush=True)
    parts = setup.setup(configs.load(spec, overrides), workdir)
    try:
        code = Trainer(parts).run()
    finally:
        parts.close()
    if code:
        return code
    print("3/5 evaluate on test", flush=True)
    trained = time.monotonic() - began
    run = Run(workdir)
    evaluate(run, root, trained, args.seed)
    print(f"4/5 report: {root / 'report.md'}")
    print(f"5/5 bundle and gallery: {root / 'bundle'}, {root / 'gallery'}", flush=True)
    make_gallery(run, root)
    print(f"done in {clock(time.monotonic() - began)}")
    image = run.dataset.split("test").ids[0]
    print(f"next: xmodal show {workdir}    xmodal attend --workdir {workdir} --image {image} --out attention.png")
    print(f"search it in a page: xmodal serve {root / 'gallery'}, then open http://127.0.0.1:8080/")
    return 0


def make_gallery(run: Run, root: Path) -> None:
    """Export the best step and index the test split with it; what an earlier call made is replaced."""
    for name in ("bundle", "gallery", "gallery.partial"):
        shutil.rmtree(root / name, ignore_errors=True)
    export.export_run(run, run.checkpoints.best(), root / "bundle")
    bundle = load(root / "bundle")
    index.build(root / "gallery", bundle, index.items_of(run.dataset.directory, "test", list(bundle.features)))


def evaluate(run: Run, root: Path, seconds: float, seed: int) -> None:
    """Score the test split once, print the table, draw the report from the same representations."""
    split = run.dataset.split("test")
    reader, captions = run.reader("test"), run.captions("test")
    step = run.checkpoints.best()
    variables, weights = run.variables(step)
    images, texts = run.evaluator.representations(variables, reader, captions, quiet=False)
    member = Member(run.evaluator.score, variables, images, texts, captions.read_id)
    options = {"protocol": "auto", "weights": weights, "text_id": captions.text_id}
    ranking = rank_split([member], captions.image, reader.count, **options)
    result = record(run, step, "test", ranking, chance=True)
    title = f"SCAN on scenes, {reader.count:,} test images, step {step:,}"
    count = min(4, reader.count)
    examples = report.retrieve(run.evaluator, variables, images, texts, captions, k=5, count=count, seed=seed)
    words = attend.word_accuracy(
        attend.own_attention(run, variables, images, texts, captions.image), attend.read_truth(split)
    )
    accuracy = (
        f"{100 * words.right:.1f} % of {words.words:,} words that name an object look most at a region that covers it "
        f"(by chance {100 * words.chance:.1f} %; the regions cover the objects of {100 * words.possible:.1f} %)"
    )
    print(f"word-region accuracy: {accuracy}")
    drawn, ranks, retrieved, looks = (root / f"{name}.png" for name in ("curves", "ranks", "retrieved", "attention"))
    curves.draw(run.workdir, drawn)
    diagnosis.draw(ranking, member, split.captions, ranks)
    report.draw_retrieved(split, captions, *examples, retrieved)
    chosen = np.sort(np.random.default_rng(seed).choice(reader.count, min(LOOKS, reader.count), replace=False))
    attend.draw([attend.look(run, variables, split, row, split.captions[row][0]) for row in map(int, chosen)], looks)
    facts = {
        "config": f"`{run.workdir / 'config.json'}`",
        "data": f"`{run.dataset.directory}`, manifest {run.dataset.manifest['sha256'][:12]}",
        "vocabulary": f"{run.facts.vocabulary:,} words",
        "selected": f"step {step:,}, best {run.checkpoints.reached(step)}",
        "word-region accuracy": accuracy,
        "time to here": clock(seconds),
        "python": sys.version.split()[0],
    }
    pictures = {"Learning curves": drawn, "Ranks, scores and errors": ranks}
    pictures |= {"Retrieved examples": retrieved, "What words look at": looks}
    markdown = table.to_markdown(result, title=title, chance=True)
    report.write_report(root / "report.md", title="xmodal_jax demo", table=markdown, facts=facts, pictures=pictures)
