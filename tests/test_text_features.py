"""`xmodal data text-features`: what is written, what it is fitted to, how it goes on, and that nothing else changes."""

import numpy as np
import pytest
from helpers import WORDS, planted

from xmodal_jax import cli
from xmodal_jax.baselines import text_features
from xmodal_jax.baselines.text_features import load_text_model
from xmodal_jax.data import records, writer
from xmodal_jax.data.check import check
from xmodal_jax.data.records import Item, open_dataset
from xmodal_jax.errors import DataError

KINDS = {  # options that no other one repeats
    "mean": ["mean", "--whiten", "pca"],
    "tfidf": ["tfidf"],
    "fisher": ["fisher", "--components", "2"],
    "gmm": ["fisher", "--components", "3", "--mixture", "gmm", "--fit", "tokens", "--pca", "7", "--seed", "2"],
}
WIDTH = {"mean": 5, "tfidf": 16, "fisher": 20, "gmm": 7}
UNKNOWN = "zebra unseen"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(text_features, "BLOCK", 16)


@pytest.fixture
def vectors(tmp_path):
    """Of all planted words and some others, in five dimensions."""
    random = np.random.default_rng(0)
    lines = [" ".join([word, *map("{:.4f}".format, random.normal(size=5))]) for word in (*WORDS, "the", "cat", "owl")]
    (tmp_path / "words.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "words.txt"


def write(folder, **changed):
    """A planted set in which some captions are unknown altogether; ``changed`` replaces the captions of a split."""
    origin = folder.parent / "origin"
    dataset = open_dataset(origin if origin.exists() else planted(origin, train=24, other=8))

    def items(split):
        for number, item in enumerate(split.read(range(len(split)))):
            captions = [*item.captions, UNKNOWN] if number == 3 else item.captions
            yield Item(item.id, changed.get(split.name, captions), {"global": item.features["global"]})

    writer.write(folder, {name: items(dataset.split(name)) for name in dataset.splits}, name="small", source={})
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "set")


def run(kind, folder, vectors, *more):
    options = [] if "tfidf" in KINDS[kind] else ["--vectors", str(vectors)]
    return cli.run(
        ["data", "text-features", KINDS[kind][0], str(folder), *KINDS[kind][1:], *options, "--name", kind, *more]
    )


