"""The rows of systems that run a network over each pair: sm-LSTM and m-CNN."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.bench.material import MARGIN, B, Case, D, W, fragments, loss_of, unit, word_counts
from xmodal_jax.similarity.pairwise import Block, pairwise
from xmodal_jax.types import Batch, Images, Texts


def selective(hardness: float | None, few: int = 16, hidden: int = 1024) -> Case:
    """Scores of sm-LSTM at the widths of its config, or its loss with gradients of all weights, regions and words."""
    from xmodal_jax.models.smlstm import Pairs
    from xmodal_jax.training.checkpoint import flat

    sizes, steps = (hidden // 2, hidden, hidden // 4, hidden), 3
    region, word, length = fragments(B, B)
    mask, whole = np.arange(W) < length[:, None], unit(np.random.default_rng(1), B, D)
    pairs = Pairs("joint", "mul", sizes, steps, jnp.dtype("float32"))

    def items(pairs: Any, region: Any, whole: Any, word: Any) -> tuple[Any, Any]:
        last = jnp.take_along_axis(word, (length - 1)[:, None, None], axis=1)[:, 0]
        return pairs.image(region, np.ones(region.shape[:2], bool), whole)[0], pairs.text(word, mask, last)[0]

    def trace(pairs: Any, *sides: Any) -> Any:
        return pairs.score(*items(pairs, *sides))

    shapes: Any = jax.eval_shape(partial(pairs.init, method=trace), jax.random.key(0), region, whole, word)
    random = np.random.default_rng(2)
    weights: Any = jax.tree.map(
        lambda x: random.normal(scale=x.shape[0] ** -0.5, size=x.shape).astype(np.float32), shapes["params"]
    )

    def score(weights: Any, region: jax.Array, whole: jax.Array, word: jax.Array) -> jax.Array:
        image, text = pairs.apply({"params": weights}, region, whole, word, method=items)
        apply: Any = pairs.apply
        return pairwise(lambda v, *pair: apply({"params": v}, *pair, method="score"), weights, image, text)

    function = score if hardness is None else jax.value_and_grad(loss_of(score, hardness), argnums=(0, 1, 2, 3))

    def loop() -> Callable[[], Any]:
        from xmodal_jax.bench import loops

        some = slice(None, None, -(-B // few))  # of all lengths
        captions = [caption[:n].copy() for caption, n in zip(word[some], length[some], strict=True)]
        sides = [flat(weights), region, whole]
        return loops.matcher(loops.selective, sides, captions, {"steps": steps}, margin=MARGIN, hardness=hardness)

    few = min(few, B)
    note = f"loop on {few} of the {B} captions, scaled per pair"
    return Case(function, (weights, region, whole, word), loop=loop, loop_scale=B / few, repeat=1, note=note)


def mcnn(level: str, hardness: float | None, size: int = B) -> Case:
    """Scores of m-CNN from features and words, or its loss with gradients of all parameters, at the paper's widths."""
    from xmodal_jax.models.mcnn import LEVELS, Model
    from xmodal_jax.training.step import initialise

    features, vocabulary, positions = 4096, 8000, 30
    random = np.random.default_rng(0)
    mask = np.arange(positions) < word_counts(random, size)[:, None]
    token = np.where(mask, random.integers(4, vocabulary, mask.shape), 0).astype(np.int32)
    feature = np.abs(random.standard_normal((size, features), np.float32))
    number = np.arange(size, dtype=np.int32)
    batch = Batch(Images({"global": feature}, mask[:, :1], number), Texts(token, mask, number, number, number))
    model = Model(vocabulary, level)
    params = initialise(model, jax.tree.map(lambda leaf: leaf[:1], batch), 0).params

    def score(params: Any, batch: Batch) -> jax.Array:
        def apply(variables: Any, *args: Any, **options: Any) -> Any:
            return model.apply({"params": variables}, *args, **options)

        image, _ = apply(params, batch.image, method="encode_image", train=False)
        text, _ = apply(params, batch.text, method="encode_text", train=False)
        return pairwise(partial(apply, method="score"), params, image, text, block=Block(128, 1, 32))

    def loop() -> Callable[[], Any]:
        from xmodal_jax.bench import loops

        join, tree = LEVELS.index(level), jax.tree.map(np.array, params)
        layers = [tree["image_encoder"], *(tree[f"layers_{i}"] for i in range(4)), tree["final"]]
        joint = layers[1 + join]
        joint["kernel"] = np.vstack([joint["kernel"], tree["image_part"]["kernel"]])
        sides = [feature, tree["embed"]["embedding"], *(layer[name] for layer in layers for name in ("kernel", "bias"))]
        options = {"token": loops.torch.from_numpy(token).long(), "join": join}
        return loops.matcher(loops.mcnn, sides, None, options, margin=0.5, hardness=hardness)

    function = score if hardness is None else jax.value_and_grad(loss_of(score, hardness, 0.5))
    return Case(function, (params, batch), loop=loop, note=f"B = {size}")
