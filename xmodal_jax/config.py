"""Configs: found by name, overridden on the command line, saved as JSON with the run, compared on resume."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xmodal_jax import digest
from xmodal_jax.defaults import DATA, base
from xmodal_jax.errors import CheckpointError, UsageError
from xmodal_jax.types import Config

# Changing these does not change what a run computes, so a resumed run may; the data itself is checked by hash.
FREE = ("parallel", "log", "checkpoint", "collapse", "eval.batch_size", "block", "data.dir", "data.most_unknown")
FILE, RECORD = "config.json", "run.json"  # of a run folder
UNHASHED = {"data", "text", "model", "vocabulary"}  # all that earlier versions recorded
RETIRED = ("data.boxes",)  # keys of earlier versions that nothing reads any more
LENGTH = {"epochs", "steps"}
SPREAD = ("cosine",)  # schedules over all steps of a stage
# What a stage may override, because it takes effect there
STAGED = (
    r"epochs|steps|keep_optimiser|chunk|block|(optim|loss|weights|ramps)\..*"
    r"|data\.(sampler|batch_size|captions_per_image|drop_last)"
)


def _shipped() -> list[Path]:
    """Folders of the configs that come with the package."""
    here = Path(__file__).resolve().parent
    return [folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir()]


def find(spec: str) -> str:
    """``vse.py:vsepp,f8k`` or ``path/to/config.py:arg`` to an existing path with the same argument.

    A path that exists wins; otherwise the configs that come with the package are searched.

    Raises:
        UsageError: no such file; the message lists the configs there are.
    """
    path, colon, arg = spec.partition(":")
    shipped = _shipped()
    relative = Path(path).relative_to("configs") if path.startswith("configs/") else Path(path)
    for candidate in (Path(path), *(folder / relative for folder in shipped)):
        if candidate.is_file():
            return f"{candidate}{colon}{arg}"
    names = sorted({file.name for folder in shipped for file in folder.glob("*.py")})
    raise UsageError(f'No config file "{path}"; the package has {", ".join(names)}.')


def names(config: Config, prefix: str = "") -> Iterator[str]:
    """All keys, dotted."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from names(value, f"{prefix}{key}.")


def near(key: str, known: Sequence[str]) -> str:
    """`` Did you mean "optim.lr"?`` for the closest of ``known``, by its last part where that fits ("lr")."""
    last = [name for name in known if name.rsplit(".", 1)[-1] == key]
    guess = last or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f' Did you mean "{guess[0]}"?' if guess else ""