def contents(folder):
    """Bytes of every file that is not hidden."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(folder, vectors, kind, capsys):
    before = open_dataset(folder)
    assert run(kind, folder, vectors) == 0
    out = capsys.readouterr().out
    assert "1 of them without a known word (zeros)" in out and f'"{kind}", {WIDTH[kind]} numbers a caption' in out
    dataset = open_dataset(folder)
    entry = dataset.manifest["text_features"][kind]
    assert entry["shape"] == [WIDTH[kind]] and entry["dtype"] == "float32" and entry["kind"] == KINDS[kind][0]
    assert entry["fitted_on"] == "train" and entry["missing"] == {"train": 1, "dev": 1, "test": 1}
    assert list(entry["sha256"]) == ([] if kind == "tfidf" else ["words.txt"])
    assert dataset.identity == before.identity == before.manifest["sha256"] != dataset.manifest["sha256"]
    assert check(folder)["verdict"] != "broken" and not list(folder.glob(".text*"))
    model = load_text_model(folder / f"text.{kind}.npz")
    captions: list[str] = []
    for name in dataset.splits:
        split = dataset.split(name)
        captions = text_features.captions_of(split)
        assert split.text_features == [kind]
        rows = split.text_feature(kind)
        assert rows.shape == (len(captions), WIDTH[kind]) and rows.dtype == np.float32 and isinstance(rows, np.memmap)
        unknown = [caption == UNKNOWN for caption in captions]
        assert sum(unknown) == 1 and not rows[unknown].any()
        if "--pca" not in KINDS[kind]:
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), ~np.array(unknown), atol=1e-6)
        for row in (0, 17, len(captions) - 1, unknown.index(True)):
            np.testing.assert_allclose(model.encode([captions[row]])[0], rows[row], atol=1e-6)
    if kind != "tfidf":
        length = 10 if kind == "fisher" else 1  # only the hybrid mixture is on a larger scale
        np.testing.assert_allclose(np.linalg.norm(model.arrays["vectors"], axis=1), length)
    words = captions[0].split()
    np.testing.assert_allclose(*model.encode([" ".join(words), " ".join(reversed([*words, "zebra"]))]), atol=1e-6)
    assert model.encode([]).shape == (0, WIDTH[kind])
    assert run(kind, folder, vectors) == 0 and "nothing to do" in capsys.readouterr().err


def test_several_beside_each_other(folder, vectors, capsys):
    for kind in KINDS:
        assert run(kind, folder, vectors) == 0
    dataset = open_dataset(folder)
    assert dataset.split("dev").text_features == list(KINDS) and records.verify(folder) == []
    assert dataset.identity == open_dataset(write(folder.with_name("fresh"))).manifest["sha256"]
    assert cli.run(["data", "check", str(folder)]) == 0
    assert "text tfidf: 16 float32 (tfidf; without a known word: train 1, dev 1, test 1)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_only_train_is_fitted(folder, vectors, kind):
    """Other dev and test captions change no vector of train, nor what is fitted."""
    other = write(folder.with_name("other"), dev=["the owl", "the cat"], test=["red0 owl owl"])
    for place in (folder, other):
        assert run(kind, place, vectors) == 0
    first, second = (contents(place) for place in (folder, other))
    assert first[f"train.text.{kind}.npy"] == second[f"train.text.{kind}.npy"]
    assert first[f"test.text.{kind}.npy"] != second[f"test.text.{kind}.npy"]
    fitted = [load_text_model(place / f"text.{kind}.npz") for place in (folder, other)]
    for name in fitted[0].arrays:
        if name != "vectors":
            np.testing.assert_array_equal(fitted[0].arrays[name], fitted[1].arrays[name])
    known = {"owl", "cat", "the"} & set(fitted[1].words)
    assert known == (set() if kind == "tfidf" else {"owl", "cat", "the"})  # a vector needs no fitting, an idf does


class Killed(BaseException):
    """Ends the work like a kill: nothing catches it."""


@pytest.mark.parametrize("kind", ["tfidf", "gmm"])
@pytest.mark.parametrize("calls", [1, 3, 7])
def test_killed_and_resumed_gives_equal_bytes(folder, vectors, kind, calls, monkeypatch):
    whole = write(folder.with_name("whole"))
    assert run(kind, whole, vectors) == 0
    before, compute, left = contents(folder), text_features.TextModel.vectors, [calls]

    def dies(self, bags, known):
        left[0] -= 1
        if left[0] < 0 and self.width == WIDTH[kind]:  # not while the PCA is fitted
            raise Killed
        return compute(self, bags, known)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(text_features.TextModel, "vectors", dies)
        run(kind, folder, vectors)
    assert contents(folder) == before and records.verify(folder) == []  # usable as it was
    torn = sorted(folder.glob(".*.npy.partial"), key=lambda path: path.stat().st_mtime_ns)[-1]
    with torn.open("ab") as file:
        file.write(bytes(4 * WIDTH[kind] * 3 + 5))  # three rows and a half of a block that is not whole
    fits = []
    monkeypatch.setattr(text_features, "fit", lambda *_: fits.append(1))
    assert run(kind, folder, vectors) == 0 and not fits  # the model was there
    assert contents(folder) == contents(whole)


def test_killed_between_renaming_and_the_manifest(folder, vectors, monkeypatch):
    def dies(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(text_features.additions, "add_text_features", dies)
        run("fisher", folder, vectors)
    assert not open_dataset(folder).split("train").text_features
    with monkeypatch.context() as patch:
        patch.setattr(text_features.TextModel, "vectors", dies)  # nothing is computed again
        assert run("fisher", folder, vectors) == 0
    assert records.verify(folder) == []
    whole = write(folder.with_name("whole"))
    assert run("fisher", whole, vectors) == 0 and contents(folder) == contents(whole)


def test_two_at_the_same_work(folder, vectors, capsys):
    with text_features.locked(folder / ".text.mean.lock"):
        assert run("mean", folder, vectors) == 3
        assert "Another process is at work" in capsys.readouterr().err
        assert run("tfidf", folder, vectors) == 0
    assert run("mean", folder, vectors) == 0


def test_what_was_begun_otherwise_is_not_taken_up(folder, vectors, monkeypatch, capsys):
    def dies(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(text_features.TextModel, "vectors", dies)
        run("mean", folder, vectors)
    (folder / ".text.mean.npz.partial").unlink()
    (folder / ".train.text.mean.npy.partial").write_bytes(b"of nobody knows which model")
    (folder / ".dev.text.mean.npy.partial").write_bytes(bytes(10**5))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(text_features, "write_split", dies)
        run("mean", folder, vectors)
    assert not list(folder.glob(".*.npy.partial"))
    assert run("mean", folder, vectors, "--seed", "1") == 3
    assert ".text.mean.npz.partial was begun with another options" in capsys.readouterr().err
    vectors.write_text(vectors.read_text().replace("owl", "own"))
    assert run("mean", folder, vectors) == 3 and "another sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("mean DIR", 2, "mean needs word vectors; give --vectors"),
        ("tfidf DIR --vectors V", 2, "tfidf takes no word vectors; leave out --vectors"),
        ("mean DIR --vectors V --components 3", 2, "--components means nothing to mean; leave it out"),
        ("tfidf DIR --whiten ica", 2, "--whiten means nothing to tfidf"),
        ("fisher DIR --vectors V --components 0", 2, "--components must be at least 1, not 0"),
        ("fisher DIR --vectors V --seed -1", 2, "--seed must be at least 0, not -1"),
        ("fisher DIR --vectors V", 3, "A mixture of 30 components needs as many different word vectors, not 16"),
        ("tfidf DIR --pca 17", 2, "17 axes are more than 73 training captions of 16 numbers have"),
        ("tfidf DIR --name a/b", 2, '--name "a/b" cannot name text features'),
        ("mean DIR --vectors nowhere", 3, "nowhere: cannot read word vectors (No such file or directory)"),
        ("mean DIR --vectors DIR/manifest.json", 3, "none of the vocabulary's"),
        ("mean V --vectors V", 3, "no such folder"),
        ("tfidf DIR --missing error", 3, f'No word of the sentence "{UNKNOWN}" is known'),
    ],
)
def test_bad_arguments_are_one_sentence(folder, vectors, capsys, words, code, sentence):
    before = contents(folder)
    args = [word.replace("DIR", str(folder)).replace("V", str(vectors)) for word in words.split()]
    assert cli.run(["data", "text-features", *args]) == code
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error
    assert contents(folder) == before and not list(folder.glob(".*.partial"))


def test_long_fisher_vectors_are_reduced_by_default(folder, vectors, monkeypatch, capsys):
    """Axes are found in a sample, as large as memory allows, and at least twice their number."""
    monkeypatch.setattr(text_features, "PCA_AXES", 8)
    for name, numbers, size in (("large", 20 * 30, 30), ("small", 20, 16), ("whole", 1 << 20, 73)):
        monkeypatch.setattr(text_features, "NUMBERS", numbers)
        assert run("fisher", folder, vectors, "--name", name) == 0
        assert "PCA: 8 of 20 axes hold" in (out := capsys.readouterr().out) and f"of {size} captions" in out
        entry = open_dataset(folder).manifest["text_features"][name]
        assert entry["shape"] == [8] and 0.5 < entry["pca_kept"] < 1
    split = open_dataset(folder).split("train")
    assert run("fisher", folder, vectors, "--name", "full", "--pca", "0") == 0
    full, reduced = open_dataset(folder).split("train").text_feature("full"), split.text_feature("whole")
    known = np.linalg.norm(full, axis=1) > 0
    centred = full - full.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:8]
    np.testing.assert_allclose(np.abs(reduced[known]), np.abs(centred[known] @ axes.T), atol=1e-3)


def test_a_pair_of_files_gives_the_same(folder, vectors):
    lines = [line.split() for line in vectors.read_text().splitlines()]
    np.save(folder.parent / "pair.npy", np.array([line[1:] for line in lines], np.float32))
    (folder.parent / "pair_words.txt").write_text("".join(f"{line[0]}\n" for line in lines))
    assert run("fisher", folder, vectors) == 0
    assert run("fisher", folder, folder.parent / "pair", "--name", "pair") == 0
    dataset = open_dataset(folder)
    assert list(dataset.manifest["text_features"]["pair"]["sha256"]) == ["pair.npy", "pair_words.txt"]
    split = dataset.split("test")
    np.testing.assert_array_equal(split.text_feature("pair"), split.text_feature("fisher"))


def test_a_name_is_taken_once(folder, vectors, capsys):
    assert run("fisher", folder, vectors) == 0
    assert run("fisher", folder, vectors, "--components", "3") == 3
    assert 'has text features "fisher" of another options; choose another --name' in capsys.readouterr().err


def test_damage_is_seen(folder, vectors):
    assert run("mean", folder, vectors) == 0
    split = open_dataset(folder).split("dev")
    with pytest.raises(DataError, match='has no text features "fisher", only mean; add them with: xmodal data text'):
        split.text_feature("fisher")
    path, model = folder / "dev.text.mean.npy", folder / "text.mean.npz"
    raw = path.read_bytes()
    count = len(split.text_feature("mean"))
    turned = raw.replace(b"(%d, 5)" % count, b"(5, %d)" % count)
    for damage in (raw[:-4], raw + b"more", raw[:20] + raw[:20], b"", raw.replace(b"<f4", b"<i4"), turned):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"dev.text.mean.npy is missing or damaged"):
            split.text_feature("mean")
    path.write_bytes(raw[:-4] + np.float32(np.nan).tobytes())
    assert check(folder)["errors"] == [
        "dev.text.mean.npy: SHA-256 differs from the manifest.",
        'split "dev": text features "mean" are not finite.',
    ]
    path.unlink()
    with pytest.raises(DataError, match="is missing or damaged"):
        split.text_feature("mean")
    whole = model.read_bytes()
    for damage in (whole[:300], b"", b"about", whole[:200] + whole[250:]):
        model.write_bytes(damage)
        with pytest.raises(DataError, match="is no text model or is damaged"):
            load_text_model(model)


def test_captions_of_unknown_words_may_be_an_error_later(folder, vectors):
    known = write(folder.with_name("known"), train=["red0 big1", "sea2 dog3"], dev=["sea1"], test=["dog0"])
    assert run("fisher", known, vectors, "--missing", "error") == 0
    model = load_text_model(known / "text.fisher.npz")
    with pytest.raises(DataError, match='No word of the sentence "a zebra" is known'):
        model.encode(["red0", "a zebra"])


def test_a_split_without_captions(tmp_path, vectors):
    image = {"global": np.ones(3, np.float32)}
    splits = {"train": [Item("a", ["red0 big1", "sea2 red0"], image)], "test": [Item("b", [], image)]}
    writer.write(tmp_path / "set", splits, name="x", source={})
    assert run("fisher", tmp_path / "set", vectors) == 0
    dataset = open_dataset(tmp_path / "set")
    split = dataset.split("test")
    assert split.text_feature("fisher").shape == (0, 20)
    assert dataset.manifest["text_features"]["fisher"]["missing"] == {"train": 0, "test": 0}
