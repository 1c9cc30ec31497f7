"""Bundles, galleries and checkpoints from strangers: they only compute, show no other folder and stay small."""

import json
import resource
import shutil
import struct
import tracemalloc
import zipfile
from types import SimpleNamespace
from typing import Any

import galleries
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
from helpers import resealed
from jax import export
from PIL import Image
from safetensors.numpy import save_file

import xmodal_jax
from xmodal_jax import cli, digest
from xmodal_jax.baselines.text_features import load_text_model
from xmodal_jax.data import records
from xmodal_jax.errors import CheckpointError, DataError, UsageError
from xmodal_jax.evaluation.embeddings import load_array
from xmodal_jax.inference import layout, screening
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.text import vocabulary
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.torch_files import pth


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strangers")
    galleries.gallery(folder, count=4)
    return folder


# Exported functions


def smuggled(folder, copy, function):
    """The bundle as ``copy``, the function that embeds images another one, and sealed again."""
    shutil.copytree(folder / "bundle", copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    feature, mask = jax.ShapeDtypeStruct((4, 10, 158), np.float32), jax.ShapeDtypeStruct((4, 10), bool)
    every = [export.DisabledSafetyCheck.custom_call(name) for name in ("stranger", "shape_assertion")]
    make = export.export(jax.jit(function), platforms=["cpu"], disabled_checks=every)
    exported = make([], {"region": feature}, mask)
    (copy / "encode_image.stablehlo").write_bytes(exported.serialize())
    manifest["functions"]["encode_image"]["parameters"] = []
    layout.seal(copy, manifest)
    return copy


def embed(bundle):
    return xmodal_jax.load(bundle).embed_images(np.ones((3, 10, 158), np.float32))


def test_a_custom_call_is_refused_and_not_run(folder, tmp_path):
    def stranger(_, feature, mask):
        call = jax.ffi.ffi_call("stranger", jax.ShapeDtypeStruct((4, 2), np.float32))
        return jax.lax.cond(mask.all(), lambda: call(feature["region"]), lambda: jnp.zeros((4, 2)))

    with pytest.raises(CheckpointError, match=r"encode_image\.stablehlo is refused and was not run: .*'stranger'"):
        embed(smuggled(folder, tmp_path / "b", stranger))


def test_what_jax_calls_itself_is_refused_too(folder, tmp_path):
    def solve(_, feature, mask):
        return jax.scipy.linalg.lu_factor(feature["region"][:, :, :10])[0]

    with pytest.raises(CheckpointError, match="custom call 'lapack_"):
        embed(smuggled(folder, tmp_path / "b", solve))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            '%0 = "stablehlo.create_token"() : () -> !stablehlo.token\n'
            '%1 = "stablehlo.outfeed"(%x, %0) : (tensor<2xf32>, !stablehlo.token) -> !stablehlo.token',
            "outfeed",
        ),
        ('%0 = "stablehlo.custom_call"(%x) <{call_target_name = "a"}> : (tensor<2xf32>) -> tensor<2xf32>', "call 'a'"),
        ("%0 = arith.constant 1 : i32", "operation 'arith.constant'"),
    ],
)
def test_operations_that_do_more_than_compute(line, says, tmp_path):
    text = f"module {{ func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> {{\n{line}\nreturn %x : tensor<2xf32> }} }}"
    exported: Any = SimpleNamespace(mlir_module=lambda: text)
    with pytest.raises(CheckpointError, match=says):
        screening.screen(exported, tmp_path / "f.stablehlo")
    exported.mlir_module = lambda: text.replace(line, "%0 = stablehlo.add %x, %x : tensor<2xf32>")
    screening.screen(exported, tmp_path / "f.stablehlo")


def test_a_function_that_is_not_what_its_manifest_says_is_one_sentence(folder, tmp_path):
    bundle = smuggled(folder, tmp_path / "b", lambda _, feature, mask: feature["region"][:, 0])
    with pytest.raises(CheckpointError, match=r"encode_image\.stablehlo does not take what its manifest says"):
        xmodal_jax.load(bundle).embed_images(np.ones((30, 10, 158), np.float32))


def test_a_manifest_that_lacks_something_is_one_sentence(folder, tmp_path):
    sound = json.loads((folder / "bundle" / "manifest.json").read_text())
    changes = [{key: None} for key in ("files", "lengths", "features", "regions", "text", "functions", "made_with")]
    for number, change in enumerate([*changes, {"lengths": []}, {"regions": 1 << 40}, {"files": {"config.json": 3}}]):
        copy = tmp_path / str(number)
        shutil.copytree(folder / "bundle", copy)
        broken = {key: value for key, value in {**sound, **change}.items() if value is not None}
        broken["sha256"] = layout.digest(broken)
        (copy / "manifest.json").write_text(json.dumps(broken))
        with pytest.raises(CheckpointError, match="the manifest does not fit the files"):
            xmodal_jax.load(copy)
    gallery = tmp_path / "gallery"
    shutil.copytree(folder / "gallery", gallery)
    sound = json.loads((gallery / "manifest.json").read_text())
    for key in ("files", "counts", "leaves", "dot", "data"):
        broken = {name: value for name, value in sound.items() if name != key}
        broken["sha256"] = layout.digest(broken)
        (gallery / "manifest.json").write_text(json.dumps(broken))
        with pytest.raises(CheckpointError, match="the manifest does not fit the files"):
            Gallery(gallery)


