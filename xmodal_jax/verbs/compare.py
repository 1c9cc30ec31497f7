"""`xmodal compare`: two runs on the same queries, with tests of the difference and the queries that make it."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax import config as configs
from xmodal_jax import digest
from xmodal_jax.data.records import Split, open_dataset
from xmodal_jax.errors import CheckpointError, DataError, UsageError, XmodalError, check_output, require
from xmodal_jax.evaluation import compare, ranks_file, table
from xmodal_jax.evaluation.compare import Difference, McNemar
from xmodal_jax.evaluation.run import Run, run_and_step
from xmodal_jax.training import log
from xmodal_jax.training.checkpoint import Checkpoints
from xmodal_jax.types import Config
from xmodal_jax.verbs import results, sections
from xmodal_jax.verbs.sections import Section

DRAWS = 10_000
WAYS = {"i2t": "image to text", "t2i": "text to image"}
SURE = 0.05


class Side(NamedTuple):
    """One of the two."""

    path: Path
    workdir: Path | None  # the run folder, where it is there
    config: Config | None
    evaluation: ranks_file.Evaluation

    def says(self, key: str) -> str:
        return str(self.evaluation.about.get(key, "not known"))


class Change(NamedTuple):
    """A query whose rank is another in B; ranks count from 1."""

    a: int
    b: int
    id: str
    text: str  # the caption, or the first one of the image
    picture: Path | None


class Comparison(NamedTuple):
    """All there is to say of two sides."""

    sides: tuple[Side, Side]
    config: Mapping[str, list[Any]]  # by key, the values where they differ
    tables: tuple[table.Table, table.Table]
    difference: Mapping[str, Difference]
    mcnemar: Mapping[str, McNemar]
    better: Mapping[str, list[Change]]  # by direction
    worse: Mapping[str, list[Change]]


# Reading


def open_side(path: Path, split: str, data: Path | None) -> Side:
    """The evaluation that a path names: a file, the best step of a run folder, the step of ``RUN@STEP``, or the best
    of a folder of evaluations.

    What a run has no ranks of is ranked now.

    Raises:
        CheckpointError, DataError: nothing evaluated is there, or it is damaged.
    """
    workdir, step = run_and_step(path)
    if step is not None:
        if not (workdir / configs.FILE).is_file():
            raise DataError(f"{path}: {workdir} is no run folder, which alone has steps; give RUN@STEP, or a path.")
        return _of_run(workdir, split, step, data)._replace(path=path)
    if not path.exists():
        raise DataError(f"{path} is not there; give a run folder, or what `xmodal eval` wrote.")
    if path.is_file():
        return _of_file(path, data)
    if (path / configs.FILE).is_file():
        return _of_run(path, split, None, data)
    workdir = next((up for up in path.resolve().parents[:2] if (up / configs.FILE).is_file()), None)
    endings = ("ranks.npz", "json") if path.is_dir() else ()
    found = next(filter(None, (results.chosen(workdir or path, split, path, ending) for ending in endings)), None)
    if found is None:
        raise DataError(f"{path} is no run folder and has no evaluation on {split}; give what `xmodal eval` made.")
    return _of_file(found, data)


def _of_file(path: Path, data: Path | None) -> Side:
    beside = path if path.suffix == ".npz" else ranks_file.beside(path)
    workdir = next((up for up in path.resolve().parents[:3] if (up / configs.FILE).is_file()), None)
    if beside.is_file():
        return _side(path, workdir, ranks_file.read(beside))
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        split, step, workdir = about["split"], int(about["step"]), workdir or Path(about["workdir"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is no evaluation of a run ({type(error).__name__}: {error}); give what `xmodal eval` wrote."
        ) from None
    return _of_run(workdir, split, step, data)._replace(path=path)


def _of_run(workdir: Path, split: str, step: int | None, data: Path | None) -> Side:
    """The side of a run's step, by default the best; its ranks are kept with its evaluations."""
    if step is None:
        try:
            step = Checkpoints(workdir, read_only=True).best()
        except CheckpointError:  # evaluations may be all that was kept of a run
            found = results.chosen(workdir, split, ending="ranks.npz") if (workdir / "eval").is_dir() else None
            if found is None:
                raise
            step = int(found.name.rpartition("-")[2].partition(".")[0])
    kept = workdir / "eval" / ranks_file.file_of(split, step)
    if data is None and kept.is_file():
        return _side(workdir, workdir, ranks_file.read(kept))
    from xmodal_jax.evaluate import keep, ranks_of

    run = Run(workdir, data)
    kept = run.evaluations / kept.name
    if not kept.is_file():
        files = ranks_of(run, run.step(step), split, run.rank(step, split)[1])
        with contextlib.suppress(CheckpointError):  # a run of somebody else's may be compared too
            keep(run, files, None, "")
        if not kept.is_file():
            return _side(workdir, workdir, ranks_file.parse(files[kept.name], kept))
    return _side(workdir, workdir, ranks_file.read(kept))


