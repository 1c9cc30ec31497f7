"""Encode each item of a split once; score stacks of representations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from xmodal_jax.data.pipeline import Captions, FeatureReader, image_batches, text_batches
from xmodal_jax.errors import NumericError
from xmodal_jax.evaluation import table
from xmodal_jax.evaluation.vote import Member, rank_table
from xmodal_jax.matcher import Matcher
from xmodal_jax.progress import Progress
from xmodal_jax.similarity.pairwise import cut, fragments, lengths, pairwise
from xmodal_jax.training.parallel import mesh_for, spread
from xmodal_jax.types import Repr


class Evaluator:
    """Recall of a model on a split; compiled functions are kept, so that a training loop may call it often."""

    def __init__(self, model: Matcher, *, batch_size: int):
        def encode(method: str) -> Callable[..., Repr]:
            return jax.jit(lambda variables, items: model.apply(variables, items, train=False, method=method)[0])

        self.batch_size = batch_size
        self.encode_image, self.encode_text = encode("encode_image"), encode("encode_text")
        score: Any = partial(model.apply, method="score")
        self._pairwise = jax.jit(partial(pairwise, score), static_argnames="mesh")

    def representations(
        self, variables: Any, reader: FeatureReader, captions: Captions, *, quiet: bool
    ) -> tuple[Repr, Repr]:
        """Stacks of all images and all captions on the host, in the order of the split.

        Raises:
            NumericError: an item whose representation is not finite.
        """
        total = reader.count + len(captions)
        name = reader.split.name
        with Progress(f"encode {name}", total, unit="items", quiet=quiet) as progress:
            images = _stack(
                image_batches(reader, self.batch_size),
                lambda batch: self.encode_image(variables, spread(variables, batch)),
                reader.count,
                lambda i: f'image "{reader.split.ids[i]}" of split "{name}"',
                progress,
            )
            texts = _stack(
                text_batches(captions, self.batch_size),
                lambda batch: self.encode_text(variables, spread(variables, batch)),
                len(captions),
                lambda i: f'caption {i} (image "{reader.split.ids[captions.image[i]]}") of split "{name}"',
                progress,
                longest_first=True,
            )
        return images, texts

    def score(self, variables: Any, images: Repr, texts: Repr) -> Float[Array, "b c"]:
        """Scores [B, C] of representations, spread over the devices that hold ``variables``."""
        mesh = mesh_for(variables, images, texts)
        return self._pairwise(variables, spread(variables, images), spread(variables, texts), mesh=mesh)

    def table(
        self,
        variables: Any,
        reader: FeatureReader,
        captions: Captions,
        *,
        protocol: str = "auto",
        weights: str = "raw",
        quiet: bool = False,
        draws: int = 1000,
        text_id: Int[np.ndarray, " c"] | None = None,
        shared: bool = False,
    ) -> table.Table:
        """The recall table of a split; ``text_id`` and ``shared`` as in :func:`rank_table`, the first by default that
        of the captions."""
        member = self.member(variables, reader, captions, quiet=quiet)
        text_id = captions.text_id if text_id is None else text_id
        options = {"protocol": protocol, "weights": weights, "draws": draws, "text_id": text_id, "shared": shared}
        return rank_table([member], captions.image, reader.count, **options)

    def member(self, variables: Any, reader: FeatureReader, captions: Captions, *, quiet: bool) -> Member:
        """All that votes on a split."""
        stacks = self.representations(variables, reader, captions, quiet=quiet)
        return Member(self.score, variables, *stacks, captions.read_id)


def _stack(
    batches: Iterator[Any],
    encode: Callable[[Any], Repr],
    count: int,
    name: Callable[[int], str],
    progress: Progress,
    *,
    longest_first: bool = False,
) -> Repr:
    stacks: Any = None
    width = 0
    for batch in batches:
        ids = np.asarray(batch.id)
        out = jax.device_get(encode(batch))
        if longest_first:  # padding that the first batch has no use for is not kept
            width = width or (int(lengths(out).max()) if fragments(out) else 1)
            out = cut(out, width)
        if stacks is None:
            stacks = jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[1:]), leaf.dtype), out)
        real = ids >= 0
        for leaf, into in zip(jax.tree.leaves(out), jax.tree.leaves(stacks), strict=True):
            finite = np.isfinite(leaf[real]).reshape(int(real.sum()), -1).all(axis=1)
            if not finite.all():
                bad = int(ids[real][np.flatnonzero(~finite)[0]])
                raise NumericError(
                    f"The representation of {name(bad)} is not finite ({int((~finite).sum())} of this batch are not); "
                    "check the features with `xmodal data check`, or the checkpoint."
                )
            into[(ids[real], *(slice(size) for size in leaf.shape[1:]))] = leaf[real]
        progress.advance(int(real.sum()))
    return stacks
