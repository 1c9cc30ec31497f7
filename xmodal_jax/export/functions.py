"""The functions of a model as StableHLO by `jax.export`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from xmodal_jax.errors import UsageError
from xmodal_jax.inference import layout
from xmodal_jax.matcher import Matcher
from xmodal_jax.training.checkpoint import flat
from xmodal_jax.training.model import dtype_of, example_batch
from xmodal_jax.training.optim import path_name
from xmodal_jax.types import Facts, Images, Texts

Struct = jax.ShapeDtypeStruct


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


def export_model(model: Matcher, variables: Any, facts: Facts) -> dict[str, Function]:
    """Each function of ``model``, by name; ``facts`` gives the shapes of what it reads."""
    return Exporter(model, variables, facts).functions()


class Exporter:
    """Traces the functions of one model with symbolic numbers of items, regions and words."""

    def __init__(self, model: Matcher, variables: Any, facts: Facts):
        self.model, self.facts, self.inputs = model, facts, model.inputs
        self.names, values = zip(*flat(variables).items(), strict=True)
        self.parameters = [Struct(np.shape(value), value.dtype) for value in values]
        self.tree = jax.tree.structure(variables)
        example = example_batch(self.inputs, facts, images=2)
        self.sides = (example.image, example.text)
        self.image, self.text = (
            jax.eval_shape(lambda v, x, m=method: model.apply(v, x, train=False, method=m)[0], variables, items)
            for method, items in zip(("encode_image", "encode_text"), self.sides, strict=True)
        )
        # A model with parameters for each region takes no more of them; one that reads the start of a caption alone
        # would have a symbolic minimum for its length, which no other function could take.
        most = {"r": self.inputs.most_regions, "w": self.inputs.most_words}
        self.limits = {size: [f"{size} <= {count}"] for size, count in most.items() if count is not None}

    def functions(self) -> dict[str, Function]:
        table = {
            "encode_image": self.build(
                lambda p, *args: jax.tree.leaves(
                    self.apply(p, self.images(*args), method="encode_image", train=False)[0]
                ),
                leaf_names(self.image),
                self.image_args,
                self.limits.get("r", ()),
            ),
            "encode_text": self.build(
                lambda p, *args: jax.tree.leaves(
                    self.apply(p, self.texts(*args), method="encode_text", train=False)[0]
                ),
                leaf_names(self.text),
                self.text_args,
                self.limits.get("w", ()),
            ),
        }

        def pair_args(scope):
            avals = (table[name].exported.out_avals for name in ("encode_image", "encode_text"))
            return [[_struct(str(a.shape)[1:-1], a.dtype, scope) for a in leaves] for leaves in avals]

        structures = jax.tree.structure(self.image), jax.tree.structure(self.text)

        def on_pair(method):
            def function(parameters, image, text):
                pair = (jax.tree.unflatten(*side) for side in zip(structures, (image, text), strict=True))
                return self.apply(parameters, *pair, method=method)

            return function

        limit = [
            line
            for size, name in (("r", "encode_image"), ("w", "encode_text"))
            if size in str([a.shape for a in table[name].exported.out_avals])
            for line in self.limits.get(size, ())
        ]
        table["score"] = self.build(on_pair("score"), ["score"], pair_args, limit)
        if self.model.has("attention"):
            with contextlib.suppress(UsageError):  # a variant of the system without any (DeFrag)
                table["attention"] = self.build(on_pair("attention"), ["weight"], pair_args, limit)
        if self.model.has("glimpses"):
            table["glimpses"] = self.build(
                lambda p, feature, seen, text, read: list(
                    self.apply(p, self.images(feature, seen), self.texts(text, read), method="glimpses")
                ),
                ["weight/region", "weight/word"],
                lambda scope: (*self.image_args(scope), *self.text_args(scope)),
                [line for size in "rw" for line in self.limits.get(size, ())],
            )
        return table | (self.speaking() if self.model.has("begin") else {})

    def speaking(self) -> dict[str, Function]:
        """What :mod:`xmodal_jax.text.generation` calls: the first state from an image or a caption, and one word."""
        table, carry = {}, None
        sides = {"begin_image": (self.images, self.image_args), "begin_text": (self.texts, self.text_args)}
        for (name, (source, args)), example in zip(sides.items(), self.sides, strict=True):
            try:
                carry = jax.eval_shape(lambda p, x: self.apply(p, x, method="begin"), self.parameters, example)
            except UsageError:  # it speaks of the other side only
                continue
            table[name] = self.build(
                lambda p, *arrays, source=source: jax.tree.leaves(self.apply(p, source(*arrays), method="begin")),
                leaf_names(carry),
                args,
                self.limits.get("r" if name == "begin_image" else "w", ()),
            )
        state, structure = jax.tree.leaves(carry), jax.tree.structure(carry)

        def word(parameters, carry, token):
            carry, logits = self.apply(parameters, jax.tree.unflatten(structure, carry), token, method="word")
            return [*jax.tree.leaves(carry), logits]

        def word_args(scope):
            carry = [_struct(", ".join(["n", *map(str, leaf.shape[1:])]), leaf.dtype, scope) for leaf in state]
            return carry, _struct("n", np.int32, scope)

        table["word"] = self.build(word, [*leaf_names(carry), "logits"], word_args)
        return table

    def apply(self, parameters: Any, *args: Any, **options: Any) -> Any:
        return self.model.apply(jax.tree.unflatten(self.tree, parameters), *args, **options)

    def images(self, feature: Any, mask: Any) -> Images:
        return Images(feature, mask, jnp.zeros(mask.shape[:1], jnp.int32))

    def texts(self, text: Any, mask: Any) -> Texts:
        zero = jnp.zeros(mask.shape[:1], jnp.int32)
        dense = {name: value for name, value in text.items() if name != "token"}
        return Texts(text.get("token"), mask, zero, zero, zero, dense or None)

    def image_args(self, scope):
        shapes = {name: ["b", *("r" if n is None else str(n) for n in f.shape)] for name, f in self.facts.image.items()}
        dtype = {name: dtype_of(feature) for name, feature in self.facts.image.items()}
        feature = {name: _struct(", ".join(shape), dtype[name], scope) for name, shape in shapes.items()}
        regions = "r" if any("r" in shape for shape in shapes.values()) else "1"
        return feature, _struct(f"b, {regions}", bool, scope)

    def text_args(self, scope):
        text = {name: _struct(f"c, {f.shape[-1]}", np.float32, scope) for name, f in self.facts.text.items()}
        if "token" not in self.inputs.text:
            return text, _struct("c, 1", bool, scope)
        return text | {"token": _struct("c, w", np.int32, scope)}, _struct("c, w", bool, scope)

    def build(
        self,
        function: Callable[..., Any],
        leaves: list[str],
        args: Callable[[export.SymbolicScope], Any],
        constraints: Sequence[str] = (),
    ) -> Function:
        """``function(parameters, *args)`` as StableHLO, with the parameters that it reads."""
        keep = used(function, self.parameters, *args(export.SymbolicScope(constraints)))

        def pruned(parameters, *rest):
            read = iter(parameters)  # of those that are not used only the shape counts
            whole = [
                next(read) if kept else jnp.zeros(x.shape, x.dtype)
                for x, kept in zip(self.parameters, keep, strict=True)
            ]
            return function(whole, *rest)

        chosen = [index for index, kept in enumerate(keep) if kept]
        out = export.export(jax.jit(pruned), platforms=layout.PLATFORMS)(
            [self.parameters[index] for index in chosen], *args(export.SymbolicScope(constraints))
        )
        return Function(out, [self.names[index] for index in chosen], leaves, pruned)


def _struct(shape: str, dtype: Any, scope: export.SymbolicScope) -> Struct:
    return Struct(export.symbolic_shape(shape.rstrip(","), scope=scope), dtype)


def leaf_names(tree: Any) -> list[str]:
    """Names of a representation's arrays, ``region/feature``; a single array is called ``embedding``."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return ["embedding"] if names == [""] else names
