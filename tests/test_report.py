"""What is drawn after a run: learning curves and their clock, ranks, scores, errors, retrieved examples."""

import json
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from xmodal_jax import cli
from xmodal_jax import config as configs
from xmodal_jax.evaluation import table
from xmodal_jax.evaluation.vote import Member, Ranking
from xmodal_jax.report import curves, diagnosis
from xmodal_jax.report import page as report
from xmodal_jax.training import log


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: (figures.append(self), save(self, *args)))
    return figures


def run_folder(folder, lines, *overrides):
    folder.mkdir()
    configs.save(configs.load("vse.py:vsepp,f8k", [f"--config.{o}" for o in overrides]), folder / "config.json")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


LINES = [
    {"step": 10, "wall_s": 60.0, "loss_per_pair": 0.5},
    {"step": 20, "wall_s": 120.0, "dev_rsum": 90.0, "dev_i2t_r1": 9.0},
    {"step": 30, "wall_s": 30.0, "loss_per_pair": 0.4},  # resumed, by an earlier version
    {"step": 40, "wall_s": 90.0, "dev_rsum": 95.0, "dev_i2t_r1": 12.0},
    {"step": 50, "wall_s": 150.0, "dev_rsum": 95.0, "dev_i2t_r1": 11.0},
    {"step": 60, "wall_s": 210.0, "dev_rsum": 80.0, "dev_i2t_r1": 8.0},
]


# Curves


def test_wall_time_goes_on_where_a_run_was_resumed(tmp_path):
    np.testing.assert_allclose(curves.wall_minutes(LINES), [1, 2, 2.5, 3.5, 4.5, 5.5])
    config: Any = ConfigDict({"log": {"tensorboard": False}})
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 3, "wall_s": 500.0}) + "\n")
    with log.Log(tmp_path, config, 3, {}) as kept:
        kept.write(4, {"loss": 1.0})
    assert 500.0 <= log.read(tmp_path / "metrics.jsonl")[-1]["wall_s"] < 510.0


def test_chosen_step_is_the_later_of_the_best():
    assert curves.chosen(LINES) == (50, pytest.approx(4.5), 95.0)
    assert curves.chosen(LINES[:1]) is None


@pytest.mark.parametrize(("minutes", "unit"), [(0.5, (60, "seconds")), (2, (1, "minutes")), (120, (1 / 60, "hours"))])
def test_units_of_time(minutes, unit):
    assert curves.unit_of(minutes) == unit


def test_curves_are_drawn_against_steps_and_time_with_the_chosen_step(tmp_path, drawn):
    curves.draw(run_folder(tmp_path / "a", LINES), tmp_path / "a.png")
    loss, loss_time, recall, recall_time = drawn[0].axes
    assert [axes.get_xlabel() for axes in (loss, loss_time)] == ["step", "wall time, minutes"]
    assert list(loss.lines[0].get_xdata()) == [10, 30]
    assert list(loss_time.lines[0].get_xdata()) == [1, 2.5]
    np.testing.assert_allclose(recall_time.lines[0].get_xdata(), [2, 3.5, 4.5, 5.5])
    assert [set(axes.lines[-1].get_xdata()) for axes in (loss, recall)] == [{50}, {50}]
    assert [set(axes.lines[-1].get_xdata()) for axes in (loss_time, recall_time)] == [{4.5}, {4.5}]
    assert "step 50, dev rsum 95.0" in loss.lines[-1].get_label()


def test_comparison_has_a_star_and_the_plateau_of_each_hinge_power(tmp_path, drawn):
    runs = [run_folder(tmp_path / name, LINES, f"loss.hinge_power={p}") for name, p in (("a", 1.0), ("b", 2.0))]
    curves.draw_comparison(runs, tmp_path / "c.png")
    loss, _, rsum, rsum_time = drawn[0].axes
    flat = sorted(line.get_ydata()[0] for line in loss.lines if line.get_linestyle() == ":")
    np.testing.assert_allclose(flat, [2 * 0.2**2, 2 * 0.2])
    stars = [line for line in rsum.lines if line.get_marker() == "*"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in stars] == [(50, 95.0)] * 2
    assert sum(line.get_marker() == "*" for line in rsum_time.lines) == 2


# Ranks, scores and errors


def test_rank_bins_and_shares():
    assert diagnosis.rank_bins(330) == [1, 2, 3, 5, 10, 20, 50, 100, 200, 330]
    assert diagnosis.rank_bins(1) == [1] and diagnosis.rank_bins(5) == [1, 2, 3, 5]
    shares = diagnosis.rank_shares(np.array([0, 0, 3, 4, 9, 10, 11, 19]), [1, 2, 3, 5, 10, 20])
    np.testing.assert_allclose(shares, [25, 0, 0, 25, 12.5, 37.5])


def test_recall_curves_are_recall_at_every_k_and_chance():
    random = np.random.default_rng(0)
    ranks = random.integers(20, size=50)
    curve = diagnosis.recall_curve(ranks, 20)
    np.testing.assert_allclose(curve, [100 * np.mean(ranks < k) for k in range(1, 21)])
    number = random.integers(1, 5, size=30)
    chance = table.chance(number)
    got = diagnosis.chance_curve(number, int(number.sum())), diagnosis.chance_curve(np.ones(1, int), 30)
    for side, recall in zip(got, chance, strict=True):
        np.testing.assert_allclose(side[[0, 4, 9]], recall[:3])


