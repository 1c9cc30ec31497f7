"""`xmodal results`: tables, means over seeds, charts; the page of results follows from its register."""

import ast
import json
import re

import numpy as np
import pytest
from conftest import ROOT
from test_configs import specs

from xmodal_jax import cli, digest
from xmodal_jax import config as configs
from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.evaluation import table
from xmodal_jax.verbs import register, results
from xmodal_jax.verbs.register import Record

REGISTER = ROOT / "docs" / "results.jsonl"
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs():
    return {record.id: record for record in register.read(REGISTER)}


# The page


def test_page_is_what_its_register_says(runs):
    assert register.fill(PAGE, list(runs.values())) == PAGE, (
        "run `xmodal results docs/results.jsonl --write docs/results.md`"
    )


def test_page_cites_and_shows_the_runs_there_are(runs):
    assert register.cited(PAGE) <= runs.keys()
    shown = {section for _, section, _ in register.BLOCK.findall(PAGE)}
    assert {section for run in runs.values() for section in run.section} <= shown
    assert {"glance", "chain", "dspe", "stt"} <= shown


def orderings():
    lines = PAGE.partition("\n| claim |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_claims_fail_only_by_trainings_that_ended(runs):
    rows = orderings()
    assert len(rows) >= 15
    for claim, _, verdict, whole, _ in rows:
        assert verdict in ("holds", "does not hold", "not known"), claim
        states = [runs[id].state for id in register.cited(whole)]
        if verdict != "not known":
            assert len(states) >= 2, claim
        if verdict == "does not hold":
            assert set(states) <= {"ended", ""}, claim
        assert "short" not in states, claim


def test_orderings_have_the_figures_of_the_runs_they_cite(runs):
    pairs = re.findall(rf"(\d+\.\d)(?: ± (\d+\.\d))?[a-z ]* \[({register.ID})\]", PAGE.partition("| claim |")[2])
    assert len(pairs) >= 40
    for value, sd, id in pairs:
        assert value == f"{runs[id].figures['rsum']:.1f}", id
        assert not sd or sd == f"{runs[id].sd['rsum']:.1f}", id


def test_recalls_of_the_register_add_up(runs):
    for run in runs.values():
        recalls = [value for name, value in run.figures.items() if name != "rsum"]
        assert all(0 <= value <= 100 for value in recalls)
        if recalls:
            assert abs(sum(recalls) - run.figures["rsum"]) < 0.36, run.id  # seven roundings
        low, high = run.interval.get("rsum", (0, 600))
        assert low <= run.figures.get("rsum", low) <= high


@pytest.mark.parametrize("name", sorted({spec.partition(":")[0] for spec in specs()}))
def test_config_says_what_it_reaches(name, runs):
    docstring = ast.get_docstring(ast.parse((ROOT / "configs" / name).read_text(encoding="utf-8"))) or ""
    reached = next((part for part in docstring.split("\n\n") if part.startswith("Reached")), "")
    assert "docs/results.md" in reached, f'add a paragraph "Reached ... (docs/results.md): ..." to {name}'
    known = {f"{run.figures['rsum']:.1f}" for run in runs.values() if "rsum" in run.figures}
    assert set(re.findall(r"\b\d{3}\.\d\b", reached)) <= known
    mine = [run.figures["rsum"] for run in runs.values() if run.config.startswith(f"{name}:") and run.figures]
    flickr = [run for run in runs.values() if run.config.startswith(f"{name}:") and run.data.startswith("Flickr8k")]
    if mine:
        assert f"{max(run.figures.get('rsum', 0) for run in flickr):.1f}" in reached
    else:
        assert "not measured" in reached


@pytest.mark.parametrize("name", ["results", "performance", "search"])
def test_pages_have_lines_that_can_be_read(name):
    lines = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").splitlines()
    assert max(len(line) for line in lines if not line.startswith("|")) < 240


# Run folders


def evaluation(folder, step, seed, *, split="test", **more):
    """What `xmodal eval` writes, of random ranks; its rsum."""
    generator = np.random.default_rng(seed)
    ranks = generator.integers(12, size=10), generator.integers(12, size=20), np.repeat(np.arange(10), 2)
    content = table.to_json(table.make_table([ranks], protocol="full", weights="raw", draws=20))
    (folder / "eval").mkdir(exist_ok=True, parents=True)
    content = {"workdir": str(folder), "split": split, "step": step, **content, **more}
    (folder / "eval" / f"{split}-{step}.json").write_text(json.dumps(content))
    return content["rsum"]


def run_folder(folder, *overrides, spec="scan.py:t2i_lse,f8k", dev=((10, 100.0),)):
    folder.mkdir(parents=True)
    configs.save(configs.load(spec, [f"--config.{o}" for o in overrides]), folder / "config.json")
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "dev_rsum": {rsum}}}\n' for step, rsum in dev))
    (folder / "finished.json").write_text("{}")
    return folder


