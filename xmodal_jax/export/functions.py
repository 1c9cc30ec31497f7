"""The functions of a model as StableHLO by `jax.export`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from xmodal_jax.inference import layout
from xmodal_jax.matcher import Matcher
from xmodal_jax.training.checkpoint import flat
from xmodal_jax.training.optim import path_name
from xmodal_jax.types import Images, Texts

Struct = jax.ShapeDtypeStruct
Features = Mapping[str, tuple[int | None, ...]]  # of one image: (F,), or (None, F) for any number of regions


class Function(NamedTuple):
    """An exported function with the names of the parameters that it takes first, as a list of arrays."""

    exported: export.Exported
    parameters: list[str]
    leaves: list[str]  # names of what it gives
    call: Callable[..., Any]  # what was exported


def used(function: Callable[..., Any], *args: Any) -> list[bool]:
    """For each array of the first argument, whether the outcome of ``function(*args)`` depends on it."""
    jaxpr: Any = jax.make_jaxpr(function)(*args).jaxpr
    needed = {id(v) for v in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in equation.outvars):
            needed |= {id(v) for v in equation.invars}
    return [id(v) in needed for v in jaxpr.invars[: len(jax.tree.leaves(args[0]))]]


def export_model(
    model: Matcher, variables: Any, features: Features, example: tuple[Images, Texts]
) -> dict[str, Function]:
    """Each function of ``model``, by name; ``example`` is an image and a caption of the right sizes to trace with."""
    names, values = zip(*flat(variables).items(), strict=True)
    treedef = jax.tree.structure(variables)
    image, text = (
        jax.eval_shape(lambda v, x, m=method: model.apply(v, x, train=False, method=m)[0], variables, own)
        for method, own in zip(("encode_image", "encode_text"), example, strict=True)
    )
    structures = jax.tree.structure(image), jax.tree.structure(text)

    def encode_image(parameters, feature, mask):
        own = Images(feature, mask, jnp.zeros(mask.shape[:1], jnp.int32))
        out = model.apply(jax.tree.unflatten(treedef, parameters), own, train=False, method="encode_image")
        return jax.tree.leaves(out[0])

    def encode_text(parameters, token, mask):
        zero = jnp.zeros(mask.shape[:1], jnp.int32)
        own = Texts(token, mask, zero, zero, zero)
        out = model.apply(jax.tree.unflatten(treedef, parameters), own, train=False, method="encode_text")
        return jax.tree.leaves(out[0])

    def on_pair(method):
        def function(parameters, image, text):
            own = (jax.tree.unflatten(*pair) for pair in zip(structures, (image, text), strict=True))
            return model.apply(jax.tree.unflatten(treedef, parameters), *own, method=method)

        return function

    # A model with parameters for each region (SGRAF) takes no more regions than it has.
    most = getattr(model, "regions", None)
    limit = [f"r <= {most}"] if isinstance(most, int) else []

    def build(
        function: Callable[..., Any], leaves: list[str], args: Callable[[export.SymbolicScope], Any], *constraints: str
    ) -> Function:
        structs = [Struct(np.shape(value), value.dtype) for value in values]
        keep = used(function, structs, *args(export.SymbolicScope(constraints)))

        def pruned(parameters, *rest):
            own = iter(parameters)  # of those that are not used only the shape counts
            whole = [next(own) if kept else jnp.zeros(x.shape, x.dtype) for x, kept in zip(structs, keep, strict=True)]
            return function(whole, *rest)

        chosen = [index for index, kept in enumerate(keep) if kept]
        out = export.export(jax.jit(pruned), platforms=layout.PLATFORMS)(
            [structs[index] for index in chosen], *args(export.SymbolicScope(constraints))
        )
        return Function(out, [names[index] for index in chosen], leaves, pruned)

    def image_args(scope):
        shapes = {name: ["b", *("r" if n is None else str(n) for n in shape)] for name, shape in features.items()}
        feature = {name: _struct(", ".join(shape), np.float32, scope) for name, shape in shapes.items()}
        regions = "r" if any(None in shape for shape in features.values()) else "1"
        return feature, _struct(f"b, {regions}", bool, scope)

    def text_args(scope):
        return _struct("c, w", np.int32, scope), _struct("c, w", bool, scope)

    made = {
        "encode_image": build(encode_image, leaf_names(image), image_args, *limit),
        "encode_text": build(encode_text, leaf_names(text), text_args),
    }

    def pair_args(scope):
        avals = (made[name].exported.out_avals for name in ("encode_image", "encode_text"))
        return [[_struct(str(a.shape)[1:-1], a.dtype, scope) for a in own] for own in avals]

    pair_limit = limit if "r" in str([a.shape for a in made["encode_image"].exported.out_avals]) else []
    made["score"] = build(on_pair("score"), ["score"], pair_args, *pair_limit)
    if type(model).attention is not Matcher.attention:
        made["attention"] = build(on_pair("attention"), ["weight"], pair_args, *pair_limit)
    return made


def _struct(shape: str, dtype: Any, scope: export.SymbolicScope) -> Struct:
    return Struct(export.symbolic_shape(shape.rstrip(","), scope=scope), dtype)


def leaf_names(tree: Any) -> list[str]:
    """Names of a representation's arrays, ``region/feature``; a single array is called ``embedding``."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return ["embedding"] if names == [""] else names


def example_of(features: Features, regions: int, words: int) -> tuple[Images, Texts]:
    """One image and one caption of zeros."""
    own = {
        name: np.zeros((1, *(regions if n is None else n for n in shape)), np.float32)
        for name, shape in features.items()
    }
    regions = regions if any(None in shape for shape in features.values()) else 1
    zero = np.zeros(1, np.int32)
    mask = np.ones((1, words), bool)
    return Images(own, np.ones((1, regions), bool), zero), Texts(np.zeros((1, words), np.int32), mask, zero, zero, zero)
