"""Galleries that are damaged, or name what is none of theirs, are refused in one sentence."""

import json
import shutil

import numpy as np
import pytest
from helpers import damages, resealed
from test_gallery import data, indexed, scan, scan_gallery  # noqa: F401  (fixtures)

from xmodal_jax.errors import CheckpointError, DataError
from xmodal_jax.inference.gallery import Gallery


def test_one_flipped_bit_is_named(scan_gallery, tmp_path):  # noqa: F811
    copy = tmp_path / "g"
    shutil.copytree(scan_gallery, copy)
    names = [*json.loads((copy / "manifest.json").read_text())["files"], "manifest.json"]
    assert "bundle/parameters.safetensors" in names
    assert "images/region.feature.npy" in names
    for name in names:
        raw = (copy / name).read_bytes()
        place = len(raw) // 2
        (copy / name).write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            Gallery(copy)
        (copy / name).write_bytes(raw)
    Gallery(copy)


@pytest.mark.slow
def test_no_damage_goes_unseen(scan_gallery, tmp_path):  # noqa: F811
    copy = tmp_path / "copy"
    shutil.copytree(scan_gallery, copy)
    for damage in damages(copy, flips=1000, cuts=200):
        try:
            Gallery(copy)
        except CheckpointError:
            continue
        pytest.fail(f"{damage}: not seen")
    Gallery(copy)


def test_without_hashes_shapes_are_held_against_the_counts(scan_gallery, tmp_path):  # noqa: F811
    copy = tmp_path / "g"
    shutil.copytree(scan_gallery, copy)
    np.save(copy / "images" / "gram.npy", np.zeros((3, 2, 2), np.float16))
    with pytest.raises(CheckpointError, match=r"gram\.npy has 3 rows, not 21"):
        Gallery(copy, verify=False)
    (copy / "images" / "gram.npy").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"gram\.npy cannot be read"):
        Gallery(copy, verify=False)
    shutil.copy(scan_gallery / "images" / "gram.npy", copy / "images" / "gram.npy")
    (copy / "images.jsonl").write_text('{"id": "x", "captions": [], "picture": null, "size": [0, 0]}\n')
    with pytest.raises(CheckpointError, match=r"images\.jsonl has 1 lines, not 21"):
        Gallery(copy, verify=False)
    with pytest.raises(CheckpointError, match="not an xmodal_jax gallery"):
        Gallery(tmp_path)


def with_pictures(gallery, copy, picture):
    """The gallery again, its first image with a picture at this path."""
    return resealed(gallery, copy, lambda _, lines: lines[0].update(picture=picture))


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.png", "images/../../secret.png"])
def test_a_picture_outside_the_data_is_refused(scan_gallery, tmp_path, path):  # noqa: F811
    with pytest.raises(DataError, match=r'picture of image "test-0" lies outside'):
        Gallery(with_pictures(scan_gallery, tmp_path / "g", path))


def test_a_link_out_of_the_data_is_refused(scan_gallery, tmp_path):  # noqa: F811
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to("/etc/passwd")
    g = Gallery(with_pictures(scan_gallery, tmp_path / "g", "link.png"), pictures=tmp_path / "data")
    with pytest.raises(DataError, match="lies outside"):
        g.picture(0)
    assert g.picture(1) is None
    sound = Gallery(with_pictures(scan_gallery, tmp_path / "h", "images/a.png"), pictures=tmp_path / "data")
    assert sound.picture(0) == (tmp_path / "data" / "images" / "a.png").resolve()


@pytest.mark.parametrize(
    "line", ['{"id": "x"}', "[1]", '{"id": "x", "captions": [99], "picture": null, "size": [0, 0]}']
)
def test_lines_that_mean_nothing_are_refused(scan_gallery, tmp_path, line):  # noqa: F811
    copy = tmp_path / "g"
    shutil.copytree(scan_gallery, copy)
    lines = (copy / "images.jsonl").read_text().splitlines()
    (copy / "images.jsonl").write_text("\n".join([*lines[:-1], line]) + "\n")
    with pytest.raises(CheckpointError, match=r"images\.jsonl does not fit"):
        Gallery(copy, verify=False)