def _side(path: Path, workdir: Path | None, evaluation: ranks_file.Evaluation) -> Side:
    named = evaluation.about.get("workdir")  # none of an ensemble and a baseline
    workdir = workdir or (Path(named) if named and (Path(named) / configs.FILE).is_file() else None)
    return Side(path, workdir, configs.read(workdir) if workdir else None, evaluation)


def check_same_queries(a: Side, b: Side) -> None:
    """Raise a UsageError unless both ranked the same queries against the same galleries."""
    first, second = a.evaluation, b.evaluation
    if (first.ids, first.about["captions"]) != (second.ids, second.about["captions"]):
        what = (f"{s.says('data')} {s.says('split')} ({len(s.evaluation.ids):,} images)" for s in (a, b))
        raise UsageError(
            f"{a.path} was measured on {next(what)}, {b.path} on {next(what)}: other images or captions, so nothing "
            "can be paired; name one set for both with --data, or one --split."
        )
    if not np.array_equal(first.ranking.fold, second.ranking.fold):
        folds = (f"{s.ranking.fold.max() + 1}" for s in (first, second))
        raise UsageError(
            f"{a.path} was ranked in {next(folds)} fold(s) of images, {b.path} in {next(folds)}; evaluate both with "
            "the same --protocol."
        )
    if np.array_equal(first.ranking.i2t, second.ranking.i2t) and first.about == second.about:
        raise UsageError(f"{a.path} and {b.path} are the same evaluation; name two.")


def split_of(sides: tuple[Side, Side], data: Path | None) -> Split | None:
    """The split with captions and pictures: of ``data``, or of the data set of either run where that is still there.

    Raises:
        DataError, UsageError: ``data`` is no data set, or has other captions than those that were ranked.
    """
    name, wanted = sides[0].says("split"), sides[0].evaluation.about["captions"]

    def fits(split: Split) -> bool:
        return ranks_file.captions_hash(split.captions) == wanted

    if data:
        split = open_dataset(data).split(name)
        if not fits(split):
            raise UsageError(f"--data {data} has other captions than {sides[0].path} was measured on; leave it out.")
        return split
    for side in sides:
        with contextlib.suppress(XmodalError):
            if side.config and fits(split := open_dataset(side.config.data.dir).split(name)):
                return split
    return None


def compare_sides(a: Side, b: Side, k: int, data: Path | None) -> Comparison:
    """Measure. Raises as :func:`check_same_queries`."""
    check_same_queries(a, b)
    left, right, split = a.evaluation.ranking, b.evaluation.ranking, split_of((a, b), data)
    texts = [text for group in split.captions for text in group] if split else []
    first = np.searchsorted(left.image, np.arange(len(left.i2t)))  # captions stand in the order of their images

    def change(way: str, query: int) -> Change:
        caption, image = (first[query], query) if way == "i2t" else (query, left.image[query])
        before, after = (int(getattr(each, way)[query]) + 1 for each in (left, right))
        text = texts[caption] if split else f"(caption {caption - first[image] + 1})"
        return Change(before, after, a.evaluation.ids[image], text, split.pictures[image] if split else None)

    better, worse, tests = {}, {}, {}
    for way in WAYS:
        before, after = getattr(left, way), getattr(right, way)
        gained, lost = compare.changes(before, after, k)
        better[way], worse[way] = ([change(way, int(query)) for query in some] for some in (gained, lost))
        tests[way] = compare.mcnemar(before < 1, after < 1)
    known = [side.config for side in (a, b) if side.config is not None]
    differing = configs.differences(known) if len(known) == 2 else {}
    difference = compare.paired_bootstrap(left, right, draws=DRAWS)
    return Comparison((a, b), differing, (left.table(), right.table()), difference, tests, better, worse)


