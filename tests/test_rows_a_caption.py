"""Arrays with a row a caption: copies of one picture's features become one image, or the import stops."""

import json

import numpy as np
import pytest
from importing import refused, run

from xmodal_jax.data.sources.common import Report
from xmodal_jax.data.sources.copies import captions_an_image
from xmodal_jax.errors import DataError

RAGGED = [5, 7, 5, 6, 5, 5, 6, 7]


def features(images, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(images, 3, 8)).astype(dtype)


def make_split(folder, counts, rows):
    """`train` of the precomp layout with ``counts`` captions an image, which name their image."""
    folder.mkdir()
    np.save(folder / "train_ims.npy", rows)
    lines = [f"caption {turn} of {image}\n" for image, count in enumerate(counts) for turn in range(count)]
    (folder / "train_caps.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("noise", [0, 1e-6])
@pytest.mark.parametrize("counts", [[5] * 8, RAGGED])
def test_runs_of_copies_are_pictures(tmp_path, counts, noise, dtype, capsys):
    single = features(8)
    rows = np.repeat(single, counts, 0)
    rows = (rows + noise * np.random.default_rng(1).normal(size=rows.shape)).astype(dtype)
    split = run("precomp", make_split(tmp_path / "src", counts, rows), tmp_path).split("train")
    assert [len(captions) for captions in split.captions] == counts
    assert all(caption.endswith(f"of {image}") for image, texts in enumerate(split.captions) for caption in texts)
    for item, want in zip(split.read(range(8)), single, strict=True):
        np.testing.assert_allclose(item.features["region"], want, rtol=2e-3, atol=1e-3)
    said = capsys.readouterr().out
    assert f"runs of {min(counts)}{' to 7' if counts == RAGGED else ''} equal neighbouring rows are one image" in said
    assert ("differ by" in said) == bool((rows != np.repeat(single, counts, 0).astype(dtype)).any())


def test_copies_with_noise_and_a_number_of_captions(tmp_path):
    rows = np.repeat(features(8), 5, 0)
    rows += (1e-6 * np.random.default_rng(1).normal(size=rows.shape)).astype(np.float32)
    folder = make_split(tmp_path / "src", [5] * 8, rows)
    assert len(run("precomp", folder, tmp_path, captions_per_image=5).split("train")) == 8
    message = 'image "train_0": rows 0 and 5 should be copies but differ by .*leave it out'
    refused(message, DataError, "precomp", folder, tmp_path / "b", captions_per_image=10)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 1, 2, 1, 1], "1 runs of 2 to 2 equal .* but 4 rows stand alone; give .*_ids.txt .*--captions-per-image 1"),
        ([4], "all 4 rows are equal.*; give"),
        ([2, 4, 2, 4, 6], "runs of 2 to 6 .*may be images of 2 captions that look the same"),
    ],
)
def test_what_is_unclear_is_refused_with_advice_that_helps(tmp_path, counts, message):
    rows = np.repeat(features(len(counts)), counts, 0)
    folder = make_split(tmp_path / "src", counts, rows)
    refused(message, DataError, "precomp", folder, tmp_path)
    assert len(run("precomp", folder, tmp_path / "one", captions_per_image=1).split("train")) == sum(counts)
    ids = "".join(f"{image}\n" * count for image, count in enumerate(counts))
    (folder / "train_ids.txt").write_text(ids)
    split = run("precomp", folder, tmp_path / "ids").split("train")
    assert [len(captions) for captions in split.captions] == counts


def test_rows_that_are_neither_copies_nor_different_are_refused(tmp_path):
    rows = np.repeat(features(4), 5, 0)
    rows[3] *= 1.01
    folder = make_split(tmp_path / "src", [5] * 4, rows)
    refused(r"rows 2 and 3 differ by 1\.\d%, too much for copies", DataError, "precomp", folder, tmp_path)


def test_copies_are_compared_whole(tmp_path):
    rows = np.zeros((4, 5000), np.float32)
    rows[:2, 0], rows[2:, 0], rows[1, 4999] = 1, 2, 1  # the second row is no copy, which its first numbers hide
    folder = make_split(tmp_path / "src", [2, 2], rows)
    refused("rows 0 and 1 should be copies.*train_ids.txt", DataError, "precomp", folder, tmp_path)


def test_ids_that_fit_neither_rows_nor_captions_are_refused(tmp_path):
    folder = make_split(tmp_path / "src", [5] * 4, features(10))
    (folder / "train_ids.txt").write_text("".join(f"{image}\n" * 5 for image in range(4)))
    refused("10 images, but _ids.txt has 20 lines.* 4 runs", DataError, "precomp", folder, tmp_path)


def test_two_pictures_that_look_the_same_do_not_hide_the_pattern():
    single = features(4)
    single[1] = single[0]
    report = Report()
    assert captions_an_image(np.repeat(single, 5, 0), "dev", report) == [5] * 4
    assert "in 1 places the next image looks the same" in report.notes[0]


def test_a_row_a_caption_in_the_other_importers(tmp_path):
    counts = [2, 3, 1, 4]
    single = features(4)
    images = [
        {"filename": f"{n}.jpg", "split": "train", "sentences": [{"raw": f"{turn} of {n}"} for turn in range(count)]}
        for n, count in enumerate(counts)
    ]
    (tmp_path / "dataset_own.json").write_text(json.dumps({"images": images}))
    lines = [(n, turn) for n, count in enumerate(counts) for turn in range(count)]
    mixed = sorted(lines, key=lambda line: line[1])  # captions of an image need not be neighbours in a table
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{n}.jpg,{turn} of {n}\n" for n, turn in mixed))
    path = tmp_path / "f.npy"
    for kind, source, order in (("karpathy", "dataset_own.json", lines), ("csv", "t.csv", mixed)):
        np.save(path, np.stack([single[n] for n, _ in order]))
        split = run(kind, tmp_path / source, tmp_path / kind, features=[str(path)]).split("train")
        assert {item.id: len(item.captions) for item in split.read(range(4))} == dict(
            zip([f"{n}.jpg" for n in range(4)], counts, strict=True)
        )
        for item in split.read(range(4)):
            np.testing.assert_array_equal(item.features["region"], single[int(item.id[0])])
        np.save(path, np.load(path)[::-1])
        message = "should be copies.*give --ids"
        refused(message, DataError, kind, tmp_path / source, tmp_path / "b", features=[str(path)])
