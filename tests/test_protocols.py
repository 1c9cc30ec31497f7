"""Protocols and the recall table: folds, the original's metrics, chance, bootstrap, output."""

import json

import numpy as np
import pytest
from conftest import GOLDEN

from xmodal_jax.errors import UsageError
from xmodal_jax.evaluation import protocols, ranks, table


def ranked(random, number, strength=2.0):
    """A fold's result: i2t and t2i ranks and rows of ``number`` captions an image."""
    row = np.repeat(np.arange(len(number)), number)
    positive = np.arange(len(number))[:, None] == row
    scores = random.normal(size=positive.shape) + strength * positive
    return *ranks(scores, positive), row


def result_of(results, **options):
    return table.make_table(results, protocol="full", weights="raw", **options)


def test_auto_takes_five_folds_exactly_where_there_are_5000_images():
    folds, why = protocols.choose("auto", 5000)
    assert [(fold[0], fold[-1], len(fold)) for fold in folds] == [(1000 * i, 1000 * i + 999, 1000) for i in range(5)]
    assert why.startswith("fold5: mean over 5 consecutive folds of 1,000 images (auto")
    for protocol, number in [("auto", 4999), ("auto", 1000), ("auto", 25000), ("full", 5000)]:
        folds, why = protocols.choose(protocol, number)
        assert len(folds) == 1 and (folds[0] == np.arange(number)).all()
        assert why.startswith(f"full: all {number:,} images ranked together ({'auto' if protocol == 'auto' else 'as'}")


def test_five_folds_of_another_split_are_refused():
    with pytest.raises(UsageError, match=r"needs exactly 5,000 images .* this split has 1,000"):
        protocols.choose("fold5", 1000)
    with pytest.raises(UsageError, match='No protocol "fold"'):
        protocols.choose("fold", 5000)
    assert len(protocols.choose("fold5", 60, fold=12)[0]) == 5


@pytest.mark.parametrize("case", ["random", "cosine", "order"])
def test_metrics_of_the_original_evaluator(case):
    golden = np.load(GOLDEN / "vsepp_ranks.npz")
    row = np.arange(300) // 5
    result = result_of([(*ranks(golden[f"{case}/score"], np.arange(60)[:, None] == row), row)], draws=0)
    for way, got in (("i2t", result.i2t), ("t2i", result.t2i)):
        want = [golden[f"{case}/{way}/{name}"] for name in ("r1", "r5", "r10", "medr", "meanr")]
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert result.rsum == pytest.approx(sum(result.i2t[:3]) + sum(result.t2i[:3])) and result.mr == result.rsum / 6
    assert (result.images, result.captions, len(result.folds)) == (60, 300, 1)


def test_fold_metrics_of_the_original_evaluator():
    golden = np.load(GOLDEN / "vsepp_ranks.npz")
    scores, row = golden["cosine/score"], np.arange(300) // 5
    results = []
    for fold in protocols.choose("fold5", 60, fold=12)[0]:
        inside = np.isin(row, fold)
        local = row[inside] - fold[0]
        results.append((*ranks(scores[fold][:, inside], np.arange(12)[:, None] == local), local))
    result = result_of(results)
    np.testing.assert_allclose([[*i2t, *t2i] for i2t, t2i in result.folds], golden["cosine/fold_metrics"], rtol=1e-6)
    np.testing.assert_allclose([*result.i2t, *result.t2i], golden["cosine/fold_mean"], rtol=1e-6)
    low, high = result.interval["rsum"]
    assert low < result.rsum < high


def test_half_integer_medians_are_rounded_down():
    assert table.recall(np.array([0, 1, 2, 3]))[3:] == (2.0, 2.5)
    assert table.recall(np.array([0, 4, 5, 10]))[:3] == (25.0, 50.0, 75.0)


@pytest.mark.parametrize("number", [[1], [5] * 6, [1, 4, 2, 7, 3], [2, 30]])
def test_chance_is_the_mean_over_random_rankings(number):
    random = np.random.default_rng(0)
    number = np.array(number)
    draws = [ranked(random, number, strength=0.0) for _ in range(1000)]
    for way, expected in enumerate(table.chance(number)):
        everything = np.concatenate([draw[way] for draw in draws])
        got = table.recall(everything)
        np.testing.assert_allclose(got[:3], expected[:3], atol=2.5)
        assert got.meanr == pytest.approx(expected.meanr, rel=0.03)
        assert abs(got.medr - expected.medr) <= 1
    assert table.chance(np.array([1, 1]))[0].medr == 1  # the median of ranks 0 and 1 is a half
    i2t, t2i = table.chance(np.full(100, 5))
    assert t2i == (pytest.approx(1), pytest.approx(5), pytest.approx(10), 50, 50.5)
    assert i2t.r1 == pytest.approx(1) and i2t.r10 == pytest.approx(100 * (1 - np.prod(1 - 5 / np.arange(500, 490, -1))))


