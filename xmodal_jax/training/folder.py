"""The folder of a run: what stands in it beside checkpoints and logs, and how that is held against data and config.

config.json       the resolved config
finished.json     the last step and the length of the log, once all is done
vocabulary.json   where the system reads tokens
run.json          the data, its shapes, the vocabulary; SHA-256 of these files and of itself
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal_jax import config as configs
from xmodal_jax import digest
from xmodal_jax.data import pixels
from xmodal_jax.data.records import Dataset, text_file
from xmodal_jax.errors import CheckpointError, DataError, UsageError
from xmodal_jax.text.vectors import load_word_vectors
from xmodal_jax.text.vocabulary import SPECIAL, Vocabulary
from xmodal_jax.training import bundle, lock, processes
from xmodal_jax.training.lock import Lock
from xmodal_jax.training.log import FINISHED
from xmodal_jax.types import Config, Facts, Inputs

VOCABULARY = "vocabulary.json"
# What stands in a folder while it is claimed; with the config, written last, it is a run folder
WRITTEN = (VOCABULARY, configs.RECORD, configs.FILE)
FOLDERS = ("checkpoints", "manifests")
CLAIMED = {*FOLDERS, lock.FILE, VOCABULARY, configs.RECORD, *(f"{name}.tmp" for name in WRITTEN)}


def open_vocabulary(workdir: Path, config: Config, dataset: Dataset, inputs: Inputs) -> Vocabulary | None:
    """The vocabulary of a run folder that belongs to this config and data, or a new one from the training captions;
    None for a system that reads no tokens.

    Raises:
        CheckpointError: the folder holds a run of another config, or something else, or is damaged.
        DataError: the data set has changed since the run was started.
    """
    if begun(workdir):
        configs.check_same(configs.read(workdir), config, workdir)
        check_same_data(workdir, dataset, inputs, config)
        return read_vocabulary(workdir)
    if (workdir / configs.FILE).is_file():
        print(f"{workdir}: the run there has saved no step; it begins anew.", file=sys.stderr)
    elif workdir.exists():
        check_free(workdir)
    if "token" not in inputs.text:
        return None
    if config.init.get("vocabulary"):
        return borrowed_vocabulary(config, inputs)
    captions = dataset.split("train").captions
    built = Vocabulary.build((text for texts in captions for text in texts), config.data.minimum_count, inputs.tokens)
    if not config.data.get("vector_words"):
        return built
    if not config.data.word_vectors:
        raise UsageError("config.data.vector_words needs vectors; give --config.data.word_vectors.")
    _, found = load_word_vectors(config.data.word_vectors, built)
    return Vocabulary([word for i, word in enumerate(built.words) if found[i] or i < len(SPECIAL)], inputs.tokens)


def read_record(workdir: Path) -> dict[str, Any]:
    """What the run was started with; CheckpointError where that is missing or damaged."""
    record = configs.record(workdir)
    if not record:
        raise CheckpointError(
            f"{workdir / configs.RECORD} is missing, so what the run was trained on is not known; restore it from a "
            "copy."
        )
    return record


def read_vocabulary(workdir: Path) -> Vocabulary | None:
    """The vocabulary of a run folder; None where the run has none.

    Raises:
        CheckpointError: it is missing, damaged or that of another run.
    """
    known = read_record(workdir).get("vocabulary")
    if not known:
        return None
    configs.check_file(workdir, VOCABULARY)
    vocabulary = Vocabulary.load(workdir / VOCABULARY)
    if vocabulary.sha256 != known:
        raise CheckpointError(f"{workdir / VOCABULARY} is not that which the run was trained with; restore it.")
    return vocabulary


def words_of(source: Path) -> Vocabulary | None:
    """The vocabulary of a run or a bundle; None where it has none. Raises CheckpointError where it is damaged."""
    if bundle.is_bundle(source):
        return bundle.read_words(source)
    configs.read(source)
    return read_vocabulary(source)


def borrowed_vocabulary(config: Config, inputs: Inputs) -> Vocabulary:
    """The vocabulary of ``config.init.workdir``.

    Raises:
        UsageError: nothing to start from is named, or it has no vocabulary, or one of another kind of tokens.
    """
    if not config.init.workdir:
        raise UsageError("config.init.vocabulary takes the words of config.init.workdir; name a run or a bundle there.")
    vocabulary = words_of(Path(config.init.workdir))
    if vocabulary is None:
        raise UsageError(f"{config.init.workdir} has no vocabulary to keep; leave out --config.init.vocabulary.")
    if vocabulary.tokens != inputs.tokens:
        raise UsageError(
            f"{config.init.workdir} reads {vocabulary.tokens}, this system {inputs.tokens}; leave out "
            "--config.init.vocabulary."
        )
    return vocabulary


def identity_of(config: Config, dataset: Dataset, inputs: Inputs) -> dict[str, Any]:
    """What a run must find again: its data, the added features that it reads, and the user's model file."""
    dense = {name: dataset.manifest["text_features"][name] for name in inputs.text if name != "token"}
    added = {name: entry for name, entry in dataset.manifest.get("image_features", {}).items() if name in inputs.image}
    identity: dict[str, Any] = {"data": dataset.identity}
    if dense:
        identity["text"] = json_of(dense)
    if added:
        identity["image"] = json_of(added)
    files = [Path(system.name) for system in configs.systems(config) if system.name.endswith(".py")]
    if files:
        identity["model"] = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return identity