def load(spec: str, overrides: Sequence[str] = (), data: str | None = None) -> Config:
    """The config of ``spec`` with ``--config.key=value`` overrides applied and typed.

    Args:
        data: a prepared data set of any name. Where a config of the package is asked for no set by name, it then takes
            the settings of the published sets, not those of the small built-in one.

    Raises:
        UsageError: an unknown file, argument, key or a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    spec = find(spec)
    path, _, arg = spec.partition(":")
    shipped = Path(path).resolve().parent in [folder.resolve() for folder in _shipped()]
    unnamed = shipped and not set(arg.split(",")) & set(DATA)
    folders = [f"--config.data.dir={data}"] if data is not None else []
    if folders and unnamed:
        spec = f"{path}:{arg},own" if arg else f"{path}:own"
    overrides = [*folders, *overrides]

    def parse(arguments: Sequence[str]) -> Config:
        argv = ["xmodal", f"--config={spec}", *arguments]
        values = flags.FlagValues()  # our own, so that nothing is left in the process-wide flags
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        with contextlib.redirect_stderr(io.StringIO()):
            values(argv)
        return values["config"].value

    try:
        plain = parse([])
    except Exception as error:  # a config is the user's Python: whatever it raises is about the config
        lines = [line for line in str(error).splitlines() if len(line) > 1]
        why = lines[-1].removeprefix("ValueError: ") if lines else type(error).__name__
        raise UsageError(f"Config {spec} cannot be loaded: {why}.") from error
    known = list(names(plain))
    for override in overrides:
        key = override.removeprefix("--config.").partition("=")[0].partition("[")[0]
        if not override.startswith("--config.") or "=" not in override:
            raise UsageError(f'Cannot read "{override}"; overrides look like --config.optim.lr=1e-3.')
        if key not in known:
            raise UsageError(f'No config key "{key}".{near(key, known)}')
        if isinstance(_get(plain, key), ConfigDict):
            raise UsageError(f'Config key "{key}" is a group; set one of {", ".join(_get(plain, key))}.')
    if not set(arg.split(",")) & set(DATA):
        say_scenes(plain, overrides, shipped)
    try:
        config = parse(list(overrides))
    except Exception as error:
        raise UsageError(f"Config override refused: {error}.") from error
    config: Config = ConfigDict(json.loads(config.to_json()), convert_dict=True)
    for system in systems(config):
        if str(system.name).endswith(".py"):  # a file of the user's own: found from anywhere later
            beside = Path(spec.partition(":")[0]).resolve().parent / system.name
            system.name = str((beside if beside.is_file() else Path(system.name)).resolve())
    return config


def is_system(value: Any) -> bool:
    """Whether a value of ``config.model`` is itself a system: a group with a name."""
    return isinstance(value, ConfigDict) and "name" in value


def systems(config: Config) -> list[Config]:
    """``config.model``, and every system within it (``config.model.tower``), from the outside in."""
    found = [config.model]
    for system in found:
        found += [value for value in system.values() if is_system(value)]
    return found


def say_scenes(plain: Config, overrides: Sequence[str], shipped: bool) -> None:
    """Say so where a config that was asked for no data by name has the settings of the scenes for another set."""
    folders = [word.partition("=")[2] for word in overrides if word.startswith("--config.data.dir=")]
    if not folders or plain.data.get("dir") != DATA["scenes"] or folders[-1] == DATA["scenes"]:
        return
    try:
        scenes = "scenes" in json.loads((Path(folders[-1]) / "manifest.json").read_text(encoding="utf-8"))["source"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        scenes = False
    if not scenes:
        other = "train with --data DIR" if shipped else 'name another set in its argument, "own" say,'
        print(f"{folders[-1]}: settings of the built-in scenes; {other} for the published ones.")


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def save(config: Config, path: Path) -> None:
    """Write as JSON, keys sorted."""
    digest.write(path, to_text(config))


def to_text(config: Config) -> str:
    """The text of the file."""
    return json.dumps(json.loads(config.to_json()), indent=1, sort_keys=True) + "\n"


def read(workdir: Path) -> Config:
    """The config saved with a run, which must be as it was written.

    A folder whose config no hash was kept of, by an earlier version, is read and the fact said.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = workdir / FILE
    try:
        config = ConfigDict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{workdir} is not a run folder (no {FILE}); give the --workdir of a run.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}).") from error
    if not all(isinstance(config.get(group), ConfigDict) for group in ("model", "data")):
        raise CheckpointError(f"{path} is damaged (it has no groups model and data).")
    if "files" not in record(workdir):
        _say_unchecked(workdir)
    check_file(workdir, FILE)
    return config


@functools.cache  # said once of a folder, however often it is opened
def _say_unchecked(workdir: Path) -> None:
    print(f"{workdir}: no hashes were kept of its config and vocabulary; they are used unchecked.", file=sys.stderr)


def record(workdir: Path) -> dict[str, Any]:
    """What a run was started with: its data, shapes and vocabulary, and hashes of its files; {} where none is kept.

    Raises:
        CheckpointError: it is damaged.
    """
    path, content = workdir / RECORD, {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sound = set(content) <= UNHASHED or content.get("sha256") == digest.digest(content)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path} is damaged; restore it from a copy, or train in a new --workdir.")
    return content


def check_file(workdir: Path, name: str) -> None:
    """Raise a CheckpointError unless a file of a run folder is as it was written, where a hash of it was kept."""
    wanted, path = record(workdir).get("files", {}).get(name), workdir / name
    known = wanted if isinstance(wanted, list) else [wanted]  # a config that is being replaced has two
    if wanted is not None and (not path.is_file() or digest.sha256(path) not in known):
        raise CheckpointError(
            f"{path} is missing or damaged: its SHA-256 is not that in {RECORD}; restore it from a copy, or train in a "
            "new --workdir."
        )


