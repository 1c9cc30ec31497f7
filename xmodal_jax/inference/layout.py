"""The bundle on disk: what a trained matcher is when it leaves its run folder.

    BUNDLE/
      manifest.json            what the functions take and give; bytes and SHA-256 of every other file
      config.json              the resolved config
      vocabulary.json          left out where captions come as token ids, or no tokens are read
      text.NAME.npz            makes dense text vectors from sentences, where the system reads such
      backbone.safetensors     the image network that makes features of pictures, where the data were made by one
      parameters.safetensors   what encoding and scoring use, by name
      encode_image.stablehlo   `jax.export` of each function; also encode_text, score; attention or glimpses, where
                               there are any; begin_image, begin_text and word of a system that speaks
      encode_image.onnx        the same for other runtimes, with `--onnx`
      README.md                the model card

Functions are exported by :mod:`xmodal_jax.export` and called by :mod:`xmodal_jax.inference`; they take their
parameters as arguments, so that numbers are stored once and in a format that runs nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xmodal_jax.digest import digest, sha256, writing
from xmodal_jax.errors import CheckpointError
from xmodal_jax.training.bundle import FORMAT as FORMAT
from xmodal_jax.training.bundle import MANIFEST
from xmodal_jax.training.bundle import PARAMETERS as PARAMETERS
from xmodal_jax.training.bundle import VERSION as VERSION
from xmodal_jax.training.bundle import VOCABULARY as VOCABULARY

JSON = 4 << 20  # bytes of a manifest or a config
CONFIG, CARD = "config.json", "README.md"
PLATFORMS = ("cpu", "cuda", "tpu")


def file_of(function: str) -> str:
    return f"{function}.stablehlo"


def text_model(name: str) -> str:
    return f"text.{name}.npz"


def seal(folder: Path, manifest: Mapping[str, Any], name: str = MANIFEST) -> dict[str, Any]:
    """Write the manifest of all files in ``folder``, last of all; returns it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / name)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths
    }
    whole = json.loads(json.dumps({**manifest, "files": files}))
    whole["sha256"] = digest(whole)
    (folder / name).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return whole


def read_manifest(folder: Path, kind: str, version: int, again: str, name: str = MANIFEST) -> dict[str, Any]:
    """The manifest of a sealed folder.

    Raises:
        CheckpointError: there is none, or it is damaged, of another kind or of another version.
    """
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{folder} is not an {kind} (it has no {name}); {again}.")
    manifest = read_json(path, again)
    if not isinstance(manifest, dict) or manifest.get("format") != kind:
        raise CheckpointError(f"{path} does not describe an {kind}; {again}.")
    if manifest.get("version") != version:
        raise CheckpointError(f"{path} is of version {manifest.get('version')!r}, this is {version}; {again}.")
    if manifest.get("sha256") != digest(manifest):
        raise CheckpointError(f"{path} does not match its own SHA-256; {again}.")
    return manifest


def read_json(path: Path, again: str) -> Any:
    """The content of a JSON file of at most :data:`JSON` bytes.

    Raises:
        CheckpointError: it is larger, or damaged.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(JSON + 1)
        if len(raw) > JSON:
            raise CheckpointError(f"{path} has more than {JSON:,} bytes, which no such file needs; {again}.")
        return json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); {again}.") from None


@contextlib.contextmanager
def fitting(folder: Path, again: str) -> Iterator[None]:
    """What a manifest that lacks something, or has it in another form, raises becomes a CheckpointError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, KeyError) else f"it lacks {error}"
        raise CheckpointError(f"{folder}: the manifest does not fit the files ({reason}); {again}.") from None


def check_files(folder: Path, manifest: Mapping[str, Any], again: str) -> None:
    """Hold every file against the manifest; CheckpointError names the first that differs."""
    for name, want in manifest["files"].items():
        path = folder / name
        if re.search(r"(^|[/\\])\.\.([/\\]|$)", name) or Path(name).is_absolute() or path.is_symlink():
            raise CheckpointError(f"{folder}: the manifest names {name}, which lies outside; {again}.")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {again}.")
        if path.stat().st_size != want["bytes"]:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, not {want['bytes']:,}; {again}.")
    for name, want in manifest["files"].items():  # the sizes of all come first: they cost nothing to look at
        path = folder / name
        if sha256(path) != want["sha256"]:
            raise CheckpointError(f"{path} has changed since it was written (its SHA-256 differs); {again}.")


def add_lines(path: Path, values: Iterable[Any]) -> None:
    """Add one line of JSON for each value to a file; they are on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(value) + "\n" for value in values)
        file.flush()
        os.fsync(file.fileno())


def cut_lines(path: Path, count: int) -> None:
    """Keep the first ``count`` lines of a file, which need not be there for none.

    Raises:
        CheckpointError: it has fewer.
    """
    with path.open("a+b") as file:
        file.seek(0)
        kept = list(itertools.islice(file, count))
        if len(kept) < count:
            raise CheckpointError(f"{path} has {len(kept):,} of {count:,} lines; remove {path.parent} and start anew.")
        file.truncate(sum(map(len, kept)))


class fresh_folder:
    """Context in which ``<out>.partial`` is filled; it becomes ``out`` at the end, or nothing is left behind.

    Raises:
        CheckpointError: ``out`` exists and is not empty, or somebody else is at work there, or the disk is full.
    """

    def __init__(self, out: Path):
        self.out = out
        self.partial = out.with_name(out.name + ".partial")

    def __enter__(self) -> Path:
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise CheckpointError(f"{self.out} exists and is not empty; choose another --out or remove it.")
        try:
            self.partial.mkdir(parents=True)
        except FileExistsError:
            raise CheckpointError(
                f"{self.partial} exists: another process is at work there, or one was killed; remove it and try again."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{self.out} cannot be made ({error.strerror}); choose another --out.") from None
        return self.partial

    def __exit__(self, kind: Any, error: BaseException | None, *_: object) -> None:
        if error is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            with writing(self.out):
                raise error
        with writing(self.out):
            if self.out.exists():
                self.out.rmdir()
            self.partial.rename(self.out)
