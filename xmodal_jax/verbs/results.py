"""`xmodal results`: one table of many runs, from run folders, what `xmodal eval` wrote, and registers of runs."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xmodal_jax import config as configs
from xmodal_jax import digest
from xmodal_jax.defaults import DATA, base
from xmodal_jax.errors import PICTURES, CheckpointError, DataError, UsageError, check_output, require
from xmodal_jax.evaluation.table import CUTS
from xmodal_jax.training import log
from xmodal_jax.types import Config
from xmodal_jax.verbs import register
from xmodal_jax.verbs.register import METRICS, WAYS, Record

BLUE, ORANGE, PAPER = "#2b6cb0", "#b3541e", "#ffffff"


def records_of(path: Path, split: str) -> list[Record]:
    """The records of a register (``.jsonl``), of one evaluation file, or of all run folders at or under a folder.

    Raises:
        DataError: no evaluation there, or a file that holds none.
    """
    if path.suffix == ".jsonl":
        return register.read(path)
    if not path.is_dir():
        return [of_file(path)]
    runs = sorted(file.parent for file in path.rglob("config.json") if (file.parent / "eval").is_dir())
    found = [of_file(file) for run in runs if (file := chosen(run, split)) is not None]
    if not found:
        raise DataError(f"{path} has no evaluation on {split}; run `xmodal eval --workdir {path} --split {split}`.")
    return found


def chosen(workdir: Path, split: str, folder: Path | None = None, ending: str = "json") -> Path | None:
    """Of a run's evaluations on a split (those in ``folder`` where given), that of the step which is best on dev by the
    run's log; without a log the last one. The split itself has no say."""
    ours = re.compile(rf"{re.escape(split)}-([0-9]+)\.{re.escape(ending)}")
    files = {int(m[1]): file for file in (folder or workdir / "eval").iterdir() if (m := ours.fullmatch(file.name))}
    dev = {line["step"]: line["dev_rsum"] for line in log.read(workdir / "metrics.jsonl") if "dev_rsum" in line}
    return files[max(files, key=lambda step: (dev.get(step, -1.0), step))] if files else None


def of_file(path: Path) -> Record:
    """The record of one JSON file of `xmodal eval` or `xmodal baseline`: recall, scores of sentences, or both."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "sha256" in content and content["sha256"] != digest.digest(content):  # earlier versions kept none
            raise DataError(f"{path} is damaged: its SHA-256 differs; run `xmodal eval` again.")
        recalls = {way: [content[way][f"r{cut}"] for cut in CUTS] for way in WAYS if way in content}
        figures = register.flat({**recalls, "rsum": content["rsum"]} if recalls else {})
        interval = {name: (a, b) for name, (a, b) in content.get("interval_95", {}).items() if name in METRICS}
        kinds = content.get("sentences", {}).items()
        sentences = {kind: {k: float(v) for k, v in s.items() if k != "decoding"} for kind, s in kinds}
        if not figures and not sentences:
            raise ValueError("neither recall nor sentences")
        return Record(figures=figures, interval=interval, sentences=sentences, **about(path, content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is no evaluation ({type(error).__name__}: {error}); give what `xmodal eval` writes, a run folder "
            "or a register (.jsonl)."
        ) from None


def about(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record other than its figures, by an evaluation file and the run folder it belongs to."""
    split = "" if content.get("split") == "test" else f" {content.get('split')}"
    if "ensemble" in content:
        scale = " --scale" if content.get("scale") else ""
        names = " ".join(content["ensemble"])
        return {"id": str(path), "system": f"ensemble of {names}", "config": f"xmodal eval --ensemble{scale}"}
    if "method" in content:
        data = f"{Path(content['data']).name}{split}, {'+'.join(content['features'])}"
        name = content["method"]
        return {"id": str(path), "system": name, "config": f"xmodal baseline {name}", "data": data, "seed": ()}
    folder = path.resolve().parent.parent
    workdir = folder if (folder / "config.json").is_file() else Path(content["workdir"])
    found = {"id": content["workdir"], "system": workdir.name, "best_step": (content["step"],)}
    try:
        config = configs.read(workdir)
    except CheckpointError:  # the file is a copy and its run is elsewhere
        return found
    argument, changed = argument_of(config)
    given = {key: value_text(value) for key, value in changed.items()}
    overrides = given | ({"seed": str(config.seed)} if config.seed else {})
    words = [argument, *(shlex.quote(f"--config.{key}={value}") for key, value in overrides.items())]
    lines = log.read(workdir / "metrics.jsonl")
    data = content["data"] if "trained_on" in content else Path(config.data.dir).name
    feature = next((system.feature for system in configs.systems(config) if "feature" in system), "global")
    return {
        **found,
        "system": Path(config.model.name).stem,
        "config": argument,
        "options": " ".join(f"{key}={value}" for key, value in given.items()),
        "command": f"xmodal train --config {' '.join(words)}" if ":" in argument else "",
        "data": f"{data}{split}, {feature}",
        "seed": (config.seed,),
        "steps": (lines[-1]["step"],) if lines else (),
        "state": "finished" if (workdir / "finished.json").is_file() else "not finished",
    }


