"""`xmodal export --onnx`: the functions of a bundle as ONNX too, for runtimes without JAX.

Conversion is the work of jax2onnx (extra ``onnx``); parameters are constants of the graph. Numbers of images and
captions stay free, and those of regions and words too, except where a graph needs to know them: it then takes
the most of the bundle, and callers pad. What comes out is run by onnxruntime at two sizes and held against the live
function before it is kept.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from xmodal_jax.errors import UsageError, require
from xmodal_jax.export.functions import Function
from xmodal_jax.layers.recurrent import scanned

TOLERANCE = 1e-5  # of the largest entry; both compute in float32, in another order
SIZES = (
    {"b": 3, "c": 2, "r": 5, "w": 9, "n": 3},
    {"b": 2, "c": 4, "r": 7, "w": 6, "n": 2},
)  # at which a graph is checked


def input_names(name: str, functions: Mapping[str, Function]) -> list[str]:
    """What the inputs of a graph are called: features, ``token`` and ``mask``, or what encoders and decoders give."""
    if name in ("encode_image", "encode_text", "begin_image", "begin_text"):
        exported = functions[name].exported
        args, _ = jax.tree.unflatten(exported.in_tree, range(len(exported.in_avals)))
        return [*sorted(args[1]), "mask"]
    if name == "glimpses":
        exported = functions[name].exported
        (_, image, _, text, _), _ = jax.tree.unflatten(exported.in_tree, range(len(exported.in_avals)))
        return [*sorted(image), "image/mask", *sorted(text), "text/mask"]
    if name == "word":
        return [*(f"state/{leaf}" for leaf in functions[name].leaves[:-1]), "token"]
    return [*output_names("encode_image", functions), *output_names("encode_text", functions)]


def output_names(name: str, functions: Mapping[str, Function]) -> list[str]:
    """What the outputs of a graph are called: ``image`` and ``text``, or ``image/PART`` where an item has parts."""
    leaves = functions[name].leaves
    side = {"encode_image": "image", "encode_text": "text"}.get(name)
    if side is None:
        return leaves
    return [side if leaf == "embedding" else f"{side}/{leaf}" for leaf in leaves]


def convert(
    name: str, functions: Mapping[str, Function], parameters: Mapping[str, np.ndarray], most: Mapping[str, int]
) -> tuple[bytes, dict[str, int]]:
    """One function as an ONNX model, and the sizes that had to be fixed in it.

    Args:
        most: the most regions "r" and words "w".

    Raises:
        UsageError: the extra is not installed, or the graph cannot be converted or does not compute the same.
    """
    with quiet():
        require("jax2onnx", "onnx")
    require("onnxruntime", "onnx")
    function = functions[name]
    arrays = [np.asarray(parameters[key]) for key in function.parameters]
    avals = function.exported.in_avals[len(arrays) :]

    def call(*args: Any) -> list[Any]:
        tree, _ = jax.tree.unflatten(function.exported.in_tree, [*arrays, *args])
        return jax.tree.leaves(function.call(*tree))

    def named(*args: Any) -> list[Any]:  # an input that is given back unchanged cannot have two names
        return [out.astype(np.int32) > 0 if out.dtype == bool else out for out in call(*args)]

    why = ""
    for fixed in ({}, dict(most)):
        specs: Any = [_Spec(aval, fixed) for aval in avals]
        names: Any = {"input_names": input_names(name, functions), "output_names": output_names(name, functions)}
        try:
            with quiet(), scanned():
                from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]  (on 3.11 alone)

                model: Any = to_onnx(named, specs, **names)
            model = model.SerializeToString()
            worst = max(_error(model, call, avals, {**sizes, **fixed}) for sizes in SIZES)
        except Exception as error:  # of many kinds; all mean the same for the user
            why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
            continue
        if worst <= TOLERANCE:
            return model, fixed
        why = f"it differs by {worst:.1e} of the largest number, more than {TOLERANCE:.0e}"
    raise UsageError(
        f"{name} of this system cannot become ONNX ({why}); leave out --onnx, the bundle itself does not need it."
    )


class _Spec:
    """Shape and type of an input, free sizes by name, as jax2onnx takes them."""

    def __init__(self, aval: Any, fixed: Mapping[str, int]):
        names: list[Any] = [size if isinstance(size, int) else str(size)[0] for size in aval.shape]
        self.shape = tuple(fixed.get(name, name) for name in names)
        self.dtype = np.dtype(aval.dtype)


def draw(avals: Sequence[Any], sizes: Mapping[str, int]) -> list[np.ndarray]:
    """Inputs of the given sizes: normal numbers, pixels, small token ids, and masks whose first entries are real."""
    rng = np.random.default_rng(0)
    arrays = []
    for aval in avals:
        shape = [size if isinstance(size, int) else sizes[str(size)[0]] for size in aval.shape]
        if aval.dtype == bool:
            arrays.append(np.arange(shape[-1]) < rng.integers(1, shape[-1] + 1, (*shape[:-1], 1)))
        elif aval.dtype == np.uint8:
            arrays.append(rng.integers(0, 256, shape, np.uint8))
        elif np.issubdtype(aval.dtype, np.integer):
            arrays.append(rng.integers(1, 4, shape).astype(aval.dtype))
        else:
            arrays.append(rng.normal(size=shape).astype(aval.dtype))
    return arrays


def _error(model: bytes, call: Any, avals: Sequence[Any], sizes: Mapping[str, int]) -> float:
    """Largest difference between onnxruntime and the live function, relative to the largest number of an output."""
    import onnxruntime  # pyright: ignore[reportMissingImports]  (on 3.11 alone)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    args = draw(avals, sizes)
    feed = {node.name: arg for node, arg in zip(session.get_inputs(), args, strict=True)}
    worst = 0.0
    results: Any = session.run(None, feed)
    for got, live in zip(results, call(*args), strict=True):
        want = np.asarray(live, np.float64)
        if np.shape(got) != want.shape:
            raise ValueError(f"a result is {np.shape(got)} instead of {want.shape}")
        worst = max(worst, float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)))
    return worst


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the converter reports of its plug-ins is of no use to the user."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