def test_bootstrap_intervals_hold_the_estimate_and_shrink():
    random = np.random.default_rng(0)
    widths = []
    for n_images in (50, 800):
        result = result_of([ranked(random, random.integers(1, 8, n_images))], draws=400)
        points = dict(zip(result.interval, [*result.i2t[:3], *result.t2i[:3], result.rsum, result.mr], strict=True))
        for name, (low, high) in result.interval.items():
            assert low <= points[name] <= high, name
        widths.append(np.diff(result.interval["rsum"])[0])
    assert 0.15 < widths[1] / widths[0] < 0.4  # by a factor of about four for 16 times the images


def test_bootstrap_is_repeatable_and_covers():
    random = np.random.default_rng(1)
    result = ranked(random, [5] * 200)
    assert result_of([result], draws=50).interval == result_of([result], draws=50).interval
    assert result_of([result], draws=50).interval != result_of([result], draws=50, seed=1).interval
    assert result_of([result], draws=0).interval == {}
    # R@1 i2t of 200 images is binomial: the interval must be as wide as the textbook's
    low, high = result_of([result], draws=2000).interval["i2t.r1"]
    share = table.recall(result[0]).r1 / 100
    assert (high - low) / 100 == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 200), rel=0.1)


def test_captions_of_an_image_are_drawn_together():
    """Five identical captions an image carry no more information than one."""
    random = np.random.default_rng(2)
    i2t, t2i, row = ranked(random, [1] * 150, strength=1.0)
    interval = result_of([(i2t, t2i, row)]).interval["t2i.r5"]
    five = result_of([(i2t, t2i.repeat(5), row.repeat(5))]).interval["t2i.r5"]
    assert five == pytest.approx(interval)


def test_recall_of_a_draw_is_over_the_captions_drawn():
    number = np.arange(1, 21)
    row = np.repeat(np.arange(20), number)
    result = result_of([(np.zeros(20, int), np.zeros(len(row), int), row)], draws=50)
    assert all(pair == pytest.approx((100, 100)) for name, pair in result.interval.items() if "." in name)


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_output_states_what_was_measured(capsys, weights):
    random = np.random.default_rng(3)
    why = protocols.choose("auto", 60)[1]
    result = table.make_table([ranked(random, [3] * 60)], protocol=why, weights=weights, draws=100)
    table.to_screen(result, title="vsepp on planted test", chance=True)
    screen = capsys.readouterr().out
    markdown = table.to_markdown(result, title="vsepp on planted test", chance=True)
    for text in (screen, markdown):
        for part in (
            "vsepp on planted test",
            "60 images, 180 captions",
            why,
            f"{weights} weights",
            table.TIES,
            "chance",
        ):
            assert part in text
        for number in (*result.i2t[:3], *result.t2i[:3], result.rsum, result.mr, result.interval["rsum"][1]):
            assert f"{number:.1f}" in text
    assert "chance" not in table.to_markdown(result, title="")
    lines = [line for line in markdown.split("\n") if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    read = json.loads(json.dumps(table.to_json(result), allow_nan=False))
    assert read["i2t"]["r1"] == result.i2t.r1 and read["weights"] == weights and read["protocol"] == why
    assert read["interval_95"]["rsum"] == list(result.interval["rsum"])


def test_a_row_for_a_paper():
    result = table.make_table([ranked(np.random.default_rng(3), [3] * 60)], protocol="full", weights="raw", draws=0)
    comment, row = table.to_latex(result, name=r"vse_1 & 50% #2 \x")
    assert comment.startswith("% image to text") and "60 images, 180 captions; full" in comment
    figures = [*result.i2t[:3], *result.t2i[:3], result.rsum]
    name = r"vse\_1 \& 50\% \#2 \textbackslash{}x"
    assert row == " & ".join([name, *(f"{figure:.1f}" for figure in figures)]) + r" \\"


def test_folds_are_listed_before_their_mean(capsys):
    random = np.random.default_rng(4)
    result = result_of([ranked(random, [2] * 30) for _ in range(5)], draws=0)
    table.to_screen(result, title="x")
    labels = [line.split("  ")[0] for line in capsys.readouterr().out.split("\n")[5:-1]]
    assert labels == [f"fold {i}" for i in range(1, 6)] + ["mean"]
    assert result.i2t.medr == np.mean([fold.medr for fold, _ in result.folds])
    assert (result.images, result.captions) == (150, 300)