def same_data(workdir: Path, dataset: Dataset, inputs: Inputs, config: Config) -> bool:
    """Whether a data set is the one that the run was started with.

    Raises:
        CheckpointError: the model file is not the one that the run was started with.
    """
    then, now = read_record(workdir), identity_of(config, dataset, inputs)
    if then.get("model") != now.get("model"):
        raise CheckpointError(
            f"The model file has changed since {workdir} was started; restore it or start a new --workdir."
        )
    return all(then.get(key) == now.get(key) for key in ("data", "text", "image"))


def check_same_data(workdir: Path, dataset: Dataset, inputs: Inputs, config: Config, remedy: str = "") -> None:
    """Raise a DataError where the data has changed since the run was started."""
    if not same_data(workdir, dataset, inputs, config):
        raise DataError(
            f"{dataset.directory} has changed since {workdir} was started; restore it or "
            f"{remedy or 'start a new --workdir'}."
        )


def check_shapes(workdir: Path, dataset: Dataset, inputs: Inputs) -> None:
    """Hold the features of other data against those that the run was trained on.

    Raises:
        DataError: they differ in kind or width, have more regions than the system takes, or are text vectors of another
            model. One sentence names both.
    """
    record = read_record(workdir)
    there = {"image": dataset.features, "text": dataset.manifest.get("text_features", {})}
    known = record.get("facts", {})
    problems = []
    for kind, names in (("image", inputs.image), ("text", inputs.text)):
        for name in set(names) - {"token"}:
            trained, spec = known.get(kind, {}).get(name), there[kind].get(name)
            if name == pixels.NAME and spec is None:
                continue  # pictures have the size that the run's config gives them
            problems += filter(None, [_difference(trained, spec, inputs.most_regions)])
    for name, then in record.get("image", {}).items():
        if not problems and then.get("words") != there["image"].get(name, {}).get("words"):
            problems.append(f'features "{name}" of other words than those of the run')
    for name, then in record.get("text", {}).items():
        now = there["text"].get(name)
        if now is None or problems:
            continue
        ours, theirs = record.get("text_models", {}).get(name), text_hash(dataset, name)
        same = [{key: entry.get(key) for key in ("kind", "options", "sha256")} for entry in (then, json_of(now))]
        if same[0] != same[1] or (fitted(now) and ours not in (None, theirs)):
            problems.append(f'text vectors "{name}" that another model than {text_file(name)} of the run made')
    if problems:
        raise DataError(
            f"{workdir} cannot be used on {dataset.directory}, which has {' and '.join(problems)}; name data of "
            "the kind that the run was trained on."
        )


def _difference(trained: Any, spec: Mapping[str, Any] | None, most: int | None) -> str:
    """What keeps a feature of a manifest from being read in place of that which a run was trained on."""

    def words(width: int, regional: bool) -> str:
        return f"{width:,} numbers {'a region' if regional else 'in all'}"

    if spec is None:
        return "not all of its features"
    here, regions = words(spec["shape"][-1], "regions" in spec), spec.get("regions", [1, 1])[1]
    there = words(trained[0][-1], len(trained[0]) == 2) if trained else here
    if here != there:
        return f"features of {here} instead of {there}"
    return f"up to {regions} regions instead of {most}" if most is not None and regions > most else ""


def fitted(entry: Mapping[str, Any]) -> bool:
    """Whether what makes text vectors depends on the captions that it was fitted on."""
    options = entry.get("options", {})
    return entry.get("kind") != "mean" or options.get("whiten", "none") != "none" or bool(options.get("pca"))


def text_hash(dataset: Dataset, name: str) -> str | None:
    """SHA-256 of what was fitted on the data's captions to make the text vectors ``name``."""
    return dataset.manifest["files"].get(text_file(name), {}).get("sha256")


def json_of(value: Any) -> Any:
    """``value`` as it comes back from JSON."""
    return json.loads(json.dumps(value))


def check_free(workdir: Path) -> None:
    """Raise a CheckpointError unless a run can begin in a path: an empty folder, or what a kill left of a claim."""
    if not workdir.is_dir():
        raise CheckpointError(f"{workdir} is not a folder; choose another --workdir.")
    try:
        there = {path.name for path in workdir.iterdir()}
    except OSError as error:
        raise CheckpointError(f"{workdir} cannot be read ({error.strerror}); choose another --workdir.") from error
    if there and not (lock.FILE in there and there <= CLAIMED):
        raise CheckpointError(f"{workdir} is not empty and not a run folder; choose another --workdir.")