# Output


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def verdict(found: Comparison) -> str:
    """Which one is better, in a sentence."""
    d = found.difference["rsum"]
    interval = f"95 % {d.low:+.1f} to {d.high:+.1f}, p {p_text(d.p)}"
    if d.p >= SURE:
        return f"No difference in rsum is shown: B minus A is {d.value:+.1f} ({interval})."
    name, side = ("B", found.sides[1]) if d.value > 0 else ("A", found.sides[0])
    return f"{name}, {side.path}, is better: B minus A is {d.value:+.1f} rsum ({interval})."


def title_of(found: Comparison) -> str:
    a, b = found.sides
    return f"A = {a.path}, B = {b.path}, on {a.says('data')} {a.says('split')}"


def _runs(found: Comparison) -> Section:
    def dev(side: Side) -> str:
        lines = log.read(side.workdir / "metrics.jsonl") if side.workdir else []
        mine = [line for line in lines if "dev_rsum" in line and str(line["step"]) == side.says("step")]
        return f"{mine[-1]['dev_rsum']:.1f}" if mine else "not known"

    facts = {
        "run": lambda s: s.says("workdir") if "workdir" in s.evaluation.about else str(s.path),
        "system": lambda s: s.says("system"),
        "step": lambda s: s.says("step"),
        "weights": lambda s: s.evaluation.ranking.weights,
        "dev rsum": dev,
        "data": lambda s: s.says("data"),
        "manifest": lambda s: s.says("identity")[:12],
        "folder of the data": lambda s: str(s.config.data.dir) if s.config else "not known",
    }
    rows = [[name, *(of(side) for side in found.sides)] for name, of in facts.items()]
    differ = [row[0] for row in rows if row[1] != row[2] and row[0] == "manifest"]
    note = "The images and captions are the same; the features or the other splits are not." if differ else ""
    return Section("What is compared", ("", "A", "B"), rows, note=note)


def _config(found: Comparison) -> Section:
    rows = [[key, *map(json.dumps, values)] for key, values in found.config.items()]
    rows = [[cell if cell != "null" else "-" for cell in row] for row in rows]
    note = "" if rows else "No key that changes what is computed."
    if any(side.config is None for side in found.sides):
        note = "Not known: the config of a run is not there."
    return Section("What differs in the config", ("key", "A", "B"), rows, note=note)


def _recall(found: Comparison) -> Section:
    first, second = found.tables
    rows = []
    for way in WAYS:
        sides = getattr(first, way), getattr(second, way)
        for field in table.Recall._fields:
            name = f"{way}.{field}"
            values = [getattr(side, field) for side in sides]
            rows.append([f"{WAYS[way]} {NAMES[field]}", *_figures(found, name, values)])
    rows.append(["rsum", *_figures(found, "rsum", [first.rsum, second.rsum])])
    ps = [found.difference[name].p if name in found.difference else 1.0 for name in _names()]
    marked = frozenset(i for i, p in enumerate(ps) if p < SURE)
    head = ("", "A", "95 %", "B", "95 %", "B - A", "95 %", "p")
    note = (
        f"{first.images:,} images, {first.captions:,} captions; {first.protocol}. {table.TIES.capitalize()}. "
        f"Intervals of A and B: {first.draws:,} bootstrap draws of images; of the difference, and p: {DRAWS:,} paired "
        "draws, the same images for both."
    )
    return Section("Recall", head, rows, "lrrrrrrr", note, marked=marked)


NAMES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "medr": "median rank", "meanr": "mean rank"}


def _names() -> list[str]:
    return [f"{way}.{field}" for way in WAYS for field in table.Recall._fields] + ["rsum"]


def _figures(found: Comparison, name: str, values: list[float]) -> list[str]:
    cells = []
    for side, value in zip(found.tables, values, strict=True):
        ends = side.interval.get(name)
        cells += [f"{value:.1f}", f"{ends[0]:.1f} to {ends[1]:.1f}" if ends else ""]
    d = found.difference.get(name)
    if d is None:
        return [*cells, f"{values[1] - values[0]:+.1f}", "", ""]
    return [*cells, f"{d.value:+.1f}", f"{d.low:+.1f} to {d.high:+.1f}", p_text(d.p)]


