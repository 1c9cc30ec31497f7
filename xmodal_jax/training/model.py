"""From a config and what the data answers to the model, and to an example of what it reads."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax import config as configs
from xmodal_jax.data import pixels
from xmodal_jax.data.records import Dataset
from xmodal_jax.errors import UsageError
from xmodal_jax.matcher import Matcher
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.types import FACT_FIELDS, Batch, Config, Facts, Feature, Images, Inputs, Texts


@functools.cache
def model_class(name: str, key: str = "config.model") -> type[Matcher]:
    """Class ``Model`` of the module ``xmodal_jax.models.<name>``, or of a ``.py`` file of the user's.

    Args:
        key: where the config names it, for what is said of one that cannot be had.

    Raises:
        UsageError: no such module or file, or one without that class.
    """
    path = Path(name)
    try:
        if path.suffix == ".py":
            if not path.is_file():
                raise UsageError(f"{path}: no such model file ({key}.name); give its path.")
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
        raise UsageError(f'No model "{name}" ({key}.name): {error}.') from error
    except Exception as error:  # a model file is the user's Python: whatever it raises is about the file
        raise UsageError(f"Model file {name} cannot be loaded: {type(error).__name__}: {error}.") from error
    model = getattr(module, "Model", None)
    if not (isinstance(model, type) and issubclass(model, Matcher)):
        raise UsageError(f"{name} has no class Model(Matcher), so it is no model file.")
    return model


def make_model(config: Config, facts: Facts) -> Matcher:
    """The model of ``config.model``; fields that are named like a fact and left out there are filled from ``facts``.

    A field that is a group with a name is a system too, and the model gets what is made of it in the same way.

    Raises:
        UsageError: no such model, or a field that it does not have.
    """
    return _make_model(config.model, facts, "config.model")


def _make_model(group: Config, facts: Facts, key: str) -> Matcher:
    fields = {name: tuple(x) if isinstance(x, list) else x for name, x in group.items()}  # JSON has no tuples
    systems = [name for name, value in fields.items() if configs.is_system(value)]
    fields |= {name: _make_model(fields[name], facts, f"{key}.{name}") for name in systems}
    model = model_class(str(fields.pop("name")), key)
    names = {field.name for field in dataclasses.fields(model)}  # type: ignore[arg-type]
    known = {name: getattr(facts, name) for name in FACT_FIELDS if name in names}
    try:
        return model(**{**known, **fields})
    except TypeError as error:
        raise UsageError(f"{key}: {error}.") from error


def inputs_of(config: Config) -> Inputs:
    """What the config's model reads; no data is needed to tell."""
    return make_model(config, Facts()).inputs


def facts_of(dataset: Dataset, inputs: Inputs, config: Config, vocabulary: Vocabulary | None) -> Facts:
    """What a data set answers to a model's inputs.

    Raises:
        UsageError: a feature that the data set does not have, or more regions than the model takes.
        DataError: a model that reads pixels, and no pictures.
    """
    names = (*inputs.image, *inputs.further)
    stored = [name for name in names if name != pixels.NAME or name in dataset.features]
    images = {
        name: _feature(dataset, "features", name) if name in stored else pixels.feature_of(dataset, config)
        for name in names
    }
    texts = {name: _feature(dataset, "text_features", name) for name in inputs.text if name != "token"}
    specs = [dataset.features[name] for name in stored]
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
    known = dataset.features if kind == "features" else dataset.manifest.get(kind, {})
    if name not in known:
        have = ", ".join(known) or "none"
        what, key, make = {
            "features": (
                "feature",
                "feature",
                "import it, or add it with `xmodal data attach` or `xmodal data concepts`",
            ),
            "text_features": ("text vectors", "text", "make them with `xmodal data text-features`"),
        }[kind]
        raise UsageError(
            f'{dataset.directory} has no {what} "{name}", only {have}; set --config.model.{key} or {make}.'
        )
    spec = known[name]
    return Feature((None, spec["shape"][-1]) if "regions" in spec else (spec["shape"][-1],), spec["dtype"])


def dtype_of(feature: Feature) -> Any:
    """The dtype in which a model is traced: pixels as they are, all else in float32."""
    return np.uint8 if feature.dtype == "uint8" else np.float32


def example_batch(inputs: Inputs, facts: Facts, *, images: int = 1, words: int = 8) -> Batch:
    """A batch of zeros of the right shapes to initialise, trace and export from, one caption an image."""
    features = {
        name: np.zeros([images, *(facts.regions if n is None else n for n in feature.shape)], dtype_of(feature))
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
