"""The rows of `xmodal bench`: what is run, on what data, and what it is compared with.

One core, float32, B = 128 images of R = 36 regions, D = 1024, captions of 7 to 20 words (log-normal, 13 on average),
unless a row says otherwise. A loop that would take minutes is timed on fewer pairs and scaled; ``note`` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax import losses, similarity
from xmodal_jax.bench.material import MARGIN, B, Case, D, R, W, fragments, loss_of, unit, word_counts
from xmodal_jax.bench.networks import mcnn, selective
from xmodal_jax.losses import Pairing, chunked
from xmodal_jax.similarity.pairwise import pairwise
from xmodal_jax.types import Batch, Fragments, Images, Texts

SCAN = {"t2i": {"smooth": 9.0, "lse": 6.0}, "i2t": {"smooth": 4.0, "lse": 5.0}}


def scan_scores(direction: str, region: jax.Array, word: jax.Array, mask: jax.Array) -> jax.Array:
    image: dict[str, Any] = {"region": Fragments(region, jnp.ones(region.shape[:2], bool))}
    if direction == "t2i":
        image["gram"] = similarity.gram(region)
    options = SCAN[direction]

    def score(variables: Any, image: Any, text: Any) -> jax.Array:
        gram = image.get("gram")
        return similarity.cross_attention(*image["region"], *text, direction=direction, context_gram=gram, **options)

    return pairwise(score, {}, image, Fragments(word, mask))


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


def sentences(items: int = 250, few: int = 25, vocabulary: int = 8000, word_dim: int = 300) -> Case:
    """Sentences of 1,000 images by beam search with 3 beams, from random parameters: all of them have 20 tokens."""
    from xmodal_jax.layers.decoder import Decoder
    from xmodal_jax.text.generation import Decoding, generate

    random = np.random.default_rng(0)
    decoder, table = Decoder(vocabulary, D), 0.1 * random.standard_normal((vocabulary, word_dim), np.float32)
    vector, decoding = unit(random, items, D), Decoding("beam", beams=3)
    variables = jax.jit(decoder.init)(jax.random.key(0), vector[:1], table[None, :2], np.ones((1, 2), bool))

    def function(variables: Any, table: jax.Array, vector: jax.Array) -> jax.Array:
        def begin(vector: jax.Array) -> Any:
            return decoder.apply(variables, vector, method="begin")

        def word(carry: Any, token: jax.Array) -> Any:
            return decoder.apply(variables, carry, table[token], method="step")

        return generate(begin, word, vector, decoding).token

    def loop() -> Callable[[], Any]:
        from xmodal_jax.bench import loops

        gru = {name: np.array(x) for name, x in variables["params"]["gru"]["layer_0"].items()}
        project = np.array(variables["params"]["project"]["kernel"])
        return loops.sentences(gru, project, table, vector[:few], decoding)

    note = f"ours on {items}, the loop on {few} one after another, both scaled to 1,000"
    return Case(
        function, (variables, table, vector), loop=loop, scale=1000 / items, loop_scale=1000 / few, repeat=3, note=note
    )


def eval_whole(images: int = 1000, captions: int = 5000) -> Case:
    """All scores of 1,000 images and 5,000 captions by STT with attention, really computed: memory is the point."""
    region, word, length = fragments(images, captions)
    mask = np.arange(W) < length[:, None]

    def function(region: jax.Array, word: jax.Array, mask: jax.Array) -> jax.Array:
        options = {"direction": "t2i", "pool": "mean", "smooth": SCAN["t2i"]["smooth"]}

        def score(variables: Any, image: Any, text: Any) -> jax.Array:
            return similarity.cross_attention(*image["region"], *text, context_gram=image["gram"], **options)

        image = {"region": Fragments(region, jnp.ones(region.shape[:2], bool)), "gram": similarity.gram(region)}
        return pairwise(score, {}, image, Fragments(word, mask))

    stored = (region.nbytes + word.nbytes) / 2**20
    flop = 2.0 * images * R * length.sum() * D
    return Case(function, (region, word, mask), flop, repeat=0, note=f"really run; the fragments are {stored:.0f} MiB")


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
        **{f"mcnn_{level}_forward": partial(mcnn, level, None) for level in ("word", "short", "long", "sentence")},
        **{f"mcnn_{level}_sum": partial(mcnn, level, 0.0) for level in ("word", "short", "long", "sentence")},
        "vse_4096": partial(vse, 4096),
        "vse_16384": partial(vse, 16384),
    },
    "step": {"scan_step": scan_step},
    "eval": {"eval_matrix": eval_matrix, "eval_whole": eval_whole, "ranks_5k": ranks_5k, "sentences_1k": sentences},
    "batch": {"scan_batch_4gib": partial(scan_batch, 4096)},
    "scaling": {
        **{f"batch_{size}": partial(growing_batch, size) for size in (64, 128, 256, 512, 1024, 2048)},
        **{f"gallery_{size}": partial(growing_gallery, size) for size in (1000, 2000, 5000, 10000, 25000)},
    },
}
# Rows whose loop's memory is measured, too
LOOP_MEMORY = {"scan_t2i_hardest", "smlstm_hardest", "mcnn_word_sum", "vse_4096", "batch_64", "batch_128"}