# Folders


def test_a_gallery_shows_no_folder_but_its_data_set(folder, tmp_path, capsys):
    private = tmp_path / "private"
    private.mkdir()
    Image.new("RGB", (8, 8)).save(private / "holiday.png")

    def point(manifest, lines):
        manifest["data"]["folder"] = str(private)
        lines[0]["picture"] = "holiday.png"

    crafted = resealed(folder / "gallery", tmp_path / "crafted", point)
    gallery = Gallery(crafted)
    assert gallery.picture(0) is None
    assert gallery.note is not None and "name its folder with --pictures" in gallery.note
    assert cli.run(["search", str(crafted), "a red square", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "holiday" not in out
    assert err == f"{gallery.note}\n"
    assert cli.run(["search", str(crafted), "a red square", "--json", "--pictures", str(private)]) == 0
    assert str(private / "holiday.png") in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"--pictures .* is not a folder"):
        Gallery(crafted, pictures=tmp_path / "nowhere")


def test_its_own_data_set_is_known_by_its_manifest(folder, tmp_path):
    gallery = Gallery(folder / "gallery")
    assert gallery.note is None
    picture = gallery.picture(0)
    assert picture is not None and picture.is_file()
    other = galleries.data(tmp_path / "other", count=4, seed=3)
    inside = tmp_path / "inside"

    def naming(path):
        return lambda manifest, _: manifest["data"].update(folder=str(path))

    assert Gallery(resealed(folder / "gallery", tmp_path / "a", naming(other))).picture(0) is None
    assert Gallery(resealed(folder / "gallery", inside, naming(inside / "pictures"))).picture(0) is not None


def test_features_are_not_read_from_a_data_set_that_a_gallery_brings(folder, tmp_path, monkeypatch):
    features, mask = Gallery(folder / "gallery").features(0)
    assert features["region"].shape[:2] == mask.shape and mask.any()
    inside = tmp_path / "inside"

    def naming(path):
        return lambda manifest, _: manifest["data"].update(folder=str(path))

    brings = resealed(folder / "gallery", inside, naming(inside / "data"))
    shutil.copytree(folder / "data", inside / "data")
    beside = resealed(folder / "gallery", tmp_path / "beside", naming("data"))  # relative to where one happens to be
    monkeypatch.chdir(folder)
    for path in (brings, beside):
        gallery = Gallery(path)
        assert gallery.folder is not None and gallery.picture(0) is not None
        with pytest.raises(DataError, match="name the folder with --pictures"):
            gallery.features(0)
        np.testing.assert_array_equal(Gallery(path, pictures=folder / "data").features(0)[1], mask)


# Sizes


def test_views_that_unfold_are_refused_by_child_and_parent(tmp_path):
    count = 40_000
    storage = torch_files.storage("0", count)
    views = {f"t{n}": torch_files.tensor((200 - n, 200), (1, 1), 0, storage) for n in range(50)}
    path = tmp_path / "model.pth.tar"
    path.write_bytes(torch_files.zipped({"model": views}, {"0": struct.pack("<f", 1.0) * count}))
    with pytest.raises(CheckpointError, match="they have more numbers than the file"):
        pth.read(path)
    np.arange(400, dtype="<f4").tofile(tmp_path / "tensors")
    listing = [["f4", 399, [200, 200], [1, 1]]] * 10_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="larger together than the file allows"):
        pth.tensors(tmp_path / "tensors", listing, 200_000)
    with pytest.raises(ValueError, match="larger together than the file allows"):
        pth.tensors(tmp_path / "tensors", [["f4", 1 << 40, [1 << 40], [1]]], 200_000)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_names_of_a_checkpoint_do_not_reach_the_terminal_as_they_are():
    from xmodal_jax.convert import flow

    with pytest.raises(CheckpointError) as caught:
        flow.check_names({"bad\x1b[2J": np.zeros(1)}, {}, "none")
    assert "\x1b" not in str(caught.value)


def test_json_that_is_too_large_is_not_parsed(folder, tmp_path, monkeypatch):
    copy = tmp_path / "b"
    shutil.copytree(folder / "bundle", copy)
    monkeypatch.setattr(layout, "JSON", 500)
    with pytest.raises(CheckpointError, match=r"manifest\.json has more than 500 bytes"):
        xmodal_jax.load(copy)
    monkeypatch.undo()
    monkeypatch.setattr(vocabulary, "LARGEST", 50)
    with pytest.raises(CheckpointError, match="it has more than 50 bytes"):
        Vocabulary.load(copy / "vocabulary.json")