def test_seeds_become_their_mean_and_other_runs_do_not(tmp_path, capsys):
    rsums = []
    for seed in range(3):
        folder = run_folder(tmp_path / f"s{seed}", f"seed={seed}", "model.embed_dim=256", "data.dir=my/set")
        rsums.append(evaluation(folder, 10, seed))
    other = evaluation(run_folder(tmp_path / "other", "model.embed_dim=128"), 10, 3)
    assert cli.run(["results", str(tmp_path)]) == 0
    head, _, first, second = capsys.readouterr().out.splitlines()
    assert head.startswith("| system | config | options | data | i2t R@1 / 5 / 10 |")
    many, alone = (second, first) if "/other |" in first else (first, second)
    assert f"| {np.mean(rsums):.1f} ± {np.std(rsums, ddof=1):.1f} |" in many
    assert all(f"{tmp_path}/s{seed}" in many for seed in range(3))
    assert "| `scan.py:t2i_lse,own` | `model.embed_dim=256` | set, region |" in many
    assert f"| {other:.1f} (" in alone and "| `scan.py:t2i_lse,f8k` | `model.embed_dim=128` |" in alone
    assert "| 10 steps, finished |" in alone


def test_same_seed_twice_is_two_rows(tmp_path):
    for name in "ab":
        evaluation(run_folder(tmp_path / name), 10, 0)
    assert len(register.merge(results.records_of(tmp_path, "test"))) == 2


def test_the_step_is_chosen_on_dev(tmp_path):
    folder = run_folder(tmp_path / "run", dev=((10, 100.0), (20, 130.0), (30, 120.0)))
    rsums = {step: evaluation(folder, step, step) for step in (10, 20, 30)}
    evaluation(folder, 40, 40, split="dev")
    (record,) = results.records_of(folder, "test")
    assert record.best_step == (20,) and record.figures["rsum"] == pytest.approx(rsums[20])
    assert register.training(record) == "30 steps (best 20), finished"
    assert results.records_of(folder, "dev")[0].data == "f8k dev, region"
    (folder / "metrics.jsonl").unlink()
    assert results.chosen(folder, "test") == folder / "eval" / "test-30.json"


@pytest.mark.parametrize("spec", specs())
def test_config_is_recognised_from_what_a_run_saves(spec):
    for data in ("f8k", "scenes"):
        config = configs.load(f"{spec},{data}", ["--config.seed=3", "--config.data.lengths=(9,)"])
        assert results.argument_of(config) == (f"{spec},{data}", {"data.lengths": [9]})


def test_a_run_keeps_the_weights_that_a_simpler_variant_lacks():
    weights = [f"--config.weights.{name}=64.0" for name in ("captioning", "self_critical")]
    config = configs.load("gxn.py:mix,f8k", ["--config.stages=()", *weights])
    argument, changed = results.argument_of(config)
    assert argument == "gxn.py:mix,f8k"
    assert changed["weights.self_critical"] == 64.0


