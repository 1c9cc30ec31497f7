"""Scores of all pairs of a batch in bounded memory, with a backward pass that costs what the loss really needs.

Three things make cross attention trainable at large batch, none of them an approximation:

* captions are grouped by length inside the compiled function, so that padding is not computed;
* blocks of the score matrix are computed one after another and nothing of them is kept for the backward pass;
* the backward pass looks at the scores' cotangents. With hardest negatives at most B + 2C of the B x C differ from
  zero (each caption's own image, its hardest image, each image's hardest caption): only those pairs are scored again
  and differentiated. With any more it goes through the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from xmodal_jax.types import Fragments, Repr

Score = Callable[[Any, Repr, Repr], jax.Array]

# Words that a block of captions is cut to, a compilation each; gradients take more of it, so they have fewer
WIDTHS = (10, 12, 14, 16, 18, 20, 24, 32, 64)
GRADIENT_WIDTHS = (14, 24, 64, 128)
PIECE = 512  # captions of each device that are gathered at a time


class Block(NamedTuple):
    """How many pairs are scored at a time: ``image`` x ``caption``; ``pair`` of them in the sparse backward pass."""

    image: int
    caption: int
    pair: int


def default_block() -> Block:
    """Blocks that stay in the cache of a CPU core, or fill an accelerator."""
    return Block(128, 8, 32) if jax.default_backend() == "cpu" else Block(512, 256, 1024)


def is_fragments(node: Any) -> bool:
    return isinstance(node, Fragments)


def fragments(tree: Repr) -> list[Fragments]:
    """The per-fragment parts of a representation."""
    return [node for node in jax.tree.leaves(tree, is_leaf=is_fragments) if is_fragments(node)]


def items(tree: Repr) -> int:
    """N, the number of items of a representation."""
    return jax.tree.leaves(tree)[0].shape[0]


def take(tree: Repr, index: Any) -> Repr:
    """The items at ``index``."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), tree)


def cut(tree: Repr, width: int) -> Repr:
    """A representation whose fragments beyond ``width`` are dropped; they must be padding."""

    def cut_leaf(node: Any) -> Any:
        return Fragments(node.feature[:, :width], node.mask[:, :width]) if is_fragments(node) else node

    return jax.tree.map(cut_leaf, tree, is_leaf=is_fragments)


def lengths(tree: Repr) -> jax.Array:
    """[N] position after each item's last real fragment, the most over its parts."""
    ends = [jnp.max(jnp.where(part.mask, jnp.arange(1, part.mask.shape[1] + 1), 0), axis=1) for part in fragments(tree)]
    return jnp.max(jnp.stack(ends), axis=0)


def by_width(function: Callable[..., Any], widths: Sequence[int], text: Repr, *args: Any) -> Any:
    """``function(text, *args)`` with the captions cut to the narrowest of ``widths`` that loses no word."""
    if not fragments(text):
        return function(text, *args)
    widest = max(part.mask.shape[1] for part in fragments(text))
    widths = [*(width for width in widths if width < widest), widest]
    branches = [lambda text, *args, width=width: function(cut(text, width), *args) for width in widths]
    return jax.lax.switch(jnp.searchsorted(jnp.asarray(widths), jnp.max(lengths(text))), branches, text, *args)


