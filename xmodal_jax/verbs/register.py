"""Results of runs as records: a register in JSON lines, means over seeds, Markdown tables, pages that hold them.

A line of a register is one object. ``id`` (lower case, with a hyphen: ``adapt-t2i-h100``) and ``system`` it must have;
the others are the fields of :class:`Record`, of which a page calls ``command``, ``commit``, ``machine``, ``date`` and
``seed`` "not recorded" where they are missing. ``figures`` and ``sd`` look like
``{"i2t": [37.8, 68.4, 78.6], "t2i": [26.4, 57.1, 69.9], "rsum": 338.2}`` (recall at 1, 5 and 10 in per cent),
``interval`` like ``{"rsum": [285.9, 309.1]}``, ``sentences`` like ``{"captioning": {"BLEU-1": 0.6}}``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xmodal_jax.errors import DataError
from xmodal_jax.evaluation.table import CUTS

WAYS = ("i2t", "t2i")
METRICS = (*(f"{way}.r{cut}" for way in WAYS for cut in CUTS), "rsum")
CUT = ("stopped", "short", "not finished")
# ended: all of the published schedule, or the best dev epoch well before the last, so that the figures say where the
# system leads; finished: all of the run's own schedule, whatever that is
STATES = ("ended", "finished", *CUT, "")
ID = r"[a-z0-9_]+(?:-[a-z0-9_]+)+"


@dataclasses.dataclass(frozen=True)
class Record:
    """One run, or the mean of several that differ in their seed alone."""

    id: str
    system: str
    section: tuple[str, ...] = ()  # the tables of a page that show it
    config: str = ""  # argument of --config, or the command of an ensemble or a baseline
    options: str = ""  # overrides of the config, where nothing else tells them
    data: str = ""
    command: str = ""
    commit: str = ""
    machine: str = ""
    date: str = ""
    seed: tuple[int, ...] | None = None  # () where no random number is involved
    source: str = ""
    state: str = ""  # one of STATES; "" where nothing is trained
    steps: tuple[int, ...] = ()  # of each run
    best_step: tuple[int, ...] = ()  # the steps that are scored
    seconds: float | None = None  # of the training
    step_seconds: float | None = None
    memory_gib: float | None = None
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by METRICS
    sd: Mapping[str, float] = dataclasses.field(default_factory=dict)  # standard deviation over seeds
    interval: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)  # 95 %
    sentences: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    note: str = ""


FIELDS = {field.name for field in dataclasses.fields(Record)}
LISTS = ("section", "seed", "steps", "best_step")


def flat(nested: Mapping[str, Any]) -> dict[str, float]:
    """``{"i2t": [r1, r5, r10], "t2i": ..., "rsum": ...}``, any part of it, by METRICS.

    Raises:
        ValueError: other names, another number of recalls, or what is no finite number.
    """
    found: dict[str, float] = {}
    for name, value in nested.items():
        if name in WAYS:
            found |= {f"{name}.r{cut}": float(x) for cut, x in zip(CUTS, value, strict=True)}
        elif name == "rsum":
            found[name] = float(value)
        else:
            raise ValueError(f'"{name}" is none of i2t, t2i, rsum')
    if not all(map(math.isfinite, found.values())):
        raise ValueError("a figure is not finite")
    return found


def nested(figures: Mapping[str, float]) -> dict[str, Any]:
    """What :func:`flat` takes, to two places."""
    ways = {way: [round(figures[f"{way}.r{cut}"], 2) for cut in CUTS] for way in WAYS if f"{way}.r1" in figures}
    return ways | ({"rsum": round(figures["rsum"], 2)} if "rsum" in figures else {})


def of_json(content: Mapping[str, Any]) -> Record:
    """A record from a line of a register.

    Raises:
        ValueError: what is wrong with it.
    """
    for name in content:
        if name not in FIELDS:
            raise ValueError(f'there is no field "{name}"')
    if not re.fullmatch(ID, str(content.get("id", ""))) or not content.get("system"):
        raise ValueError('it needs an "id" such as "adapt-t2i-h100" and a "system"')
    if content.get("state", "") not in STATES:
        raise ValueError(f'"state" is one of {", ".join(filter(None, STATES))}, or missing')
    values = dict(content)
    for name in LISTS:
        if name in values:
            value = values[name]
            values[name] = tuple(value) if isinstance(value, list) else (value,)
    for name in ("figures", "sd"):
        values[name] = flat(values.get(name, {}))
    values["interval"] = {name: (float(a), float(b)) for name, (a, b) in values.get("interval", {}).items()}
    return Record(**values)


def to_json(record: Record) -> dict[str, Any]:
    """A line of a register; what is empty is left out."""
    filled = {name: value for name, value in dataclasses.asdict(record).items() if value or value == 0}
    content: dict[str, Any] = filled | ({"seed": ()} if record.seed == () else {})
    for name in LISTS:
        if name in content:
            content[name] = list(content[name])
    for name in ("figures", "sd"):
        if name in content:
            content[name] = nested(content[name])
    if "sentences" in content:
        content["sentences"] = {
            kind: {name: round(x, 4) for name, x in scores.items()} for kind, scores in content["sentences"].items()
        }
    if "interval" in content:
        content["interval"] = {name: [round(x, 2) for x in pair] for name, pair in content["interval"].items()}
    return content


def read(path: Path) -> list[Record]:
    """The records of a register. Raises a DataError that names the line."""
    records: dict[str, Record] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a register of runs, one JSON object a line.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = of_json(json.loads(line))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} line {number} is no record of a run: {error}; mend the line.") from None
        if record.id in records:
            raise DataError(f'{path} line {number}: the id "{record.id}" is there already; give each run its own.')
        records[record.id] = record
    return list(records.values())


# Several seeds


def _twin(record: Record) -> str:
    """The same for two runs that differ in nothing but their seed."""
    words = [word for word in _words(record.command) if not word.startswith(("--config.seed=", "--workdir="))]
    if "--workdir" in words:
        del words[words.index("--workdir") : words.index("--workdir") + 2]
    names = ("system", "section", "config", "options", "data", "commit", "machine", "source", "state")
    return json.dumps([words, *(getattr(record, name) for name in names), list(record.sentences)])


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # prose with an apostrophe
        return command.split()


def _mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(v[name] for v in values) for name in values[0] if all(name in v for v in values)}


def merge(records: Iterable[Record]) -> list[Record]:
    """Runs that differ in their seed alone become one record: the mean, and the standard deviation over the seeds."""
    groups: dict[str, list[Record]] = {}
    for number, record in enumerate(records):
        single = record.seed is not None and len(record.seed) == 1 and record.figures and not record.sd
        groups.setdefault(_twin(record) if single else str(number), []).append(record)
    merged = []
    for group in groups.values():
        seeds = [seed for record in group for seed in record.seed or ()]
        if len(group) == 1 or len(set(seeds)) < len(seeds):
            merged += group
            continue
        figures = _mean([record.figures for record in group])
        kinds = group[0].sentences
        changes = {
            "id": ", ".join(record.id for record in group),
            "seed": tuple(sorted(seeds)),
            "steps": tuple(step for record in group for step in record.steps),
            "best_step": tuple(step for record in group for step in record.best_step),
            "figures": figures,
            "sd": {name: statistics.stdev(record.figures[name] for record in group) for name in figures},
            "interval": {},
            "sentences": {kind: _mean([record.sentences[kind] for record in group]) for kind in kinds},
        }
        merged.append(dataclasses.replace(group[0], **changes))
    return merged


# Tables

Column = tuple[str, Callable[[Record], str]]


def _value(record: Record, name: str) -> str:
    if name not in record.figures:
        return ""
    return f"{record.figures[name]:.1f}" + (f" ± {record.sd[name]:.1f}" if name in record.sd else "")


def _recall(record: Record, way: str) -> str:
    return " / ".join(_value(record, f"{way}.r{cut}") for cut in CUTS) if f"{way}.r1" in record.figures else ""


def rsum(record: Record) -> str:
    """``298.6 ± 4.3``, ``297.4 (285.9 to 309.1)`` or ``338.2``."""
    pair = record.interval.get("rsum")
    return _value(record, "rsum") + (f" ({pair[0]:.1f} to {pair[1]:.1f})" if pair else "")


def _range(numbers: Sequence[int]) -> str:
    return " to ".join(f"{n:,}" for n in sorted({min(numbers), max(numbers)}))


def training(record: Record) -> str:
    """``4,230 steps (best 2,585), ended``."""
    steps = f"{_range(record.steps)} steps" if record.steps else ""
    if steps and record.best_step and record.best_step != record.steps:
        steps += f" (best {_range(record.best_step)})"
    return ", ".join(filter(None, (steps, record.state)))


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _seeds(record: Record) -> str:
    return "none" if record.seed == () else ", ".join(map(str, record.seed or ()))


def _number(form: str, name: str) -> Callable[[Record], str]:
    return lambda record: "" if getattr(record, name) is None else form.format(getattr(record, name))


def _step_time(record: Record) -> str:
    seconds = record.step_seconds
    return "" if seconds is None else f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _sentence(kind: str, metric: str) -> Column:
    def cell(record: Record) -> str:
        value = record.sentences.get(kind, {}).get(metric)
        return "" if value is None else f"{value:.3f}"

    return f"{kind} {metric}", cell


def _or_not_recorded(name: str, cell: Callable[[Record], str]) -> Column:
    return name, lambda record: cell(record) or "not recorded"


SYSTEM: tuple[Column, ...] = (
    ("system", lambda record: record.system),
    ("config", lambda record: _code(record.config)),
    ("options", lambda record: _code(record.options)),
    ("data", lambda record: record.data),
)
RUN: Column = ("run", lambda record: record.id)
FIRST: tuple[Column, ...] = tuple((f"{way} R@1", lambda record, way=way: _value(record, f"{way}.r1")) for way in WAYS)
TABLES: dict[str, tuple[Column, ...]] = {
    "summary": (*SYSTEM, *FIRST, ("rsum", rsum), ("training", training), RUN),
    "recall": (
        *SYSTEM,
        *((f"{way} R@1 / 5 / 10", lambda record, way=way: _recall(record, way)) for way in WAYS),
        ("rsum", rsum),
        ("training", training),
        ("time", _number("{:,.0f} s", "seconds")),
        ("time a step", _step_time),
        ("memory", _number("{:.2f} GiB", "memory_gib")),
        RUN,
    ),
    "sentences": (
        *SYSTEM,
        *FIRST,
        *(_sentence("captioning", metric) for metric in ("BLEU-1", "BLEU-2", "BLEU-4", "CIDEr-D")),
        *(_sentence("paraphrasing", metric) for metric in ("BLEU-1", "BLEU-2")),
        RUN,
    ),
    "register": (
        RUN,
        _or_not_recorded("command", lambda record: _code(record.command)),
        _or_not_recorded("commit", lambda record: record.commit),
        _or_not_recorded("machine", lambda record: record.machine),
        _or_not_recorded("date", lambda record: record.date),
        _or_not_recorded("seed", _seeds),
        ("source", lambda record: record.source),
        ("training", training),
        ("note", lambda record: record.note),
    ),
}


def markdown(name: str, records: Sequence[Record]) -> str:
    """One of TABLES; columns that are empty in all rows are left out. The summary is sorted, the best rsum first."""
    if name == "summary":
        records = sorted(records, key=lambda record: -record.figures.get("rsum", 0))
    elif name == "sentences":
        records = [record for record in records if record.sentences]
    cells = [[column(record).replace("|", "\\|") for record in records] for _, column in TABLES[name]]
    columns = [[head, "---", *column] for (head, _), column in zip(TABLES[name], cells, strict=True) if any(column)]
    return "".join("| " + " | ".join(row) + " |\n" for row in zip(*columns, strict=True))


# Pages

BLOCK = re.compile(r"<!-- results: (\S+)(?: (\S+))? -->\n(.*?)<!-- end -->\n", re.DOTALL)


def fill(page: str, records: Sequence[Record]) -> str:
    """A page with each block ``<!-- results: TABLE SECTION -->`` ... ``<!-- end -->`` written anew.

    TABLE is one of TABLES; without SECTION all records are in it. Ids become links to their row in the table
    "register", ``[id]`` in the text of the page too. A section without any record says so.

    Raises:
        DataError: a table that is not there.
    """

    def block(match: re.Match[str]) -> str:
        table, section = match[1], match[2]
        if table not in TABLES:
            raise DataError(f'There is no table "{table}" for a page; there are {", ".join(TABLES)}.')
        chosen = [record for record in records if section is None or section in record.section]
        if table == "sentences":
            chosen = [record for record in chosen if record.sentences]
        head = match[0].partition("\n")[0]
        if not chosen:
            return f"{head}\nNo run is recorded yet.\n<!-- end -->\n"
        if table == "register":
            links = "".join(f"[{record.id}]: #{record.id}\n" for record in chosen)
            anchors = [dataclasses.replace(r, id=f'<a id="{r.id}"></a>{r.id}') for r in chosen]
            return f"{head}\n{markdown(table, anchors)}\n{links}<!-- end -->\n"
        linked = [dataclasses.replace(r, id=re.sub(ID, r"[\g<0>]", r.id)) for r in merge(chosen)]
        return f"{head}\n{markdown(table, linked)}<!-- end -->\n"

    return BLOCK.sub(block, page)


def cited(page: str) -> set[str]:
    """The ids that the text of a page cites, outside the blocks that :func:`fill` writes."""
    return set(re.findall(rf"\[({ID})\](?![(:])", BLOCK.sub("", page)))
