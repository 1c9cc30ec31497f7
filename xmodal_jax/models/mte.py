"""MTE-style modality-invariant embeddings (reconstruction): any two-tower system with an adversary of its embeddings.

Liu, Zhao, Wei, Zheng, Yang, "Modality-Invariant Image-Text Embedding for Image-Sentence Matching", TOMM 15(1), 2019: a
triplet-loss system, a network that classifies an embedding's modality against it, training in stages. No code is
public; sizes and settings here are a [reconstruction]. Gradient reversal is that of Ganin and Lempitsky (ICML 2015).

Of the two-player game each side is a loss of its own, so config.weights and config.ramps hold all that is scheduled:
"modality" trains the discriminator alone and "confusion", whose weight is alpha, trains the towers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.errors import UsageError
from xmodal_jax.layers.dense import xavier
from xmodal_jax.losses import modality
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Batch, Images, Inputs, Repr, Texts

# What the towers minimise, of the logits of images and captions and which of them are real
ADVERSARIES: dict[str, Callable[..., Array]] = {
    "reversal": lambda image, text, *real: -modality.discrimination(image, text, *real),
    "flipped": lambda image, text, *real: modality.discrimination(-image, -text, *real),
}


class Discriminator(nn.Module):
    """Perceptron of embeddings [N, D] to the logit [N] of their being an image's: leaky ReLU of slope 0.2, dropout.

    Attributes:
        hidden: widths of the hidden layers.
        dropout: share of hidden units left out in training.
    """

    hidden: Sequence[int] = (512, 256)
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x: Float[AnyArray, "n d"], *, train: bool) -> Float[Array, " n"]:
        for size in self.hidden:
            x = nn.leaky_relu(xavier(size)(x), 0.2)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return xavier(1)(x)[:, 0]


class Model(Matcher):
    """A two-tower system and a discriminator beside it, which encoding and scoring never use.

    Parameters of the tower have the names that they have without the discriminator, and the same initial values: a run
    of either starts from a run of the other (``init.workdir``), and a bundle holds the tower alone.

    Attributes:
        tower: the system, a group of its fields with its ``name``: one with one vector for an image and for a caption.
        hidden: widths of the discriminator's hidden layers.
        dropout: share of the discriminator's hidden units left out in training.
        adversary: "reversal", minus the discriminator's loss for the towers, or "flipped", its loss for the other
            labels, whose gradient does not vanish where the discriminator is sure (the form of GANs).
    """

    tower: Matcher
    hidden: Sequence[int] = (512, 256)
    dropout: float = 0.5
    adversary: str = "reversal"

    @property
    def inputs(self) -> Inputs:
        return self.tower.inputs

    @property
    def word_tables(self) -> str:
        return self.tower.word_tables

    @property
    def padding_counts(self) -> bool:
        return self.tower.padding_counts

    @property
    def rank_terms(self) -> tuple[str, ...]:
        return self.tower.rank_terms

    @property
    def costly_terms(self) -> tuple[tuple[str, ...], ...]:
        return self.tower.costly_terms

    @property
    def sharded(self) -> str:
        return self.tower.sharded

    def has(self, method: str) -> bool:
        return method == "aux" or self.tower.has(method)

    def setup(self) -> None:
        if self.adversary not in ADVERSARIES:
            known = ", ".join(ADVERSARIES)
            raise UsageError(f'No adversary "{self.adversary}" (model.adversary); there are {known}.')
        nn.share_scope(self, self.tower)
        self.discriminator = Discriminator(tuple(self.hidden), self.dropout)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Repr, Any]:
        return self.tower.encode_image(image, train=train)

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Repr, Any]:
        return self.tower.encode_text(text, train=train)

    def score(self, image: Repr, text: Repr) -> Array:
        return self.tower.score(image, text)

    def select(self, batch: Batch) -> Batch:
        return self.tower.select(batch)

    def glimpses(self, image: Images, text: Texts) -> tuple[Array, Array]:
        return self.tower.glimpses(image, text)

    def attention(self, image: Repr, text: Repr) -> Array:
        return self.tower.attention(image, text)

    def imagine(self, text: Texts, key: Array) -> Array:
        return self.tower.imagine(text, key)

    def begin(self, source: Images | Texts) -> Any:
        return self.tower.begin(source)

    def word(self, carry: Any, token: Array) -> tuple[Any, Array]:
        return self.tower.word(carry, token)

    def aux(self, batch: Batch, image: tuple[Repr, Any], text: tuple[Repr, Any], *, train: bool) -> dict[str, Array]:
        """The tower's losses, then both sides of the game, then what is only looked at unless it has a weight.

        Raises:
            UsageError: the tower gives more than one vector of an item.
        """
        terms = self.tower.aux(batch, image, text, train=train)
        sides = [vectors(side[0], self.tower) for side in (image, text)]
        real = [jnp.asarray(items.id) >= 0 for items in (batch.image, batch.text)]
        fixed = [jax.lax.stop_gradient(side) for side in sides]
        keys = jax.random.split(self.make_rng("dropout")) if train else (None, None)
        if self.is_initializing():
            self.discriminator(fixed[0], train=False)

        def logits(variables: Any, vector: Array, key: Any) -> Any:
            net, rngs = self.discriminator.clone(parent=None), {} if key is None else {"dropout": key}
            return net.apply(variables, vector, train=train, rngs=rngs)

        # Both sides of the game see the same units dropped, as in one pass through a gradient reversal
        net = {"params": self.discriminator.variables["params"]}
        judged = [logits(net, vector, key) for vector, key in zip(fixed, keys, strict=True)]
        fooled = [logits(jax.lax.stop_gradient(net), vector, key) for vector, key in zip(sides, keys, strict=True)]
        return terms | {
            "modality": modality.discrimination(*judged, *real),
            "confusion": ADVERSARIES[self.adversary](*fooled, *real),
            "accuracy": modality.accuracy(*judged, *real),
            "gap": modality.gap(*sides, *real),
            "mmd": modality.mmd(*sides, *real),
        }


def vectors(representation: Repr, tower: Matcher) -> Array:
    """The one vector [N, D] of each item. Raises a UsageError where there is more."""
    leaves = jax.tree.leaves(representation)
    if len(leaves) != 1 or leaves[0].ndim != 2:
        name = type(tower).__module__.rpartition(".")[-1]
        raise UsageError(
            f'The system "{name}" (config.model.tower) gives an item more than one vector, which the modality '
            "discriminator cannot judge; name one with one vector an image and a caption, vse say."
        )
    return leaves[0]
