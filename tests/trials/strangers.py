"""Files as an attacker makes them, given to the verbs: nothing in them runs, reads elsewhere or takes much."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import pickle
import resource
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from attacks import attacks

from trials import makers
from trials.evil import Evil, Touch, evil_arrays, evil_functions, evil_json, evil_parameters
from trials.harness import Failures, Outcome, Row, forked, refused, sound, verb
from trials.makers import Things

SECRET = "the secret of another folder"
MEMORY = 400 << 20  # bytes more than the same verbs take of sound files
SECONDS = 60  # a verb may take, on a machine that is at work


class Case(NamedTuple):
    """One attack: what is put where, below a folder of its own, and the verb that reads it."""

    name: str
    make: Callable[[Path], list[Any]]  # fills a folder and gives the command line
    harmless: bool = False  # whether the verb may also answer


# Sealed again, so that the hashes fit


def sign(path: Path) -> None:
    """Give a manifest the hash of what is in it."""
    from xmodal_jax import digest

    path.write_text(json.dumps(digest.sealed(json.loads(path.read_text()))))


def seal(folder: Path, kind: str) -> None:
    """Hash a folder anew as whoever makes it would."""
    from xmodal_jax import config as configs
    from xmodal_jax import digest
    from xmodal_jax.data import records
    from xmodal_jax.inference import layout

    if kind in ("bundle", "gallery"):
        layout.seal(folder, json.loads((folder / "manifest.json").read_text()))
        return
    path = folder / ("manifest.json" if kind == "data" else configs.RECORD)
    manifest = json.loads(path.read_text())
    if kind == "data":
        manifest["files"] = records.hash_files(folder)
    else:
        manifest["files"] = {name: digest.sha256(folder / name) for name in manifest["files"]}
        vocabulary = json.loads((folder / "vocabulary.json").read_text())
        manifest["vocabulary"] = vocabulary.get("sha256", manifest["vocabulary"]) if vocabulary else ""
    manifest["sha256"] = digest.digest(manifest)
    path.write_text(json.dumps(manifest))


def in_folder(things: Things, kind: str, name: str, evil: Evil, argv: Callable[[Path], list[Any]]) -> Case:
    """A file of a folder replaced, and the folder sealed again where that still can be done."""

    def make(here: Path) -> list[Any]:
        folder = here / kind
        shutil.copytree(getattr(things, kind), folder)
        (folder / name).write_bytes(evil.data)
        with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError, OverflowError):
            if name in ("manifest.json", "run.json"):
                sign(folder / name)
            else:
                seal(folder, kind)
        return argv(folder)

    return Case(f"{kind}/{name}: {evil.name}", make, harmless=True)


def uses(things: Things) -> dict[str, Callable[[Path], list[Any]]]:
    """The verb that reads a folder of each kind."""
    return {
        "bundle": lambda folder: ["eval", "--bundle", folder, "--data", things.data],
        "gallery": lambda folder: makers.search(folder),
        "data": lambda folder: ["eval", "--bundle", things.bundle, "--data", folder],
        "run": lambda folder: ["eval", "--workdir", folder],
    }


def folder_cases(things: Things, marker: Path) -> Iterator[Case]:
    """Files within bundles, galleries, data sets and runs."""
    argv = uses(things)
    texts = {
        "bundle": ["manifest.json", "config.json", "vocabulary.json"],
        "gallery": ["manifest.json", "images.jsonl", "texts.jsonl"],
        "data": ["manifest.json", "test.captions.jsonl", "dataset_info.json", "features.json"],
        "run": ["run.json", "config.json", "vocabulary.json", "manifests/8.json"],
    }
    for kind, names in texts.items():
        for name in names:
            for evil in evil_json((getattr(things, kind) / name).read_text()):
                yield in_folder(things, kind, name, evil, argv[kind])
    for evil in evil_json((things.run / "metrics.jsonl").read_text()):
        yield in_folder(things, "run", "metrics.jsonl", evil, lambda folder: ["show", folder])
    array = min(path.relative_to(things.gallery).as_posix() for path in things.gallery.glob("images/*.npy"))
    for evil in evil_arrays(marker):
        yield in_folder(things, "gallery", array, evil, argv["gallery"])
    for evil in evil_parameters():
        yield in_folder(things, "bundle", "parameters.safetensors", evil, argv["bundle"])
    for name in ("encode_image", "encode_text", "score"):
        for evil in evil_functions((things.bundle / f"{name}.stablehlo").read_bytes()):
            yield in_folder(things, "bundle", f"{name}.stablehlo", evil, argv["bundle"])


# Names that lead outside


def path_cases(things: Things, marker: Path) -> Iterator[Case]:
    """Manifests and lines that name files of other folders."""
    from xmodal_jax import digest

    secret = marker.with_name(f"{marker.name}.secret")
    names = ["../outside", "a/../../outside", "/etc/passwd", str(secret), "..\\outside", "./../outside", "link", "\0"]
    for kind, name in itertools.product(("bundle", "gallery", "data"), names):

        def make(here: Path, kind: str = kind, name: str = name) -> list[Any]:
            folder = Path(shutil.copytree(getattr(things, kind), here / kind))
            (here / "outside").write_text(SECRET)
            (folder / "link").symlink_to(secret)
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["files"][name] = {
                "bytes": len(SECRET),
                "sha256": hashlib.sha256(SECRET.encode()).hexdigest(),
            }
            manifest["sha256"] = digest.digest(manifest)
            (folder / "manifest.json").write_text(json.dumps(manifest))
            return uses(things)[kind](folder)

        yield Case(f"{kind}: the manifest names {name!r}", make, harmless=kind == "data")
    for name in names:

        def picture(here: Path, name: str = name) -> list[Any]:
            folder = Path(shutil.copytree(things.gallery, here / "gallery"))
            lines = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
            for line in lines:
                line["picture"] = name
            (folder / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            seal(folder, "gallery")
            return makers.search(folder)

        yield Case(f"gallery: a picture is {name!r}", picture, harmless=True)


# Sources of an import, embeddings, results


def source_cases(things: Things, marker: Path) -> Iterator[Case]:
    """Files that `data import`, `eval --embeddings`, `results` and `convert` read."""
    for evil in evil_arrays(marker):

        def precomp(here: Path, evil: Evil = evil) -> list[Any]:
            source = Path(shutil.copytree(things.precomp, here / "source"))
            (source / "dev_ims.npy").write_bytes(evil.data)
            return list(makers.importing(source, here / "out"))

        def embeddings(here: Path, evil: Evil = evil) -> list[Any]:
            (here / "a.npy").write_bytes(evil.data)
            np.save(here / "b.npy", np.ones((4, 8), np.float32))
            (here / "map.json").write_text("[0, 1, 2, 3]")
            return ["eval", "--embeddings", here / "a.npy", here / "b.npy", "--map", here / "map.json"]

        yield Case(f"import: {evil.name}", precomp)
        yield Case(f"embeddings: {evil.name}", embeddings)
    result = next((things.run / "eval").glob("*.json"))
    for evil in evil_json(result.read_text()):

        def results(here: Path, evil: Evil = evil) -> list[Any]:
            (here / "test-8.json").write_bytes(evil.data)
            return ["results", here / "test-8.json"]

        yield Case(f"results: {evil.name}", results, harmless=True)
    karpathy = {"images": [{"filename": "a.jpg", "imgid": 0, "split": "train", "sentences": [{"raw": "a red dog"}]}]}
    for kind, text in (("karpathy", json.dumps(karpathy)), ("jsonl", '{"image": "a.jpg", "caption": "a red dog"}')):
        for evil in evil_json(text):

            def captions(here: Path, evil: Evil = evil, kind: str = kind) -> list[Any]:
                (here / "captions.json").write_bytes(evil.data)
                np.save(here / "f.npy", np.ones((1, 4), np.float32))
                columns = ["--image-col", "image", "--caption-col", "caption"] if kind == "jsonl" else []
                argv = ["data", "import", kind, here / "captions.json", "--out", here / "out"]
                return [*argv, "--features", here / "f.npy", *columns]

            yield Case(f"{kind}: {evil.name}", captions, harmless=True)
    bomb = zlib.compress(bytes(64 << 20), 9)
    for name in ("f.npz", "f.pkl", "f.h5", "f.mat"):

        def store(here: Path, name: str = name) -> list[Any]:
            (here / "t.csv").write_text("image,caption\na.jpg,a red dog\n")
            if name == "f.npz":
                with zipfile.ZipFile(here / name, "w", zipfile.ZIP_DEFLATED) as archive:
                    archive.writestr("../../escaped.npy", bomb)
                    archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + bytes(200 << 20))
            else:
                (here / name).write_bytes(
                    pickle.dumps(Touch(marker)) if name == "f.pkl" else b"\x89HDF\r\n\x1a\n" + bytes(99)
                )
            argv = ["data", "import", "csv", here / "t.csv", "--out", here / "out", "--features", here / name]
            return [*argv, "--image-col", "image", "--caption-col", "caption"]

        yield Case(f"a store {name}", store)


def checkpoint_cases(marker: Path) -> Iterator[Case]:
    """The crafted PyTorch files of :mod:`attacks`."""
    for attack in attacks(marker):

        def make(here: Path, data: bytes = attack.data) -> list[Any]:
            (here / "model_best.pth.tar").write_bytes(data)
            return ["convert", "vsepp", here / "model_best.pth.tar", "--out", here / "bundle"]

        yield Case(f"checkpoint, {attack.kind}: {attack.name}", make)


# Tries


def measured(argv: list[Any]) -> tuple[int, int]:
    """A verb within bounds of memory, and how many bytes it took at its most."""
    code = verb(*argv)
    return code, max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ) * 1024


def stranger_try(case: Case, here: Path, marker: Path, usual: int) -> tuple[str, Outcome | None]:
    """What is wrong with how a verb takes a file, and how it ended."""
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    with contextlib.redirect_stderr(io.StringIO()):  # hashing shows its progress
        argv = case.make(here)
    outcome = forked(lambda: measured(argv))
    if marker.exists():
        marker.unlink()
        return "something in it was executed", outcome
    if SECRET in outcome.out + outcome.err:
        return "it read a file of another folder", outcome
    if outcome.seconds > SECONDS:
        return f"it took {outcome.seconds:.0f} s", outcome
    if outcome.code == 0 and case.harmless:
        wrong = "" if "Traceback" not in outcome.err else "a traceback"
    else:
        wrong = refused(outcome, (2, 3, 4, 5))
    if not wrong and outcome.value and outcome.value > usual + MEMORY:
        wrong = f"it took {(outcome.value - usual) >> 20:,} MiB more than of a sound file"
    return wrong, outcome


def strangers(things: Things, tries: int, seed: int, first: int) -> Row:
    """All cases, or as many of them as asked for; nothing of them is drawn, whatever the seed."""
    here, marker = things.root / "stranger", things.root / "executed"
    marker.with_name(f"{marker.name}.secret").write_text(SECRET)
    lines = [[*use(getattr(things, kind))] for kind, use in uses(things).items()]
    usual = max(sound(forked(lambda line=line: measured(line))).value for line in lines)
    cases = [
        *checkpoint_cases(marker),
        *folder_cases(things, marker),
        *path_cases(things, marker),
        *source_cases(things, marker),
    ]
    rest = len(cases) - first
    chosen = [first + number * rest // min(tries, rest) for number in range(min(tries, rest))]
    failures, answered, most = Failures(), 0, 0
    for number in chosen:
        wrong, outcome = stranger_try(cases[number], here, marker, usual)
        if wrong:
            failures.add(f"case {number}: {cases[number].name}: {wrong}")
        elif outcome:
            answered += outcome.code == 0
            most = max(most, (outcome.value or 0) - usual)
    return Row(len(chosen), failures, {"answered": answered, "mib": most >> 20})