def argument_of(config: Config) -> tuple[str, dict[str, Any]]:
    """``scan.py:t2i_lse,f8k`` and the overridden keys of the saved config of a run.

    A run does not keep its argument: it is the one whose config differs in, or lacks, the fewest keys. A system that
    has no config of its name in the package is named by its model alone, and its keys are those that the defaults do
    not have.
    """
    name, saved = config.model.name, configs.flatten(config)
    file = file_of(str(name))
    if file is None:
        plain = configs.flatten(base("own"))
        return str(name), difference({k: v for k, v in saved.items() if k != "model.name"}, plain)
    # Where two sets have the same settings, the run is of the one that its folder is named by, or else of any other
    sets = sorted(DATA, key=lambda word: (Path(config.data.dir).name != word, word != "own"))
    found = []
    for path in (file, *sorted(file.parent.glob(f"{file.stem}_*.py"))):  # a model may have several configs
        module = module_of(path)
        for word in (f"{variant},{data}" for variant in module.VARIANTS for data in sets):
            plain = configs.flatten(module.get_config(word))
            if plain["model.name"] == name:
                kept = {k: v for k, v in saved.items() if k in plain}
                found.append((difference(kept, plain), len(saved) - len(kept), f"{path.name}:{word}"))
    changed, _, argument = min(found, key=lambda one: len(one[0]) + one[1])
    return argument, changed


def file_of(model: str) -> Path | None:
    """The config of a model of the package: of its name, or of a model that it extends (``sco_order``, ``sco``)."""
    while model:
        try:
            return Path(configs.find(f"{model}.py"))
        except UsageError:
            model = model.rpartition("_")[0]
    return None


def difference(saved: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """The keys that a run has otherwise than a config, but for its seed and those that change nothing it computes."""
    free = ("seed", *configs.FREE)
    return {k: v for k, v in saved.items() if plain.get(k) != v and not k.startswith(free)}


def module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"xmodal_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value_text(value: Any) -> str:
    """As the command line takes it."""
    return repr(tuple(value)).replace(" ", "") if isinstance(value, list) else str(value)


def draw(records: Sequence[Record], metric: str, path: Path) -> None:
    """Figures with their 95 % interval, or their standard deviation over seeds, one line a record, the best on top.

    Hollow: the training was cut short, so the figure says how fast a system learns, not where it leads.
    """
    require("matplotlib", "train")
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = sorted((r for r in records if metric in r.figures), key=lambda record: record.figures[metric])
    if not rows:
        raise UsageError(f"No row has {metric}, so there is nothing to draw; choose another --metric.")
    figure = Figure(figsize=(10, 1.3 + 0.27 * len(rows)), layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    for place, record in enumerate(rows):
        value, sd = record.figures[metric], record.sd.get(metric)
        low, high = record.interval.get(metric, (value, value)) if sd is None else (value - sd, value + sd)
        axes.plot((low, high), (place, place), color=BLUE if sd is None else ORANGE, linewidth=2.5)
        fill = PAPER if record.state in register.CUT else BLUE
        axes.plot(value, place, "o", color=BLUE, markersize=6, markerfacecolor=fill)
        label = f"{value:.1f}" + ("" if sd is None else f" ± {sd:.1f}, {len(record.seed or ())} seeds")
        axes.annotate(label, (max(high, value), place), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), names(rows), fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.margins(x=0.2)
    axes.set_xlabel(metric if metric == "rsum" else f"{metric[:3]} R@1, %")
    marks = [
        Line2D([], [], color=BLUE, linewidth=2.5, label="95 % interval over test images, where measured"),
        Line2D([], [], color=ORANGE, linewidth=2.5, label="standard deviation over seeds"),
        Line2D([], [], color=BLUE, linestyle="", marker="o", label="trained to the end"),
        Line2D([], [], color=BLUE, linestyle="", marker="o", markerfacecolor=PAPER, label="training cut short"),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=110)


def names(rows: Sequence[Record]) -> list[str]:
    """A label for each row: the system of a register's row, else the config; the data set where there are several."""
    data = [row.data.partition(",")[0] for row in rows]
    labels = [row.system if row.section else f"{row.config or row.system} {row.options}".rstrip() for row in rows]
    if len(set(data)) < 2:
        return labels
    return [", ".join(filter(None, pair)) for pair in zip(labels, data, strict=True)]


def lines_of(records: Sequence[Record]) -> Iterator[str]:
    """A JSON array, one record a line, so that a line can be taken into a register."""
    for number, record in enumerate(records):
        content = register.to_json(record)
        if record.command:
            content.pop("options", None)  # the command has them
        name = "-".join(Path(part).stem for part in record.id.split(", ")).lower()
        slug = re.sub(r"[^a-z0-9_]+", "-", name).strip("-")
        content["id"] = slug if "-" in slug else f"run-{slug}"
        yield ("[" if not number else " ") + json.dumps(content, ensure_ascii=False)


def main(args: argparse.Namespace) -> int:
    """Print the table of all rows, or write those of a page; draw and save them where asked."""
    check_output("--chart", args.chart, PICTURES)
    check_output("--json", args.json)
    records = [record for path in args.paths for record in records_of(path, args.split)]
    if args.write:
        write(args.write, records)
    if args.section:
        known = sorted({section for record in records for section in record.section})
        records = [record for record in records if args.section in record.section]
        if not records:
            raise UsageError(f'No row is of the section "{args.section}"; there are {", ".join(known) or "none"}.')
    rows = register.merge(records)
    if not args.write:
        print(register.markdown("recall", rows), end="")
        if any(row.sentences for row in rows):
            print("\n" + register.markdown("sentences", rows), end="")
    if args.chart:
        draw(rows, args.metric, args.chart)
    if args.json:
        args.json.write_text(",\n".join(lines_of(rows)) + "]\n", encoding="utf-8")
    return 0


def write(path: Path, records: Sequence[Record]) -> None:
    """Fill the blocks of a page. Raises a UsageError where it has none."""
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); --write takes a page that is there.") from None
    blocks = register.BLOCK.findall(page)
    if not blocks:
        raise UsageError(
            f"{path} has no place for a table; write <!-- results: recall --> and, on a line of its own, <!-- end -->."
        )
    path.write_text(register.fill(page, records), encoding="utf-8")
    print(f"{path}: {len(blocks)} tables of {len(records)} runs")