@pytest.mark.parametrize("more", [{"junk": [[]] * 9}, {"size": [1]}, {"size": ["8", 8]}])
def test_of_a_line_only_what_is_known_is_kept(folder, tmp_path, more, monkeypatch):
    crafted = resealed(folder / "gallery", tmp_path / "g", lambda _, lines: lines[0].update(more))
    if "junk" in more:
        assert "junk" not in Gallery(crafted).images.lines[0]
        monkeypatch.setattr("xmodal_jax.inference.gallery.LINE", 60)
        with pytest.raises(CheckpointError, match="line 1 is longer than 60 bytes"):
            Gallery(crafted)
    else:
        with pytest.raises(CheckpointError, match=r"images\.jsonl does not fit"):
            Gallery(crafted)


def test_a_text_model_that_unfolds_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.npy", b"\0" * 1_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="its arrays are compressed"):
        load_text_model(tmp_path / "bomb.npz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# Data sets


def sealed_again(data):
    """The data set with the hashes of what its files are now, as a stranger makes them."""
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["files"] = records.hash_files(data)
    (data / "manifest.json").write_text(json.dumps(digest.sealed(manifest)))
    return records.open_dataset(data).split("test")


@pytest.mark.parametrize(
    "line",
    [
        "[" * 99_999,
        "null",
        "[1]",
        '{"id": "a"}',
        '{"id": 7, "captions": ["a"], "size": [1, 1], "picture": null}',
        '{"id": "a", "captions": "a dog", "size": [1, 1], "picture": null}',
        '{"id": "a", "captions": ["a", null], "size": [1, 1], "picture": null}',
        '{"id": "a", "captions": ["\\ud800"], "size": [1, 1], "picture": null}',
        '{"id": "a", "captions": ["a"], "size": [1, 4611686018427387904], "picture": null}',
        '{"id": "a", "captions": ["a"], "size": [1, 1e999], "picture": null}',
        '{"id": "a", "captions": ["a"], "size": [1, 1], "picture": "../../private.png"}',
        '{"id": "a", "captions": ["a"], "size": [1, 1], "picture": "/private.png"}',
    ],
    ids=range(12),
)
def test_a_line_of_captions_that_is_something_else_is_one_sentence(folder, tmp_path, line):
    data = shutil.copytree(folder / "data", tmp_path / "data")
    path = data / "test.captions.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    split = sealed_again(data)
    with pytest.raises(DataError, match=r"test\.captions\.jsonl line 2 is not that of an image"):
        _ = split.captions
    path.write_text("\n".join(lines[1:]) + "\n")
    split = sealed_again(data)
    with pytest.raises(DataError, match=r"has 3 images, the manifest says 4"):
        _ = split.ids


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *((part, None) for part in ("name", "source", "boxes", "features", "splits", "files")),
        *((part, []) for part in ("name", "source", "boxes", "features", "splits", "files", "text_features")),
        ("splits", {"test": {"images": -1, "captions": 1, "pictures": 0}}),
        ("splits", {"../test": {"images": 1, "captions": 1, "pictures": 0}}),
        ("features", {"region": {"dtype": "object", "shape": [8]}}),
        ("features", {"region": {"dtype": "float32", "shape": [1 << 40]}}),
        ("features", {"region": {"dtype": "float32", "shape": [None, 8], "regions": [5, 3]}}),
        ("files", {"../../private": {"bytes": 1, "sha256": ""}}),
        ("files", {"/etc/passwd": {"bytes": 1, "sha256": ""}}),
        ("text_features", {"../x": {"shape": [8]}}),
    ],
)
def test_a_manifest_of_data_that_does_not_fit_is_one_sentence(folder, tmp_path, part, value):
    manifest = {**json.loads((folder / "data" / "manifest.json").read_text()), part: value}
    if value is None:
        del manifest[part]
    (tmp_path / "manifest.json").write_text(json.dumps(digest.sealed(manifest)))
    with pytest.raises(DataError, match=f'does not describe a data set \\("{part}" is missing or of another form'):
        records.open_dataset(tmp_path)


# Arrays


def test_arrays_that_lie_in_bundles_stores_and_embeddings_are_one_sentence(folder, tmp_path, capsys):
    bundle = shutil.copytree(folder / "bundle", tmp_path / "b")
    save_file({"other": np.zeros(3, np.float32)}, bundle / "parameters.safetensors")
    layout.seal(bundle, json.loads((bundle / "manifest.json").read_text()))
    with pytest.raises(CheckpointError, match=r"parameters\.safetensors lacks params/"):
        embed(bundle)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 8), }\n"
    negative = tmp_path / "negative.npy"
    negative.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(128))
    with pytest.raises(DataError, match=r"cannot be read as a \.npy array"):
        load_array(negative)
    with zipfile.ZipFile(tmp_path / "no.npz", "w") as archive:
        archive.writestr("a.npy", b"no array")
    table = tmp_path / "t.csv"
    table.write_text("image,caption\na,a red dog\n")
    argv = ["data", "import", "csv", table, "--out", tmp_path / "out", "--features", tmp_path / "no.npz"]
    assert cli.run([*map(str, argv), "--image-col", "image", "--caption-col", "caption"]) == 3
    assert 'its array "a' in capsys.readouterr().err

    def nul(_, lines):
        lines[0]["picture"] = "a\0b"

    with pytest.raises(DataError, match="lies outside its data set"):
        Gallery(resealed(folder / "gallery", tmp_path / "g", nul))
