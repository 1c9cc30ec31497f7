"""From a config and what the data answers to the model, and to an example of what it reads."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np

from xmodal_jax.data.records import Dataset
from xmodal_jax.errors import UsageError
from xmodal_jax.matcher import Matcher
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.types import FACT_FIELDS, Batch, Config, Facts, Feature, Images, Inputs, Texts


@functools.cache
def model_class(name: str) -> type[Matcher]:
    """Class ``Model`` of the module ``xmodal_jax.models.<name>``, or of a ``.py`` file of the user's.

    Raises:
        UsageError: no such module or file, or one without that class.
    """
    path = Path(name)
    try:
        if path.suffix == ".py":
            if not path.is_file():
                raise UsageError(f"{path}: no such model file (config.model.name); give its path.")
            key = f"_model_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
            spec = importlib.util.spec_from_file_location(key, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[key] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(f"xmodal_jax.models.{name}")
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        raise UsageError(f'No model "{name}" (config.model.name): {error}.') from error
    except Exception as error:  # a model file is the user's Python: whatever it raises is about the file
        raise UsageError(f"Model file {name} cannot be loaded: {type(error).__name__}: {error}.") from error
    model = getattr(module, "Model", None)
    if not (isinstance(model, type) and issubclass(model, Matcher)):
        raise UsageError(f"{name} has no class Model(Matcher), so it is no model file.")
    return model


def make_model(config: Config, facts: Facts) -> Matcher:
    """The model of ``config.model``; fields that are named like a fact and left out there are filled from ``facts``.

    Raises:
        UsageError: no such model, or a field that it does not have.
    """
    fields = {name: tuple(x) if isinstance(x, list) else x for name, x in config.model.items()}  # JSON has no tuples
    model = model_class(fields.pop("name"))
    names = {field.name for field in dataclasses.fields(model)}  # type: ignore[arg-type]
    known = {name: getattr(facts, name) for name in FACT_FIELDS if name in names}
    try:
        return model(**{**known, **fields})
    except TypeError as error:
        raise UsageError(f"config.model: {error}.") from error


def inputs_of(config: Config) -> Inputs:
    """What the config's model reads; no data is needed to tell."""
    return make_model(config, Facts()).inputs


def facts_of(dataset: Dataset, inputs: Inputs, config: Config, vocabulary: Vocabulary | None) -> Facts:
    """What a data set answers to a model's inputs.

    Raises:
        UsageError: a feature that the data set does not have, or more regions than the model takes.
    """
    images = {name: _feature(dataset, "features", name) for name in inputs.image}
    texts = {name: _feature(dataset, "text_features", name) for name in inputs.text if name != "token"}
    specs = [dataset.manifest["features"][name] for name in inputs.image]
    regions = max((spec["regions"][1] for spec in specs if "regions" in spec), default=1)
    if inputs.most_regions is not None and regions > inputs.most_regions:
        raise UsageError(
            f"{dataset.directory} has images of up to {regions} regions, the model takes {inputs.most_regions}; "
            f"set --config.model.regions={regions}."
        )
    return Facts(
        images,
        texts,
        len(vocabulary) if vocabulary else 0,
        len(dataset.split("train")) if inputs.classes else 0,
        regions,
        max(map(int, config.data.lengths)) if vocabulary else 1,
    )


def _feature(dataset: Dataset, kind: str, name: str) -> Feature:
    known = dataset.manifest.get(kind, {})
    if name not in known:
        have = ", ".join(known) or "none"
        what, key, make = {
            "features": ("feature", "feature", "import it"),
            "text_features": ("text vectors", "text", "make them with `xmodal data text-features`"),
        }[kind]
        raise UsageError(
            f'{dataset.directory} has no {what} "{name}", only {have}; set --config.model.{key} or {make}.'
        )
    spec = known[name]
    return Feature((None, spec["shape"][-1]) if "regions" in spec else (spec["shape"][-1],), spec["dtype"])


def example_batch(inputs: Inputs, facts: Facts, *, images: int = 1, words: int = 8) -> Batch:
    """A batch of zeros of the right shapes to initialise, trace and export from, one caption an image."""
    features = {
        name: np.zeros([images, *(facts.regions if size is None else size for size in feature.shape)], np.float32)
        for name, feature in facts.image.items()
    }
    mask = np.ones((images, facts.regions if any(None in f.shape for f in facts.image.values()) else 1), bool)
    number = np.arange(images, dtype=np.int32)

    def texts(count: int) -> Texts:
        width = min(words, facts.words) if facts.vocabulary else 1
        token = np.zeros((count, width), np.int32) if "token" in inputs.text else None
        dense = {name: np.zeros((count, feature.shape[-1] or 1), np.float32) for name, feature in facts.text.items()}
        row = np.arange(count, dtype=np.int32) % images
        return Texts(token, np.ones((count, width), bool), row, row, np.arange(count, dtype=np.int32), dense or None)

    roles = {role: texts(images * count if role == "target" else count) for role, count in inputs.captions.items()}
    return Batch(Images(features, mask, number), texts(images), **roles)
