"""The rows of `xmodal bench`: what is run, on what data, and what it is compared with.

One core, float32, B = 128 images of R = 36 regions, D = 1024, captions of 7 to 20 words (log-normal, 13 on average),
unless a row says otherwise. A loop that would take minutes is timed on fewer pairs and scaled; ``note`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax import losses, similarity
from xmodal_jax.losses import Pairing, chunked
from xmodal_jax.similarity.pairwise import pairwise
from xmodal_jax.types import Batch, Fragments, Images, Texts

B, R, D, W = 128, 36, 1024, 20
MARGIN = 0.2
SCAN = {"t2i": {"smooth": 9.0, "lse": 6.0}, "i2t": {"smooth": 4.0, "lse": 5.0}}


class Case(NamedTuple):
    """Ours: a function, compiled here, and its arguments. The loop is a thunk, made only where torch is installed."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    flop: float | None = None  # that the task needs, whoever does it
    loop: Callable[[], Callable[[], Any]] | None = None
    scale: float = 1.0  # time of the whole task over that of what `function` does
    loop_scale: float = 1.0  # likewise of the loop
    repeat: int = 3
    note: str = ""
    compiled: bool = True  # by the benchmark; else the function does that itself
    facts: Mapping[str, Any] = MappingProxyType({})


