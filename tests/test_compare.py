"""`xmodal compare`: tests of a difference by their definitions, the file of ranks, what is shown and refused."""

import json
import math
import os
import re
import shutil

import jax
import numpy as np
import pytest
from galleries import HOSTILE
from helpers import planted

from xmodal_jax import cli
from xmodal_jax.data import records, writer
from xmodal_jax.errors import CheckpointError
from xmodal_jax.evaluation import compare, ranks_file
from xmodal_jax.evaluation.vote import Ranking
from xmodal_jax.training import parallel

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def ranking(seed, *, images=30, captions=(1, 4), folds=1, most=15):
    """Random ranks of images with different numbers of captions, in interleaved folds."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    image = np.repeat(np.arange(images), fixed.integers(*captions, size=images, endpoint=True))
    i2t, t2i = random.integers(most, size=images), random.integers(most, size=len(image))
    return Ranking(i2t, t2i, image, np.arange(images) % folds, "full", "raw")


# Tests of a difference


@pytest.mark.parametrize(("alone", "other"), [(0, 0), (1, 0), (3, 3), (2, 9), (40, 12), (0, 20)])
def test_mcnemar_is_the_exact_binomial_tail(alone, other):
    a = np.repeat([True, True, False, False], [5, alone, other, 7])
    b = np.repeat([True, False, True, False], [5, alone, other, 7])
    got = compare.mcnemar(a, b)
    assert got[:4] == (5, alone, other, 7)
    n = alone + other
    tail = sum(math.comb(n, i) for i in range(min(alone, other) + 1)) / 2**n
    assert got.p == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize("folds", [1, 3])
def test_paired_bootstrap_draws_the_same_images_with_their_captions_for_both(folds):
    a, b = ranking(1, folds=folds), ranking(2, folds=folds)
    got, draws = compare.paired_bootstrap(a, b, draws=300, seed=5), np.zeros((300, 6))
    for side, sign in ((a, -1), (b, 1)):
        generator = np.random.default_rng(5)
        for fold in range(folds):
            rows = np.flatnonzero(side.fold == fold)
            for draw in range(300):
                taken = rows[generator.integers(len(rows), size=len(rows))]
                texts = np.concatenate([np.flatnonzero(side.image == row) for row in taken])
                hits = [np.mean(ranks < k) for ranks in (side.i2t[taken], side.t2i[texts]) for k in (1, 5, 10)]
                draws[draw] += sign * 100 * np.array(hits) / folds
    draws = np.column_stack([draws, draws.sum(axis=1)])
    values = [(s.table(draws=0).i2t[:3] + s.table(draws=0).t2i[:3], s.table(draws=0).rsum) for s in (a, b)]
    value = np.subtract([*values[1][0], values[1][1]], [*values[0][0], values[0][1]])
    names = ("i2t.r1", "i2t.r5", "i2t.r10", "t2i.r1", "t2i.r5", "t2i.r10", "rsum")
    names = ("i2t.r1", "i2t.r5", "i2t.r10", "t2i.r1", "t2i.r5", "t2i.r10", "rsum")
    for name, column, whole in zip(names, draws.T, value, strict=True):
        below, above = np.sum(column <= 1e-9), np.sum(column >= -1e-9)
        p = min(1.0, 2 * (min(below, above) + 1) / 301)
        np.testing.assert_allclose(got[name], (whole, *np.percentile(column, [2.5, 97.5]), p), atol=1e-6)


def test_nothing_differs_from_itself_and_a_sure_difference_is_never_impossible():
    same = compare.paired_bootstrap(ranking(1), ranking(1), draws=50)
    assert set(same.values()) == {(0.0, 0.0, 0.0, 1.0)}
    right, wrong = (ranking(1)._replace(i2t=np.full(30, rank)) for rank in (0, 12))
    assert compare.paired_bootstrap(wrong, right, draws=99)["i2t.r1"] == (100.0, 100.0, 100.0, 0.02)


def test_changes_are_the_largest_each_way_and_only_changes():
    a, b = np.array([5, 5, 5, 5, 5, 5]), np.array([5, 0, 9, 4, 7, 5])
    better, worse = compare.changes(a, b, 2)
    assert better.tolist() == [1, 3] and worse.tolist() == [2, 4]
    assert [x.tolist() for x in compare.changes(a, b, 5)] == [[1, 3], [2, 4]]
    assert [x.tolist() for x in compare.changes(a, b, 0)] == [[], []]


# The file of ranks


def test_ranks_are_read_as_they_were_and_one_changed_bit_is_found(tmp_path):
    ranked, path = ranking(3, folds=2), tmp_path / "test-1.ranks.npz"
    ids, captions = [f"é{i}" for i in range(30)], [["a caption"]] * 30
    raw = ranks_file.make(ranked, ids, captions, {"split": "test", "step": 1})
    path.write_bytes(raw)
    got = ranks_file.read(path)
    for name in ranks_file.ARRAYS:
        np.testing.assert_array_equal(getattr(got.ranking, name), getattr(ranked, name))
    assert (got.ranking.protocol, got.ranking.weights, got.ids) == ("full", "raw", ids)
    assert got.about == {"split": "test", "step": 1, "captions": ranks_file.captions_hash(captions)}
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["t2i"][4] += 1
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match=r"test-1\.ranks\.npz is damaged \(its SHA-256 differs\)"):
        ranks_file.read(path)
    for cut in (0, 10, len(raw) // 2):
        path.write_bytes(raw[:cut])
        with pytest.raises(CheckpointError, match="is damaged"):
            ranks_file.read(path)


# The verb


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs, the first evaluated."""
    root = tmp_path_factory.mktemp("compare")
    tiny = ["train", "--config", "vse.py:vsepp,tiny", "--config.model.feature=region", "--config.data.minimum_count=1"]
    tiny += [f"--config.data.dir={planted(root / 'set')}", "--config.steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(parallel.RUNNERS, "jit", lambda _: parallel.jit_runner(jax.devices()[:1]))
        patch.setattr(parallel, "check_divides", lambda *_: None)
        for name, options in (("a", []), ("b", ["--config.seed=1", "--config.optim.lr=1e-2"])):
            assert cli.run([*tiny, "--workdir", str(root / name), *options]) == 0
        assert cli.run(["eval", "--workdir", str(root / "a")]) == 0
    return root


def run(capsys, *argv):
    capsys.readouterr()
    code = cli.run(["compare", *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.usefixtures("one_device")
def test_two_runs(runs, tmp_path, capsys):
    a, b = runs / "a", runs / "b"
    code, out, _ = run(capsys, a, b, "--json", tmp_path / "c.json", "--markdown", tmp_path / "c.md", "-k", 3)
    assert code == 0
    assert (b / "eval" / "test-2.ranks.npz").is_file()  # ranked when compared, and kept
    found = json.loads((tmp_path / "c.json").read_text())
    evaluated = json.loads((a / "eval" / "test-2.json").read_text())
    del evaluated["unknown"], evaluated["sha256"]  # of its words and its file, not of its ranks
    assert {key: found["a"][key] for key in evaluated} == evaluated
    assert found["config"] == {"optim.lr": [2e-3, 1e-2], "seed": [0, 1]}
    for way in ("i2t", "t2i"):
        change = found["b"][way]["r1"] - found["a"][way]["r1"]
        assert found["difference"][f"{way}.r1"]["value"] == pytest.approx(change)
        test = found["mcnemar"][way]
        assert 100 * (test["only_b"] - test["only_a"]) == pytest.approx(change * sum(list(test.values())[:4]))
    ranked = [ranks_file.read(side / "eval" / "test-2.ranks.npz") for side in (a, b)]
    change = ranked[1].ranking.t2i - ranked[0].ranking.t2i
    captions = records.open_dataset(runs / "set").split("test").captions
    first = found["better_in_b"]["t2i"][0]
    assert first["b"] - first["a"] == change.min() and len(found["better_in_b"]["t2i"]) <= 3
    assert first["text"] in captions[ranked[0].ids.index(first["id"])]
    assert "optim.lr" in out and first["text"] in out and "text to image R@10" in out
    assert "| optim.lr | 0.002 | 0.01 |" in (tmp_path / "c.md").read_text()
    assert run(capsys, a / "eval" / "test-2.json", b / "eval", "-k", 3)[1].splitlines()[4:] == out.splitlines()[4:]


@pytest.mark.usefixtures("one_device")
def test_an_ensemble_and_a_baseline_are_compared_by_their_file(runs, tmp_path, capsys):
    mean, linear = tmp_path / "mean.json", tmp_path / "linear.json"
    assert cli.run(["eval", "--ensemble", str(runs / "a"), str(runs / "b"), "--json", str(mean)]) == 0
    assert cli.run(["baseline", "cca", "--data", str(runs / "set"), "--json", str(linear)]) == 0
    code, out, _ = run(capsys, linear, mean, "--json", tmp_path / "c.json")
    assert code == 0 and "Not known: the config of a run is not there." in out
    found = json.loads((tmp_path / "c.json").read_text())
    for side, path in (("a", linear), ("b", mean)):
        evaluated = json.loads(path.read_text())
        assert {way: found[side][way] for way in ("i2t", "t2i")} == {way: evaluated[way] for way in ("i2t", "t2i")}
    assert run(capsys, runs / "a", mean, "--data", runs / "set")[0] == 0


@pytest.mark.usefixtures("one_device")
def test_two_steps_of_one_run(runs, tmp_path, capsys):
    """RUN@STEP names any saved step, to compare and in an ensemble, beside the best step of RUN alone."""
    more = tmp_path / "more"
    more.symlink_to(shutil.copytree(runs / "a", tmp_path / "run@1"))  # a name that ends like a step is a name
    tiny = ["train", "--config", "vse.py:vsepp,tiny", "--config.model.feature=region", "--config.data.minimum_count=1"]
    tiny += [f"--config.data.dir={runs / 'set'}", "--config.steps=3", "--workdir", str(more)]
    assert cli.run(tiny) == 0
    code, out, error = run(capsys, f"{more}@2", f"{more}@3", "--json", tmp_path / "c.json")
    assert code == 0, error
    assert f"A = {more}@2, B = {more}@3" in out
    found = json.loads((tmp_path / "c.json").read_text())
    assert [found[side]["step"] for side in "ab"] == [2, 3]
    for side, step in (("a", 2), ("b", 3)):
        target = tmp_path / f"{step}.json"
        assert cli.run(["eval", "--workdir", str(more), "--step", str(step), "--json", str(target)]) == 0
        table, voted = json.loads(target.read_text()), tmp_path / "voted.json"
        assert found[side]["rsum"] == table["rsum"]
        assert cli.run(["eval", "--ensemble", f"{more}@{step}", f"{more}@{step}", "--json", str(voted)]) == 0
        assert json.loads(voted.read_text())["t2i"] == table["t2i"]
    assert run(capsys, tmp_path / "run@1", runs / "b")[0] == 0
    code, _, error = run(capsys, f"{more}@4", more)
    assert code == 4 and "has no checkpoint of step 4; there are: 2, 3." in error
    code, _, error = run(capsys, f"{runs}@4", more)
    assert code == 3 and f"{runs} is no run folder, which alone has steps" in error


@pytest.mark.usefixtures("one_device")
def test_the_folder_one_stands_in_is_not_the_run_of_an_ensemble(runs, tmp_path, capsys, monkeypatch):
    mean, linear = tmp_path / "mean.json", tmp_path / "linear.json"
    assert cli.run(["eval", "--ensemble", str(runs / "a"), str(runs / "b"), "--json", str(mean)]) == 0
    assert cli.run(["baseline", "cca", "--data", str(runs / "set"), "--json", str(linear)]) == 0
    monkeypatch.chdir(runs / "a")
    code, out, _ = run(capsys, linear, mean)
    assert code == 0 and "Not known: the config of a run is not there." in out


@pytest.mark.usefixtures("one_device")
def test_a_report_of_any_run(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="drawn by matplotlib")
    argv, folder = (
        ["eval", "--workdir", str(runs / "a"), "--report", str(tmp_path / "new" / "r")],
        tmp_path / "new" / "r",
    )
    assert cli.run(argv) == 0
    page = (folder / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((.+\.png)\)", page)
    assert pictures == ["curves.png", "ranks.png", "retrieved.png"]
    assert all((folder / name).stat().st_size > 10_000 for name in pictures)
    assert page.startswith(f"# {runs / 'a'} on planted test, step 2") and "| chance |" in page
    capsys.readouterr()
    assert cli.run([*argv, "--watch"]) == 2
    assert "--report is of one step" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.run([*argv[:-1], str(tmp_path / "file")]) == 4


@pytest.mark.usefixtures("one_device")
def test_what_cannot_be_paired_is_refused(runs, tmp_path, capsys):
    a, b = runs / "a", shutil.copytree(runs / "b", tmp_path / "b")
    assert cli.run(["eval", "--workdir", str(b), "--split", "dev"]) == 0

    def refused(code, *argv):
        got, _, error = run(capsys, *argv)
        assert got == code and error.count("\n") == 1, error
        return error

    other = b / "eval" / "dev-2.json"
    assert "test (16 images)" in (said := refused(2, a / "eval" / "test-2.json", other)) and "dev (16 images)" in said
    assert "the same evaluation" in refused(2, a, a)
    assert "no evaluation on test" in refused(3, a, tmp_path)
    assert "is not there" in refused(3, a, tmp_path / "none")
    assert 'no split "tset"' in refused(3, a, b, "--split", "tset")
    assert "give a file in a folder" in refused(2, a, b, "--html", tmp_path / "none" / "c.html")
    (tmp_path / "x.json").write_text("{}")
    assert "is no evaluation of a run" in refused(3, a, tmp_path / "x.json")
    another = planted(tmp_path / "set", seed=4)
    assert "has other captions" in refused(2, a / "eval", runs / "b" / "eval", "--data", another)
    ranked = ranks_file.read(a / "eval" / "test-2.ranks.npz")
    captions = records.open_dataset(runs / "set").split("test").captions
    folds = ranked.ranking._replace(fold=np.arange(16) % 2)
    (tmp_path / "f.ranks.npz").write_bytes(ranks_file.make(folds, ranked.ids, captions, ranked.about))
    assert "the same --protocol" in refused(2, a, tmp_path / "f.ranks.npz")


@pytest.fixture
def hostile(tmp_path):
    """Two files of ranks of a set whose ids and captions are hostile, one picture broken; and the set."""
    from PIL import Image

    def items():
        for i, text in enumerate(HOSTILE):
            path = tmp_path / f"{i}.png"
            Image.new("RGB", (400, 300), (40 * i % 256, 90, 30)).save(path)
            yield records.Item(f"<b>{i}</b>|", [text], {"global": np.ones(4, np.float32)}, None, (300, 400), path)

    data, n = tmp_path / "set", len(HOSTILE)
    writer.write(data, {"test": items()}, name="<i>set", source={"kind": "planted"})
    split = records.open_dataset(data).split("test")
    for name, change in (("a", 0), ("b", 1)):
        ranked = Ranking(np.arange(n)[:: 1 - 2 * change], np.arange(n), np.arange(n), np.zeros(n, int), "full", "raw")
        about = {"split": "test", "step": 1, "data": "<i>set", "workdir": f"<script>window.hurt = 1</script>{name}"}
        (tmp_path / f"{name}.ranks.npz").write_bytes(ranks_file.make(ranked, split.ids, split.captions, about))
    picture = split.pictures[1]
    assert picture is not None
    picture.write_bytes(b"no picture")
    return tmp_path


def test_the_page_is_one_file_in_which_data_stays_text(hostile, capsys):
    files = [hostile / "a.ranks.npz", hostile / "b.ranks.npz"]
    forms = ["--html", hostile / "c.html", "--markdown", hostile / "c.md", "-k", 50]
    assert run(capsys, *files, "--data", hostile / "set", *forms)[0] == 0
    text = (hostile / "c.html").read_text(encoding="utf-8")
    assert re.findall(r"<(script|iframe|i|b|a)\b", text) == []
    assert set(re.findall(r'src="(.{16})', text)) == {"data:image/jpeg;"}
    assert len(text) < 4000 * len(HOSTILE) + 20_000  # pictures are small
    markdown = (hostile / "c.md").read_text(encoding="utf-8")
    assert "<" not in markdown and r"&lt;b&gt;0&lt;/b&gt;\|" in markdown
    assert all(line.count(" | ") == 3 for line in markdown.splitlines() if "b&gt;" in line)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path (Debian's package chromium, or set CHROMIUM)")
def test_the_page_in_a_browser(hostile, capsys):
    driver = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    files = [hostile / "a.ranks.npz", hostile / "b.ranks.npz"]
    assert run(capsys, *files, "--data", hostile / "set", "--html", hostile / "c.html", "-k", 50)[0] == 0
    with driver.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda line: complaints.append(line.text))
        page.goto(f"file://{hostile / 'c.html'}")
        assert page.evaluate("window.hurt") is None
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        shown = page.locator("td:last-child").all_text_contents()
        assert set(HOSTILE) - {HOSTILE[len(HOSTILE) // 2]} <= set(shown)  # the middle rank is the same in both
        sizes = page.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)")
        assert sizes and set(sizes) == {160}
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert complaints == []
        chromium.close()