def begun(workdir: Path) -> bool:
    """Whether a path is a run folder with anything to lose: what ended before its first save may be started anew."""
    steps = (path for name in FOLDERS for path in (workdir / name).glob("[0-9]*"))
    return (workdir / configs.FILE).is_file() and any(steps)


def claim(
    workdir: Path, config: Config, dataset: Dataset, inputs: Inputs, facts: Facts, vocabulary: Vocabulary | None
) -> Lock | None:
    """Make the run folder, once all of the config has proved usable, and keep other processes out of it.

    Returns:
        What the first of several processes holds; the others hold nothing.

    Raises:
        UsageError: another process is at work there.
        CheckpointError: it cannot be written. Nothing is left behind.
    """
    target, held = workdir / configs.FILE, None
    processes.wait("run folder seen")  # by all: in the middle of the making it would look like a stranger's
    if processes.first():
        fresh = not workdir.exists()
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            held = Lock(workdir / lock.FILE)
        except OSError as error:
            raise digest.refused(workdir, error) from error
        try:
            if begun(workdir):  # perhaps since this process has looked
                saved = configs.read(workdir)
                configs.check_same(saved, config, workdir)
                check_same_data(workdir, dataset, inputs, config)
                if configs.is_longer(saved, config):
                    _prolong(workdir, saved, config)
            else:
                _write(workdir, config, dataset, inputs, facts, vocabulary)
        except BaseException:
            if not target.is_file():
                _unclaim(workdir)
            held.release()
            if fresh:
                with contextlib.suppress(OSError):  # not empty: a run of another process
                    workdir.rmdir()
            raise
    processes.wait("run folder made")
    processes.check_shared(target)
    return held


def _prolong(workdir: Path, saved: Config, config: Config) -> None:
    """Write the epochs and steps of ``config`` into the folder, so that its run is the longer one from here on.

    A kill at any point leaves the run as it was or the longer one: while the config is replaced, both are known.
    """
    longer = saved.copy_and_resolve_references()
    longer.epochs, longer.steps = config.epochs, config.steps
    record = read_record(workdir)
    files: dict[str, Any] = dict(record.pop("files", {}))
    record.pop("sha256", None)
    text = configs.to_text(longer)
    before, after = digest.sha256(workdir / configs.FILE), hashlib.sha256(text.encode()).hexdigest()
    digest.remove(workdir / FINISHED)
    _write_hashed(workdir, record, files | {configs.FILE: [before, after]})
    digest.write(workdir / configs.FILE, text)
    _write_hashed(workdir, record, files | {configs.FILE: after})
    was, now = (f"{c.steps:,} steps" if c.steps else f"{c.epochs:g} epochs" for c in (saved, longer))
    print(f"{workdir}: the run of {was} there goes on to {now}")


def _unclaim(workdir: Path) -> None:
    for name in CLAIMED - {lock.FILE, *FOLDERS}:
        digest.remove(workdir / name)
    for name in FOLDERS:
        with contextlib.suppress(OSError):
            (workdir / name).rmdir()


def _write(
    workdir: Path, config: Config, dataset: Dataset, inputs: Inputs, facts: Facts, vocabulary: Vocabulary | None
) -> None:
    record = {**identity_of(config, dataset, inputs), "name": dataset.manifest["name"], "facts": shapes(facts)}
    record["text_models"] = {name: text_hash(dataset, name) for name in facts.text}
    files = []
    for path in (workdir / name for name in FOLDERS):
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise digest.refused(path, error) from error
    if vocabulary is not None:
        vocabulary.save(workdir / VOCABULARY)
        record["vocabulary"] = vocabulary.sha256
        files.append(VOCABULARY)
    write_record(workdir, record, config, files)


def write_record(workdir: Path, record: Mapping[str, Any], config: Config, files: list[str]) -> None:
    """Write the record, with hashes of ``files`` and of the config; then the config: a folder with it has the rest."""
    hashes = {name: digest.sha256(workdir / name) for name in files}
    hashes[configs.FILE] = hashlib.sha256(configs.to_text(config).encode()).hexdigest()
    _write_hashed(workdir, record, hashes)
    configs.save(config, workdir / configs.FILE)


def _write_hashed(workdir: Path, record: Mapping[str, Any], hashes: Mapping[str, Any]) -> None:
    content = json_of({**record, "files": hashes})
    digest.write(workdir / configs.RECORD, json.dumps(content | {"sha256": digest.digest(content)}, indent=1) + "\n")


def shapes(facts: Facts) -> dict[str, Any]:
    """The facts as JSON values."""
    features = {kind: {name: list(f) for name, f in getattr(facts, kind).items()} for kind in ("image", "text")}
    return {**facts._asdict(), **features}