def pairwise(
    score: Score,
    variables: Any,
    image: Repr,
    text: Repr,
    *,
    block: Block | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Score every image with every caption: [B, C].

    Neither the answer nor its gradient depends on ``block`` or ``mesh``. Representations without fragments are scored
    in one piece unless a block is given.

    Args:
        score: a pure function of (variables, image items, caption items) to scores [b, c], in which no pair depends on
            another.
        variables: an argument, not a closure, for a custom backward pass must not capture traced values.
        image, text: representations of B and C items. Captions are cut to their lengths, images are not.
        mesh: rows of the matrix are spread over the devices of its one axis and captions reach each device piece by
            piece. B and C must be multiples of their number.
    """
    if block is None and not fragments((image, text)):
        return score(variables, image, text)
    block = block or default_block()
    if mesh is None or mesh.size == 1:
        return _one_device(score, block, variables, image, text)
    (axis,) = mesh.axis_names
    pieces = -(-items(text) // mesh.size // PIECE)

    def local(variables, image, text):
        count = items(text)
        size, index = _padded(count, -(-count // pieces))

        @jax.checkpoint  # the gathered piece is not kept for the backward pass but gathered again
        def piece(part):
            gathered = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True), part)
            return _one_device(score, block, variables, image, gathered)

        scores = jax.lax.map(piece, take(text, jnp.maximum(index, 0)))  # [pieces, b, devices * size]
        scores = scores.reshape(len(index), items(image), mesh.size, size)
        scores = scores.transpose(1, 2, 0, 3).reshape(items(image), mesh.size, -1)[:, :, :count]
        return scores.reshape(items(image), -1)

    rows = PartitionSpec(axis)
    # Values that differ between devices meet replicated ones in the custom backward pass, which the check cannot see.
    shard = jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), rows, rows), out_specs=rows, check_vma=False)
    return shard(variables, image, text)


def _one_device(score: Score, block: Block, variables: Any, image: Repr, text: Repr) -> jax.Array:
    leaves, tree = jax.tree.flatten((variables, image, text))
    idle = unused(score, variables, image, text)
    wanted = tuple(jnp.issubdtype(x.dtype, jnp.floating) and i not in idle for i, x in enumerate(leaves))
    split = Split(score, tree, wanted, block)
    return _pairwise(split, *split.part(leaves))


def unused(score: Score, variables: Any, image: Repr, text: Repr) -> set[int]:
    """Numbers of the leaves of ``variables`` that ``score`` never reads (the encoders', for most systems)."""
    sides = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), (image, text))
    jaxpr = jax.make_jaxpr(score)(variables, *sides).jaxpr
    read = {id(atom) for equation in jaxpr.eqns for atom in equation.invars}
    return {i for i in range(len(jax.tree.leaves(variables))) if id(jaxpr.invars[i]) not in read}


