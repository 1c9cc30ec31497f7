"""`xmodal demo`: the main job on the built-in data set, from pictures to a report, in a few minutes on a laptop."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xmodal_jax import config as configs
from xmodal_jax.data import scenes
from xmodal_jax.errors import require
from xmodal_jax.evaluate import record
from xmodal_jax.evaluation.run import Run
from xmodal_jax.export import gallery
from xmodal_jax.progress import clock
from xmodal_jax.report import page as report
from xmodal_jax.text.generation import Decoding
from xmodal_jax.train import Trainer
from xmodal_jax.training import setup
from xmodal_jax.verbs import attend, samples

IMAGES, TINY_IMAGES = 3000, 60
LOOKS = 3  # images on the page of attention pictures
SAMPLES, SAMPLED = "samples.html", 6  # of a system that speaks: its page of samples, and how many there are


class System(NamedTuple):
    """What the demo can train."""

    name: str
    spec: str


SYSTEMS = {
    "stt_att": System("STT with attention", "stt_att.py:stt_att"),
    "scan": System("SCAN", "scan.py:t2i_lse"),
}


def main(args: argparse.Namespace) -> int:
    """Generate, import, train, evaluate on test, print the recall table, write the report; goes on where it stopped."""
    for module in ("tensorflow", "matplotlib", "PIL"):
        require(module, "train")
    began = time.monotonic()
    root: Path = args.workdir
    data, workdir = root / "data", root / "run"
    spec = f"{SYSTEMS[args.system].spec},scenes" + (",tiny" if args.tiny else "")
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
    evaluate(run, root, trained, args.seed, SYSTEMS[args.system].name)
    print(f"4/5 report: {root / 'report.md'}")
    print(f"5/5 bundle and gallery: {root / 'bundle'}, {root / 'gallery'}", flush=True)
    gallery.make(run, run.checkpoints.best(), "test", root)
    print(f"done in {clock(time.monotonic() - began)}")
    image = run.dataset.split("test").ids[0]
    print(f"next: xmodal show {workdir}    xmodal attend --workdir {workdir} --image {image} --out attention.png")
    print(f"search it in a page: xmodal serve {root / 'gallery'}, then open http://127.0.0.1:8080/")
    return 0


def evaluate(run: Run, root: Path, seconds: float, seed: int, name: str) -> None:
    """Score the test split once, print the table, draw the report from the same representations."""
    split = run.dataset.split("test")
    step = run.checkpoints.best()
    member, ranking = run.rank(step, "test")
    record(run, step, "test", ranking, run.speech(step, "test", Decoding()))
    words = attend.word_accuracy(
        attend.own_attention(run, member.variables, member.images, member.texts, ranking.image),
        attend.read_truth(split),
    )
    accuracy = (
        f"{100 * words.right:.1f} % of {words.words:,} words that name an object look most at a region that covers it "
        f"(by chance {100 * words.chance:.1f} %; the regions cover the objects of {100 * words.possible:.1f} %)"
    )
    print(f"word-region accuracy: {accuracy}")
    looks = root / "attention.png"
    chosen = np.sort(np.random.default_rng(seed).choice(len(split), min(LOOKS, len(split)), replace=False))
    pairs = [attend.look(run, member.variables, split, row, split.captions[row][0]) for row in map(int, chosen)]
    attend.draw(pairs, looks)
    title = f"xmodal_jax demo: {name} on scenes, {len(split):,} test images, step {step:,}"
    facts = {"word-region accuracy": accuracy, "time to here": clock(seconds)}
    pictures = {"What words look at": looks}
    further = {}
    if run.model.has("begin"):
        options = {"count": SAMPLED, "seed": seed, "member": member}
        found = samples.make(run, step, "test", root / SAMPLES, Decoding(), **options)
        further["What it says"] = f"{samples.to_markdown(found, root)}\n\nMore of each: [{SAMPLES}]({SAMPLES})."
    options = {"title": title, "seed": seed, "facts": facts, "pictures": pictures, "further": further}
    report.make(run, step, member, ranking, split, root, **options)