def flatten(config: Config) -> dict[str, Any]:
    """Leaves by dotted key, as JSON values."""
    plain = ConfigDict(json.loads(config.to_json()))
    return {key: _get(plain, key) for key in names(plain) if not isinstance(_get(plain, key), ConfigDict)}


def differences(all_configs: Sequence[Config]) -> dict[str, list[Any]]:
    """By key, the values where configs differ in what a run computes; None where a config does not have the key."""
    leaves = [flatten(config) for config in all_configs]
    found = {key: [each.get(key) for each in leaves] for key in sorted(set().union(*leaves))}
    free = (*FREE, *RETIRED)
    return {key: v for key, v in found.items() if any(x != v[0] for x in v[1:]) and not key.startswith(free)}


def check_same(saved: Config, new: Config, workdir: Path) -> None:
    """Raise a CheckpointError naming the keys in which a run folder's config differs from the one now given.

    A key that the package did not have when the run was started had the value that is its default now. A run that
    differs in nothing but more epochs or steps is the same one, longer; a schedule over all steps cannot be prolonged,
    for the steps that were done would have had other rates.
    """
    differing = _differing(saved, new)
    longer = is_longer(saved, new)
    if longer and new.optim.schedule.kind in SPREAD:
        raise CheckpointError(
            f"{workdir} holds a run with the {new.optim.schedule.kind} schedule, whose rates depend on the number of "
            f"steps, so it cannot be made longer ({'; '.join(differing.values())}); train in a new --workdir."
        )
    if differing and not longer:
        advice = "choose another --workdir, or give the config it was started with"
        if set(differing) <= LENGTH:
            advice += "; a run can only be made longer, by the one of epochs and steps that it was started with"
        words = "; ".join(list(differing.values())[:5])
        raise CheckpointError(f"{workdir} holds a run of another config ({words}); {advice}.")


def _differing(saved: Config, new: Config) -> dict[str, str]:
    """The keys in which two configs compute something else, each in words."""
    old, now = {**flatten(base("scenes")), **flatten(saved)}, flatten(new)
    return {
        key: f"{key}: {old.get(key)!r} there, {now.get(key)!r} here"
        for key in sorted(set(old) | set(now))
        if old.get(key) != now.get(key) and not key.startswith((*FREE, *RETIRED))
    }


def is_longer(saved: Config, new: Config) -> bool:
    """Whether a config is that of a run, but for more epochs (or, where it counts those, more steps)."""
    differing = set(_differing(saved, new))
    if not differing or not differing <= LENGTH or new.stages or bool(saved.steps) != bool(new.steps):
        return False
    return new.steps > saved.steps if new.steps else new.epochs > saved.epochs


def stages(config: Config) -> list[Config]:
    """The config of each stage: the whole config, overridden by the stage's own keys. One stage where none is given.

    Raises:
        UsageError: a stage names a key that the config does not have, or one that holds for the whole run.
    """
    merged = []
    known = [*names(config), "keep_optimiser"]
    for stage in config.stages or ({},):
        changed = ConfigDict(json.loads(config.to_json()))
        changed.keep_optimiser = False
        overrides = ConfigDict(dict(stage))
        for key in names(overrides):
            if key not in known:
                raise UsageError(f'No config key "{key}" in config.stages.{near(key, known)}')
            if not isinstance(_get(overrides, key), ConfigDict) and not re.fullmatch(STAGED, key):
                raise UsageError(
                    f'"{key}" holds for the whole run, so config.stages cannot set it; a stage sets epochs, steps, '
                    "optim, loss, weights, ramps, chunk, block, keep_optimiser, and of data its sampler, batch_size, "
                    "captions_per_image and drop_last."
                )
        if "epochs" in overrides:
            changed.steps = 0
        changed.unlock()
        changed.update(overrides)
        merged.append(changed)
    return merged