def unit(random: np.random.Generator, *shape: int) -> np.ndarray:
    x = random.standard_normal(shape, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def word_counts(random: np.random.Generator, count: int) -> np.ndarray:
    """[C] words of captions as long as those of COCO."""
    return np.clip(np.round(np.exp(random.normal(np.log(12.8), 0.28, count))), 7, W).astype(int)


def fragments(images: int, captions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit regions [B, R, D], unit words [C, W, D] and numbers of words [C], long captions first."""
    random = np.random.default_rng(0)
    length = -np.sort(-word_counts(random, captions))
    word = unit(random, captions, W, D) * (np.arange(W) < length[:, None])[..., None]
    return unit(random, images, R, D), word, length


def scan_scores(direction: str, region: jax.Array, word: jax.Array, mask: jax.Array) -> jax.Array:
    image: dict[str, Any] = {"region": Fragments(region, jnp.ones(region.shape[:2], bool))}
    if direction == "t2i":
        image["gram"] = similarity.gram(region)
    options = SCAN[direction]

    def score(variables: Any, image: Any, text: Any) -> jax.Array:
        gram = image.get("gram")
        return similarity.cross_attention(*image["region"], *text, direction=direction, context_gram=gram, **options)

    return pairwise(score, {}, image, Fragments(word, mask))


def loss_of(score: Callable[..., jax.Array], hardness: float) -> Callable[..., jax.Array]:
    def loss(*args: jax.Array) -> jax.Array:
        scores = score(*args)
        positive = similarity.correspondence(jnp.arange(scores.shape[1]), scores.shape[0])
        return losses.triplet(scores, positive, margin=MARGIN, hardness=hardness)

    return loss


def scan(direction: str, hardness: float | None, images: int = B, captions: int = B) -> Case:
    """Scores of SCAN, or its loss with gradients of regions and words."""
    region, word, length = fragments(images, captions)
    mask = np.arange(W) < length[:, None]
    score = partial(scan_scores, direction)
    function = score if hardness is None else jax.value_and_grad(loss_of(score, hardness), argnums=(0, 1))

    def loop() -> Callable[[], Any]:
        from xmodal_jax.bench import loops

        words = [caption[:n].copy() for caption, n in zip(word, length, strict=True)]
        options = {"direction": direction, **SCAN[direction]}
        return loops.matcher(loops.cross_attention, [region], words, options, margin=MARGIN, hardness=hardness)

    return Case(function, (region, word, mask), 2.0 * images * R * length.sum() * D, loop)


def adapt(hardness: float | None) -> Case:
    """Scores of ADAPT (captions filter regions), or its loss with gradients of fragments and filters."""
    random = np.random.default_rng(0)
    few, smooth = 32, 10.0
    region = random.standard_normal((B, R, D), np.float32)
    scale, shift = (1.0 + 0.1 * random.standard_normal((B, D), np.float32) for _ in "ab")
    query = unit(random, B, D)

    def score(region: jax.Array, scale: jax.Array, shift: jax.Array, query: jax.Array) -> jax.Array:
        def pair(variables: Any, image: Any, text: Any) -> jax.Array:
            return similarity.fovea(*image, *text, smooth=smooth)

        image = Fragments(region, jnp.ones(region.shape[:2], bool))
        return pairwise(pair, {}, image, (scale, shift, query))

    function = score if hardness is None else jax.value_and_grad(loss_of(score, hardness), argnums=(0, 1, 2, 3))

    def loop() -> Callable[[], Any]:
        from xmodal_jax.bench import loops

        sides = [region.swapaxes(1, 2).copy(), *(x[:few].copy() for x in (scale, shift, query))]
        return loops.matcher(loops.fovea, sides, None, {"smooth": smooth}, margin=MARGIN, hardness=hardness)

    note = f"loop on {few} of the {B} captions, scaled per pair"
    return Case(function, (region, scale, shift, query), loop=loop, loop_scale=B / few, note=note)


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


def vse(size: int, chunk: int = 256) -> Case:
    """VSE++'s loss with gradients of both embeddings, in chunks; the loop holds the matrix and its masks."""
    random = np.random.default_rng(0)
    image, text = unit(random, size, D), unit(random, size, D)
    number = np.arange(size, dtype=np.int32)

    def loss(image: jax.Array, text: jax.Array) -> jax.Array:
        pairing = Pairing(number, number, number, number)
        pairs = chunked.Pairs(similarity.dot, image, text, pairing, chunk)
        return chunked.triplet(pairs, margin=MARGIN, hardness=1).loss

    def loop() -> Callable[[], Any]:
        from xmodal_jax.bench import loops

        return loops.matcher(loops.dot, [image, text], None, {}, margin=MARGIN, hardness=1.0)

    large = size > 8192
    return Case(
        jax.value_and_grad(loss, argnums=(0, 1)),
        (image, text),
        2.0 * size**2 * D,
        None if large else loop,
        repeat=1 if large else 3,
        note=f"B = {size}, {chunk} images at a time",
    )


def scan_step() -> Case:
    """A whole training step of SCAN t2i: encoders, loss, gradients, clipping, Adam."""
    import optax

    from xmodal_jax.models.scan import Model
    from xmodal_jax.training.step import Objective, initialise, make_state, train_step

    features, vocabulary, word_dim = 2048, 8000, 300
    random = np.random.default_rng(0)
    length = -np.sort(-word_counts(random, B))
    mask = np.arange(W) < length[:, None]
    token = np.where(mask, random.integers(4, vocabulary, (B, W)), 0).astype(np.int32)
    region = np.abs(random.standard_normal((B, R, features), np.float32))
    number = np.arange(B, dtype=np.int32)
    image = Images({"region": region}, np.ones((B, R), bool), number)
    batch = Batch(image, Texts(token, mask, number, number, number))
    model = Model(vocabulary=vocabulary, embed_dim=D, word_dim=word_dim)
    initial = initialise(model, jax.tree.map(lambda leaf: leaf[:1], batch), 0)
    optimiser = optax.chain(optax.clip_by_global_norm(2.0), optax.adam(2e-4))
    state = make_state(initial, optimiser, 0, 0.0)
    objective = Objective(losses.triplet, {"margin": MARGIN, "hardness": 1.0}, {"rank": 1.0})
    step = partial(train_step, model=model, objective=objective, optimiser=optimiser, stage_start=0)

    def loop() -> Callable[[], Any]:
        from xmodal_jax.bench import loops

        return loops.step(features, vocabulary, word_dim, D, region, token, length)

    return Case(step, (state, batch), loop=loop)


def eval_matrix() -> Case:
    """Scores of 1,000 images and 5,000 captions by SCAN t2i."""
    images, captions, few = 256, 1024, 128
    case = scan("t2i", None, images, captions)
    whole = 1000 * 5000
    small = scan("t2i", None, few, few)
    note = f"ours on {images} x {captions}, the loop on {few} x {few}, both scaled per pair to 1,000 x 5,000"
    return case._replace(
        loop=small.loop, scale=whole / (images * captions), loop_scale=whole / few**2, repeat=3, note=note
    )


def ranks_5k() -> Case:
    """Ranks of 5,000 images and 25,000 captions by the cosine of embeddings [N, D], both directions."""
    from xmodal_jax.evaluation.rank import blocked_ranks

    images, per_image, few = 5000, 5, 40
    random = np.random.default_rng(0)
    image, text = unit(random, images, D), unit(random, images * per_image, D)
    row = np.arange(images * per_image) // per_image
    dot = jax.jit(similarity.dot)

    def run(image: Any, text: Any) -> Any:
        return blocked_ranks(lambda i, c: dot(image[i], text[c]), row, images)

    def loop() -> Callable[[], Any]:
        from xmodal_jax.bench import loops

        return lambda: loops.ranks(image, text, per_image, few)

    note = f"loop on {few} images and their captions as queries, scaled"
    flop = 2.0 * images * images * per_image * D
    return Case(run, (image, text), flop, loop, loop_scale=images / few, note=note, compiled=False)


def scan_batch(size: int) -> Case:
    """SCAN's hardest-negative loss with gradients at a large batch; memory is the point, time is one run."""
    return scan("t2i", 1.0, size, size)._replace(
        loop=None, repeat=0, note=f"B = {size}, really run", facts={"batch": size}
    )


def growing_batch(size: int) -> Case:
    """SCAN's hardest-negative loss with gradients, against the batch size; the loop up to the published 128."""
    case = scan("t2i", 1.0, size, size)._replace(repeat=1, facts={"batch": size})
    return case if size <= B else case._replace(loop=None)


def growing_gallery(size: int, captions: int = 16) -> Case:
    """Scores of a few captions with a gallery of images by SCAN t2i, so many images at a time as evaluation takes."""
    block, images = 500, 1000
    case = scan("t2i", None, images, captions)
    compiled = jax.jit(case.function)

    def run(region: jax.Array, *text: jax.Array) -> np.ndarray:
        starts = (start % images for start in range(0, size, block))
        return np.concatenate([compiled(region[start : start + block], *text) for start in starts])

    return Case(
        run,
        case.args,
        (case.flop or 0.0) * size / images,
        repeat=1,
        note=f"{captions} captions; {images} images over and over",
        compiled=False,
        facts={"gallery": size},
    )


GROUPS: dict[str, dict[str, Callable[[], Case]]] = {
    "kernels": {
        "scan_t2i_forward": partial(scan, "t2i", None),
        "scan_i2t_forward": partial(scan, "i2t", None),
        "scan_t2i_hardest": partial(scan, "t2i", 1.0),
        "scan_i2t_hardest": partial(scan, "i2t", 1.0),
        "scan_t2i_sum": partial(scan, "t2i", 0.0),
        "adapt_t2i_forward": partial(adapt, None),
        "adapt_t2i_annealed": partial(adapt, 0.5),
        "adapt_t2i_hardest": partial(adapt, 1.0),
        "smlstm_forward": partial(selective, None),
        "smlstm_hardest": partial(selective, 1.0),
        "smlstm_sum": partial(selective, 0.0),
        "vse_4096": partial(vse, 4096),
        "vse_16384": partial(vse, 16384),
    },
    "step": {"scan_step": scan_step},
    "eval": {"eval_matrix": eval_matrix, "ranks_5k": ranks_5k},
    "batch": {"scan_batch_4gib": partial(scan_batch, 4096)},
    "scaling": {
        **{f"batch_{size}": partial(growing_batch, size) for size in (64, 128, 256, 512, 1024, 2048)},
        **{f"gallery_{size}": partial(growing_gallery, size) for size in (1000, 2000, 5000, 10000, 25000)},
    },
}
# Rows whose loop's memory is measured, too
LOOP_MEMORY = {"scan_t2i_hardest", "smlstm_hardest", "vse_4096", "batch_64", "batch_128"}
