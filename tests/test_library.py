"""The package as a library: what it shows of itself, and the recall table of anybody's arrays."""

import json
import pydoc
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import xmodal_jax
from xmodal_jax import cli
from xmodal_jax.errors import DataError, NumericError


def test_the_package_shows_what_there_is():
    assert set(xmodal_jax.__all__) <= set(dir(xmodal_jax)) and "__version__" in dir(xmodal_jax)
    for name in xmodal_jax.__all__:
        assert getattr(xmodal_jax, name).__name__.rpartition(".")[2] == name
    shown = pydoc.plain(pydoc.render_doc(xmodal_jax))
    for line in ("class Gallery", "class Searcher", "load(", "ranks(", "recall(", "losses", "similarity"):
        assert line in shown, line
    assert not hasattr(xmodal_jax, "nothing")
    assert (Path(xmodal_jax.__file__).parent / "py.typed").is_file()


def test_importing_it_imports_nothing_heavy():
    code = "import sys, xmodal_jax; dir(xmodal_jax); print(sorted({'jax', 'numpy', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def arrays(seed=0, images=30, width=6):
    random = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(images), random.integers(0, images, 25)])
    random.shuffle(owner)
    image = random.normal(size=(images, width)).astype(np.float32)
    text = (image[owner] + random.normal(size=(len(owner), width))).astype(np.float32)
    return image, text, owner


def oracle(scores, owner):
    """R@1, R@5, R@10 both ways, by sorting: scores without ties."""
    found = []
    for query in range(scores.shape[0]):
        found.append(np.flatnonzero(owner[np.argsort(-scores[query])] == query)[0])
    other = [np.flatnonzero(np.argsort(-scores[:, c]) == owner[c])[0] for c in range(scores.shape[1])]
    return [100 * np.mean(np.array(way) < cut) for way in (found, other) for cut in (1, 5, 10)]


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray, lambda x: jnp.asarray(x, "bfloat16"), np.ndarray.tolist])
def test_recall_of_arrays_equals_a_sort(make):
    image, text, owner = arrays()
    image, text = make(image), make(text)
    scores = np.asarray(image, np.float32) @ np.asarray(text, np.float32).T
    table = xmodal_jax.recall(image, text, owner)
    np.testing.assert_allclose([*table.i2t[:3], *table.t2i[:3]], oracle(scores, owner))
    assert (table.images, table.captions, table.rsum) == (30, 55, pytest.approx(sum(oracle(scores, owner))))
    again = xmodal_jax.recall(scores, None, owner.tolist())
    assert (again.i2t, again.t2i) == (table.i2t, table.t2i)
    lines = str(table).splitlines()
    assert f"{table.i2t.r1:.1f}" in str(table) and lines[-1].startswith("chance")


def test_equal_captions_are_told_by_their_texts():
    image, text = np.eye(4)[[0, 0, 1, 1]], np.eye(4)[[0, 0, 1, 1]]
    words = ["A hat", "a  hat", "shoes", "shoes"]
    assert xmodal_jax.recall(image, text, range(4)).i2t.r1 == 0
    result = xmodal_jax.recall(image, text, range(4), captions=words, shared=True)
    assert (result.i2t.r1, result.t2i.r1, result.duplicates.equal) == (100, 100, 4)


IMAGE, TEXT, OWNER = arrays()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((IMAGE[0], TEXT, OWNER), r"image embeddings are a matrix of numbers.* \[6\]"),
        ((IMAGE, TEXT[:, :5], OWNER), r"\[30, 6\], text embeddings \[55, 5\]: their widths differ"),
        ((IMAGE, TEXT, OWNER[1:]), r"image of each of the 55 captions"),
        ((IMAGE, TEXT, OWNER / 2), r"as a whole number"),
        ((IMAGE, TEXT, OWNER + 1), r"belongs to image 30, but there are images 0 to 29"),
        ((IMAGE, TEXT, OWNER - 1), r"belongs to image -1"),
        ((IMAGE, TEXT, np.zeros(55, int)), r"29 of 30 images have no matching caption"),
        ((IMAGE, np.full((55, 6), "a"), OWNER), r"text embeddings are a matrix of numbers"),
        ((np.zeros((0, 6)), TEXT[:0], OWNER[:0]), r"Nothing can be ranked"),
        ((IMAGE, None, OWNER), r"each of the 6 captions"),
    ],
)
def test_arrays_that_do_not_go_together_are_one_sentence(given, says):
    with pytest.raises(DataError, match=says):
        xmodal_jax.recall(*given)


def test_other_faults_are_named():
    with pytest.raises(NumericError, match="not finite"):
        xmodal_jax.recall(np.where(IMAGE > 2, np.nan, IMAGE), TEXT, OWNER)
    with pytest.raises(DataError, match="2 caption texts for 55"):
        xmodal_jax.recall(IMAGE, TEXT, OWNER, captions=["a", "b"])
    with pytest.raises(DataError, match="give them as captions"):
        xmodal_jax.recall(IMAGE, TEXT, OWNER, shared=True)


def test_from_the_shell(tmp_path, capsys):
    files = [tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "m.json"]
    for path, array in zip(files, (IMAGE, TEXT), strict=False):
        np.save(path, array)
    files[2].write_text(json.dumps(OWNER.tolist()))
    argv = ["eval", "--embeddings", str(files[0]), str(files[1]), "--map", str(files[2])]
    assert cli.run([*argv, "--json", str(tmp_path / "out.json")]) == 0
    want = xmodal_jax.recall(IMAGE, TEXT, OWNER)
    assert "\nchance" in capsys.readouterr().out
    assert cli.run([*argv, "--latex"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"a, b & {want.i2t.r1:.1f} & ")
    assert json.loads((tmp_path / "out.json").read_text())["rsum"] == want.rsum

    def refused(words, code, says):
        assert cli.run(words) == code
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error

    refused(argv[:-2], 2, "--embeddings needs --map")
    refused([*argv, "--step", "3"], 2, "leave out --step")
    refused([*argv[:-1], str(files[0])], 3, "cannot be read as JSON")
    refused([*argv[:2], str(files[2]), *argv[3:]], 3, "cannot be read as a .npy array")
    refused([*argv[:2], str(tmp_path / "no.npy"), *argv[3:]], 3, "No such file")
    files[2].write_text("[0.5]")
    refused(argv, 3, "no list of whole numbers")
    refused(["eval", "--workdir", "x", "--map", "m"], 2, "--map is for --embeddings")
    with pytest.raises(SystemExit):
        cli.run(["eval", "--workdir", "x", *argv[1:]])