def test_runs_of_an_unknown_system_are_told_apart_by_their_keys(tmp_path):
    for place, (seed, rate) in enumerate([(0, 0.1), (1, 0.1), (0, 0.2)]):
        folder = run_folder(tmp_path / str(place), f"seed={seed}", f"optim.lr={rate}", spec="vse.py:vsepp,f8k")
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"name": "vse"', '"name": "/models/new.py"'))
        evaluation(folder, 10, place)
    several, alone = register.merge(results.records_of(tmp_path, "test"))
    assert (
        several.seed == (0, 1) and alone.seed == (0,) and {several.system, several.config} == {"new", "/models/new.py"}
    )
    assert "model.text=gru" in alone.options and "optim.lr=0.2" in alone.options and not alone.command
    assert "model.name" not in alone.options and "epochs" not in alone.options


def test_copies_ensembles_and_baselines(tmp_path):
    folder = run_folder(tmp_path / "run")
    rsum = evaluation(folder, 10, 0)
    text = (folder / "eval" / "test-10.json").read_text()
    (tmp_path / "copy.json").write_text(text)
    assert results.of_file(tmp_path / "copy.json").config == "scan.py:t2i_lse,f8k"
    plain = {key: value for key, value in json.loads(text).items() if key not in ("workdir", "step")}
    (tmp_path / "ensemble.json").write_text(json.dumps({**plain, "ensemble": ["runs/a", "runs/b"], "scale": True}))
    record = results.of_file(tmp_path / "ensemble.json")
    assert record.system == "ensemble of runs/a runs/b" and record.config == "xmodal eval --ensemble --scale"
    facts = {"method": "ncca", "data": "data/f8k", "features": ["global", "region"]}
    (tmp_path / "cca.json").write_text(json.dumps({**plain, **facts}))
    record = results.of_file(tmp_path / "cca.json")
    assert (record.config, record.data, record.seed) == ("xmodal baseline ncca", "f8k, global+region", ())
    assert record.figures["rsum"] == pytest.approx(rsum) and record.interval["rsum"][0] < rsum
    assert record.interval.keys() <= set(register.METRICS)


def test_a_figure_that_changed_since_it_was_written_is_refused(tmp_path):
    evaluation(run_folder(tmp_path / "run"), 10, 0)
    path = tmp_path / "run" / "eval" / "test-10.json"
    content = digest.sealed(json.loads(path.read_text()))
    path.write_text(json.dumps(content, indent=1))
    assert results.of_file(path).figures["rsum"] == pytest.approx(content["rsum"])
    path.write_text(json.dumps(content | {"rsum": content["rsum"] + 1}))
    with pytest.raises(DataError, match=r"test-10\.json is damaged: its SHA-256 differs; run `xmodal eval` again"):
        results.of_file(path)
    for text in ("[" * 99_999, '{"a":' * 99_999):
        path.write_text(text)
        with pytest.raises(DataError, match="is no evaluation"):
            results.of_file(path)