def _mcnemar(found: Comparison) -> Section:
    rows = [
        [WAYS[way], *(f"{n:,}" for n in (m.both, m.only_a, m.only_b, m.neither)), p_text(m.p)]
        for way, m in found.mcnemar.items()
    ]
    note = "The test takes queries for independent; captions of one image are not quite, so trust the bootstrap there."
    return Section("Right at R@1", ("", "both", "A alone", "B alone", "neither", "exact p"), rows, "lrrrrr", note)


def to_sections(found: Comparison) -> list[Section]:
    """What text, Markdown and page show."""
    parts = [_runs(found), _config(found), _recall(found), _mcnemar(found)]
    for way, words in WAYS.items():
        for kind, some in (("better", found.better[way]), ("worse", found.worse[way])):
            rows = [[f"{c.a:,}", f"{c.b:,}", c.id, c.text] for c in some]
            head = ("rank in A", "in B", "image", "first caption" if way == "i2t" else "caption")
            note = "" if rows else "None."
            pictures = [c.picture for c in some]
            parts.append(Section(f"{words.capitalize()}: {kind} in B", head, rows, "rrll", note, pictures))
    return parts


def to_svg(found: Comparison) -> str:
    """The differences in recall with their intervals, as lines beside a zero line."""
    names = list(table.RECALLS)
    ends = [abs(x) for name in names for x in found.difference[name][:3]]
    scale = 220 / max(*ends, 1e-9)
    step, height = 26, 26 * len(names) + 30
    lines = [f'<line x1="400" x2="400" y1="4" y2="{height - 22}" stroke="currentColor" stroke-opacity=".4"/>']
    for i, name in enumerate(names):
        d, y = found.difference[name], 18 + step * i
        left, dot, right = (400 + scale * x for x in (d.low, d.value, d.high))
        colour = "var(--mark)" if d.p < SURE else "var(--soft)"
        way, _, field = name.partition(".")
        lines.append(
            f'<text x="0" y="{y + 5}">{WAYS[way]} {NAMES[field]}</text>'
            f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
            f'<circle cx="{dot:.1f}" cy="{y}" r="5" fill="{colour}"/>'
            f'<text x="690" y="{y + 5}" text-anchor="end">{d.value:+.1f}</text>'
        )
    lines.append(f'<text x="395" y="{height - 4}" text-anchor="end">A is better</text>')
    lines.append(f'<text x="405" y="{height - 4}">B is better</text>')
    label = "B minus A in recall, with 95 % intervals"
    size = f'viewBox="0 0 700 {height}" style="max-width:44rem;width:100%"'
    return f'<svg {size} role="img" aria-label="{label}" font-size="14" fill="currentColor">{"".join(lines)}</svg>'


def to_json(found: Comparison) -> dict[str, Any]:
    """All figures as plain JSON values."""
    sides = [{"path": str(side.path), **side.evaluation.about} for side in found.sides]
    lists = {
        kind: {way: [{**c._asdict(), "picture": str(c.picture or "")} for c in some] for way, some in ways.items()}
        for kind, ways in (("better_in_b", found.better), ("worse_in_b", found.worse))
    }
    return {
        **{name: {**side, **table.to_json(t)} for name, side, t in zip("ab", sides, found.tables, strict=True)},
        "config": found.config,
        "difference": {
            name: {"value": d.value, "interval_95": [d.low, d.high], "p": d.p} for name, d in found.difference.items()
        },
        "bootstrap_draws": DRAWS,
        "mcnemar": {way: test._asdict() for way, test in found.mcnemar.items()},
        **lists,
    }


def main(args: argparse.Namespace) -> int:
    """Print the comparison; write it in the forms that are asked for."""
    if args.k < 0:
        raise UsageError(f"-k {args.k}: give how many queries to show, 0 or more.")
    for option in ("html", "markdown", "json"):
        check_output(f"--{option}", getattr(args, option))
    a, b = (open_side(path, args.split, args.data) for path in (args.a, args.b))
    found = compare_sides(a, b, args.k, args.data)
    parts = title_of(found), verdict(found), to_sections(found)
    print(sections.to_text(*parts), end="")
    if args.html:
        if any(picture for section in parts[2] for picture in section.pictures):
            require("PIL", "image")
        digest.write(args.html, sections.to_html(*parts, figure=to_svg(found)))
    if args.markdown:
        digest.write(args.markdown, sections.to_markdown(*parts))
    if args.json:
        digest.write(args.json, json.dumps(to_json(found), indent=1) + "\n")
    return 0