def test_pair_scores_are_the_match_and_the_best_other_image(monkeypatch):
    random = np.random.default_rng(0)
    images, texts, owner = random.normal(size=(5, 3)), random.normal(size=(9, 3)), np.array([0, 0, 1, 2, 2, 2, 3, 3, 4])
    member = Member(lambda _, image, text: image @ text.T, None, images, texts)
    for most in (2, 4, 1000):
        monkeypatch.setattr(diagnosis, "SCORED", most)
        matched, hardest = diagnosis.pair_scores(member, owner, 5)
        scores = (images @ texts.T)[:most, owner < most]
        owners = owner[owner < most]
        np.testing.assert_allclose(matched, [scores[row, c] for c, row in enumerate(owners)], rtol=1e-6)
        others = [max(scores[i, c] for i in range(len(scores)) if i != row) for c, row in enumerate(owners)]
        np.testing.assert_allclose(hardest, others, rtol=1e-6)


def test_length_groups_hold_every_caption_once():
    for lengths in ([4, 4, 4], [3, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 30], list(range(5, 25)) * 3):
        groups = diagnosis.length_groups(np.array(lengths))
        for length in lengths:
            assert sum(first <= length <= last for first, last in groups) == 1
        assert all(any(first <= length <= last for length in lengths) for first, last in groups)


def test_page_of_plots(tmp_path, drawn):
    random = np.random.default_rng(0)
    owner = np.repeat(np.arange(6), 2)
    ranking = Ranking(np.arange(6), np.array([0, 11] * 6) % 6, owner, np.zeros(6, int), "full", "raw")
    images, texts = random.normal(size=(6, 3)), random.normal(size=(12, 3))
    member = Member(lambda _, image, text: image @ text.T, None, images, texts)
    captions = [["two words", "a caption of six words here"]] * 6
    diagnosis.draw(ranking, member, captions, tmp_path / "ranks.png")
    ranks, recall, _, errors = drawn[0].axes
    heights = [bar.get_height() for bar in ranks.patches]
    assert sum(heights) == pytest.approx(200)
    assert recall.lines[0].get_ydata()[0] == pytest.approx(100 / 6)
    assert [bar.get_height() for bar in errors.patches][::2] == [0.0, 100.0]  # the long ones are never first


# Retrieved examples


def test_an_example_knows_where_the_right_answer_is():
    scores, right = np.array([0.9, 0.8, 0.7, 0.5, 0.5, 0.1]), np.array([0, 0, 0, 1, 0, 1], bool)
    found = report.example(7, scores, right, 3)
    assert (found.query, found.answers.tolist(), found.right.tolist()) == (7, [0, 1, 2], [False] * 3)
    assert (found.best, found.rank) == (3, 5)  # the tie counts against it
    assert report.example(7, scores, np.roll(right, 3), 3).rank == 1


def test_the_right_answer_is_shown_with_its_rank_where_it_is_not_among_the_first(tmp_path, drawn):
    class Three:
        name, captions, ids, pictures = "test", [["one"], ["two"], ["three"]], ["i", "j", "k"], [None] * 3

        def __len__(self):
            return 3

    split: Any = Three()
    scores = np.array([0.3, 0.9, 0.5])
    missed, found = (report.example(q, scores, np.arange(3) == q, 1) for q in (0, 1))
    captions: Any = None
    report.draw_retrieved(split, captions, [missed, found], [missed, found], tmp_path / "r.png")
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert titles == ["right: rank 3"]
    words = [text.get_text() for axes in drawn[0].axes for text in axes.texts]
    assert "3. one" in words and "1. two" in words and "2. two" not in words


# What is shown of runs


def test_several_runs_are_shown_by_what_differs_and_each_key_once(tmp_path, capsys):
    a = run_folder(tmp_path / "a", LINES, "optim.lr=0.001")
    b = run_folder(tmp_path / "b", [], "seed=3", "collapse.warn_steps=7")
    assert cli.run(["show", str(a), str(b), str(tmp_path / "b" / ".." / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("/a: not finished; last logged step 60; best dev rsum 95.0 at step 50")
    assert lines[1].endswith("/b: nothing logged yet")
    start, end = lines.index("# what differs"), lines.index("# what is the same")
    rows = [line.split() for line in lines[start + 1 : end]]
    assert rows == [
        ["1", "2"],
        ["collapse.warn_steps", "500", "7"],
        ["optim.lr", "0.001", "0.0002"],
        ["seed", "0", "3"],
    ]
    keys = [line.split()[0] for line in lines[start + 2 : end] + lines[end + 1 :]]
    assert sorted(keys) == sorted(configs.flatten(configs.read(a)))
    other = run_folder(tmp_path / "c", [], "optim.lr=0.001")
    assert cli.run(["show", str(a), str(other)]) == 0
    assert "# the configs are the same" in capsys.readouterr().out
    assert cli.run(["show", str(a), str(a)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("block = ")


@pytest.mark.parametrize(
    "words",
    [
        ["show", "runs/none", "--curves"],
        ["results", "runs/none", "--chart"],
        ["bench", "scaling", "--plot"],
        ["attend", "--workdir", "runs/none", "--image", "i", "--out"],
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(words, tmp_path, capsys):
    for name, why in (("x.txt", "ends in .png, .svg"), ("x", "ends in .png"), ("none/x.png", "folder that is there")):
        assert cli.run([*words, str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert f"xmodal: {words[-1]} {tmp_path / name}: give a " in error and why in error and error.count("\n") == 1