def test_rows_as_json_are_lines_of_a_register(tmp_path, capsys):
    for seed in range(2):
        evaluation(run_folder(tmp_path / f"runs/S {seed}", f"seed={seed}"), 10, seed)
    evaluation(run_folder(tmp_path / "runs/one", "seed=7", "optim.schedule.at=(8.0,)"), 10, 5)
    assert cli.run(["results", str(tmp_path / "runs"), "--json", str(tmp_path / "rows.json")]) == 0
    lines = json.loads((tmp_path / "rows.json").read_text())
    raw = (tmp_path / "rows.json").read_text().splitlines()
    assert [json.loads(line.strip("[], ").removesuffix("]")) for line in raw] == lines
    (tmp_path / "register.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = register.read(tmp_path / "register.jsonl")
    assert [register.to_json(record) for record in again] == lines
    by_seed = {record.seed: record for record in again}
    assert [record.id for record in again] == ["s-0-s-1", "run-one"] and not any(record.options for record in again)
    assert by_seed.keys() == {(0, 1), (7,)} and by_seed[(0, 1)].sd["rsum"] > 0
    assert by_seed[(7,)].command == (
        "xmodal train --config scan.py:t2i_lse,f8k '--config.optim.schedule.at=(8.0,)' --config.seed=7"
    )


# Sentences

SAID = {
    "captioning": {"decoding": {"method": "greedy"}, "BLEU-1": 0.6123, "BLEU-2": 0.4, "BLEU-4": 0.2, "CIDEr-D": 0.5},
    "paraphrasing": {"BLEU-1": 0.3, "BLEU-2": 0.1},
}


def test_sentences_have_a_table_where_there_are_any(tmp_path, capsys):
    folder = run_folder(tmp_path / "run", spec="stt.py:stt,f8k")
    evaluation(folder, 10, 0)
    assert cli.run(["results", str(folder)]) == 0
    assert "BLEU" not in capsys.readouterr().out
    evaluation(folder, 10, 0, sentences=SAID)
    assert cli.run(["results", str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[4].split(" | ")[3:-1] == [
        "i2t R@1",
        "t2i R@1",
        *(f"captioning {name}" for name in ("BLEU-1", "BLEU-2", "BLEU-4", "CIDEr-D")),
        *(f"paraphrasing {name}" for name in ("BLEU-1", "BLEU-2")),
    ]
    assert "| 0.612 | 0.400 | 0.200 | 0.500 | 0.300 | 0.100 |" in out[6]


def test_a_line_in_the_register_fills_the_place_on_the_page(tmp_path, capsys):
    page, lines = tmp_path / "page.md", tmp_path / "register.jsonl"
    page.write_text("See [stt-f8k].\n<!-- results: sentences stt -->\n<!-- end -->\nBehind.\n")
    other = {"id": "scan-a", "system": "SCAN", "section": "cross", "figures": {"rsum": 300.0}}
    lines.write_text(json.dumps(other) + "\n\n")
    write = ["results", str(lines), "--write", str(page)]
    assert cli.run(write) == 0
    mark = "<!-- results: sentences stt -->\n"
    assert page.read_text() == f"See [stt-f8k].\n{mark}No run is recorded yet.\n<!-- end -->\nBehind.\n"
    ours = {"id": "stt-f8k", "system": "STT", "section": ["stt"], "sentences": {"captioning": {"BLEU-1": 0.5}}}
    ours["figures"] = {"i2t": [10.0, 20.0, 30.0], "t2i": [5.0, 10.0, 15.0], "rsum": 90.0}
    nearest = {"id": "nearest-f8k", "system": "nearest caption", "section": ["stt"]}
    nearest["sentences"] = {"captioning": {"BLEU-1": 0.4}}
    lines.write_text("".join(json.dumps(line) + "\n" for line in (other, ours, nearest)))
    assert cli.run(write) == 0
    assert page.read_text().splitlines()[2:6] == [
        "| system | i2t R@1 | t2i R@1 | captioning BLEU-1 | run |",
        "| --- | --- | --- | --- | --- |",
        "| STT | 10.0 | 5.0 | 0.500 | [stt-f8k] |",
        "| nearest caption |  |  | 0.400 | [nearest-f8k] |",
    ]
    before = page.read_text()
    assert cli.run(write) == 0 and page.read_text() == before
    assert register.cited(before) == {"stt-f8k"}


def test_register_table_has_anchors_and_says_what_is_not_recorded():
    page = "<!-- results: register -->\n<!-- end -->\n"
    text = register.fill(page, [Record("a-b", "A", seed=()), Record("a-c", "A", command="x | y", commit="1234567")])
    assert '| <a id="a-b"></a>a-b | not recorded | not recorded | not recorded | not recorded | none |' in text
    assert '| <a id="a-c"></a>a-c | `x \\| y` | 1234567 | not recorded | not recorded | not recorded |' in text
    assert text.endswith("\n[a-b]: #a-b\n[a-c]: #a-c\n<!-- end -->\n")


def test_summary_is_sorted_and_registered_seeds_are_merged():
    rows = [
        Record("a-0", "A", command="t --config.seed=0", seed=(0,), figures={"rsum": 200.0}),
        Record("a-1", "A", command="t --config.seed=1", seed=(1,), figures={"rsum": 210.0}),
        Record("b-0", "B", command="t", seed=(0,), figures={"rsum": 300.0}, interval={"rsum": (290.0, 310.5)}),
    ]
    lines = register.fill("<!-- results: summary -->\n<!-- end -->\n", rows).splitlines()
    assert lines[3:5] == ["| B | 300.0 (290.0 to 310.5) | [b-0] |", "| A | 205.0 ± 7.1 | [a-0], [a-1] |"]


# Charts


def test_chart_shows_every_figure_with_its_interval(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: (drawn.append(self), save(self, *args)))
    rows = [
        Record("a-0", "A", section=("x",), figures={"rsum": 300.0}, interval={"rsum": (290.0, 312.0)}, state="ended"),
        Record("b-0", "B", section=("x",), figures={"rsum": 200.0}, sd={"rsum": 5.0}, seed=(0, 1), state="short"),
        Record("c-0", "C", section=("x",), figures={"rsum": 250.0}, data="scenes, region"),
        Record("d-0", "D", section=("x",)),
    ]
    results.draw(rows, "rsum", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["B", "C, scenes", "A"]
    assert [text.get_text() for text in axes.texts] == ["200.0 ± 5.0, 2 seeds", "250.0", "300.0"]
    intervals, dots = axes.lines[::2], axes.lines[1::2]
    assert [tuple(line.get_xdata()) for line in intervals] == [(195.0, 205.0), (250.0, 250.0), (290.0, 312.0)]
    assert [dot.get_markerfacecolor() == results.PAPER for dot in dots] == [True, False, False]
    with pytest.raises(UsageError, match="nothing to draw"):
        results.draw(rows, "i2t.r1", tmp_path / "chart.png")


def test_chart_of_a_section(tmp_path, capsys):
    chart = tmp_path / "chart.png"
    assert cli.run(["results", str(REGISTER), "--section", "scenes", "--chart", str(chart)]) == 0
    assert chart.is_file() and "dvsa-scenes" in (out := capsys.readouterr().out) and "adapt-t2i-h100" not in out


# Refusals


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2 is no record"),
        ("[]", "line 2 is no record"),
        ('{"id": "a-b"}', '"id" such as'),
        ('{"id": "UP", "system": "A"}', '"id" such as'),
        ('{"id": "a-b", "system": "A", "comit": "1"}', 'no field "comit"'),
        ('{"id": "a-b", "system": "A", "state": "good"}', '"state" is one of'),
        ('{"id": "a-b", "system": "A", "figures": {"i2t": [1, 2]}}', "line 2 is no record"),
        ('{"id": "a-b", "system": "A", "figures": {"rsum": NaN}}', "not finite"),
        ('{"id": "a-b", "system": "A", "figures": {"r1": 2}}', "none of i2t"),
        ('{"id": "a-a", "system": "A"}', "there already"),
    ],
)
def test_broken_lines_are_named(line, why, tmp_path):
    path = tmp_path / "register.jsonl"
    path.write_text('{"id": "a-a", "system": "A"}\n' + line + "\n")
    with pytest.raises(DataError, match=why):
        register.read(path)


def test_what_holds_no_results_is_refused(tmp_path, capsys):
    def refused(*argv):
        code = cli.run(["results", *map(str, argv)])
        return code, capsys.readouterr().err

    code, error = refused(tmp_path / "missing.jsonl")
    assert code == 3 and "cannot be read" in error
    code, error = refused(tmp_path)
    assert code == 3 and "run `xmodal eval" in error
    path = tmp_path / "other.json"
    for text in ("[]", "{}", '{"workdir": "w", "step": 1}', '{"rsum": 1', '{"i2t": {"r1": 1}, "rsum": 2}'):
        path.write_text(text)
        code, error = refused(path)
        assert code == 3 and "is no evaluation" in error and error.count("\n") == 1
    code, error = refused(REGISTER, "--section", "none")
    assert code == 2 and "there are " in error and "scenes" in error
    code, error = refused(REGISTER, "--write", tmp_path / "missing.md")
    assert code == 2 and "cannot be read" in error
    page = tmp_path / "page.md"
    page.write_text("No marks.\n")
    code, error = refused(REGISTER, "--write", page)
    assert code == 2 and "no place for a table" in error
    page.write_text("<!-- results: tabel -->\n<!-- end -->\n")
    code, error = refused(REGISTER, "--write", page)
    assert code == 3 and 'no table "tabel"' in error