class Split(NamedTuple):
    """What a backward pass is compiled for: the function, and which leaves of its arguments carry gradients."""

    score: Score
    tree: Any  # structure of (variables, image, text)
    wanted: tuple[bool, ...]
    block: Block

    def part(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """(leaves that carry gradients, the others)."""
        pairs = list(zip(leaves, self.wanted, strict=True))
        return [leaf for leaf, want in pairs if want], [leaf for leaf, want in pairs if not want]

    def join(self, live: list[Any], rest: list[Any]) -> tuple[Any, Repr, Repr]:
        """(variables, image, text) from the two parts."""
        live_leaf, two = iter(live), iter(rest)
        return jax.tree.unflatten(self.tree, [next(live_leaf if want else two) for want in self.wanted])

    def sides(self) -> list[int]:
        """For each leaf that carries a gradient, what it is of: 0 the variables, 1 the images, 2 the captions."""
        parts = jax.tree.unflatten(self.tree, range(len(self.wanted)))
        side = {number: index for index, part in enumerate(parts) for number in jax.tree.leaves(part)}
        return [side[number] for number, want in enumerate(self.wanted) if want]


def _padded(count: int, block: int) -> tuple[int, np.ndarray]:
    """(size, item numbers [blocks, size]); the last block is filled up with -1."""
    size = min(block, count)
    index = np.full(-(-count // size) * size, -1, np.int32)
    index[:count] = np.arange(count)
    return size, index.reshape(-1, size)


def _order(text: Repr) -> jax.Array:
    """Captions from the shortest to the longest."""
    return jnp.argsort(lengths(text)) if fragments(text) else jnp.arange(items(text))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pairwise(split: Split, live: list[Any], rest: list[Any]) -> jax.Array:
    variables, image, text = split.join(live, rest)
    order = _order(text)
    _, image_blocks = _padded(items(image), split.block.image)
    _, caption_blocks = _padded(items(text), split.block.caption)

    def rows(numbers):
        block = take(image, jnp.maximum(numbers, 0)) if len(image_blocks) > 1 else image

        def columns(numbers):
            captions = take(text, order[jnp.maximum(numbers, 0)])
            return by_width(lambda text: split.score(variables, block, text), WIDTHS, captions)

        return jax.lax.map(columns, jnp.asarray(caption_blocks))  # [blocks, b, c]

    scores = jnp.moveaxis(jax.lax.map(rows, jnp.asarray(image_blocks)), 1, 2)
    return scores.reshape(image_blocks.size, caption_blocks.size)[: items(image), jnp.argsort(order)]


def _pairwise_forward(split, live, rest):
    return _pairwise(split, live, rest), (live, rest)


def _pairwise_backward(split, saved, cotangent):
    live, rest = saved
    n_images, n_captions = cotangent.shape
    capacity = n_images + 2 * n_captions  # what hardest negatives can reach
    if capacity >= cotangent.size:
        return _dense(split, live, rest, cotangent), None
    few = jnp.sum(cotangent != 0) <= capacity
    sparse = partial(_sparse, split, capacity)
    return jax.lax.cond(few, sparse, partial(_dense, split), live, rest, cotangent), None


_pairwise.defvjp(_pairwise_forward, _pairwise_backward)


def _sparse(split: Split, capacity: int, live: list[Any], rest: list[Any], cotangent: jax.Array) -> list[Any]:
    """Gradients from the pairs whose cotangent is not zero, at most ``capacity`` of them, a chunk at a time."""
    _, _, text = split.join(live, rest)
    size, index = _padded(capacity, split.block.pair)
    row, column = jnp.nonzero(cotangent, size=index.size, fill_value=-1)
    real = row >= 0
    if fragments(text):  # longest first, the unused places last
        place = jnp.argsort(jnp.where(real, -lengths(text)[column], 1))
        row, column = row[place], column[place]
    weight = jnp.where(row >= 0, cotangent[row, column], 0.0)

    def score(variables, image, text):
        pair = jax.tree.map(lambda leaf: leaf[:, None], (image, text))
        return jax.vmap(partial(split.score, variables))(*pair)[:, 0, 0]

    def step(number, sums):
        chunk = [jax.lax.dynamic_slice_in_dim(x, number * size, size) for x in (row, column, weight)]
        return _add(split, score, live, rest, sums, *chunk)

    return jax.lax.fori_loop(0, -(-jnp.sum(real) // size), step, [jnp.zeros_like(leaf) for leaf in live])


def _dense(split: Split, live: list[Any], rest: list[Any], cotangent: jax.Array) -> list[Any]:
    """Gradients from all pairs, a block at a time."""
    _, image, text = split.join(live, rest)
    order = _order(text)
    # Squarer blocks than those of the scores: gradients of both sides are added up, and have to stay in the cache.
    sizes = (image, max(split.block.image // 4, 1)), (text, 4 * split.block.caption)
    rows, columns = (jnp.asarray(_padded(items(side), size)[1]) for side, size in sizes)

    def step(number, sums):
        row, column = rows[number // len(columns)], columns[number % len(columns)]
        real = (row >= 0)[:, None] & (column >= 0)
        row, column = jnp.maximum(row, 0), order[jnp.maximum(column, 0)]
        weight = jnp.where(real, cotangent[row][:, column], 0.0)
        return _add(split, split.score, live, rest, sums, row, column, weight)

    return jax.lax.fori_loop(0, len(rows) * len(columns), step, [jnp.zeros_like(leaf) for leaf in live])


def _add(split, score, live, rest, sums, row, column, weight) -> list[Any]:
    """``sums`` plus the gradients of ``sum(weight * score)`` of the images ``row`` and the captions ``column``."""
    variables, image, text = split.join(live, rest)
    image, text = take(image, row), take(text, column)

    def widen(grad, shape):  # words that were cut off get zeros
        missing = [(0, full - have) for full, have in zip(shape, grad.shape, strict=True)]
        return jnp.pad(grad, missing) if missing else grad

    def gradients(text, image, weight):
        parts = split.part(jax.tree.leaves((variables, image, text)))
        grads = jax.grad(lambda live: jnp.sum(weight * score(*split.join(live, parts[1]))))(parts[0])
        return [widen(grad, leaf.shape) for grad, leaf in zip(grads, whole, strict=True)]

    whole = split.part(jax.tree.leaves((variables, image, text)))[0]
    grads = by_width(gradients, GRADIENT_WIDTHS, text, image, weight)
    where = (..., row, column)
    return [total.at[where[side]].add(grad) for side, total, grad in zip(split.sides(), sums, grads, strict=True)]
