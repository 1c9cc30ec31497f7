"""The interface every system implements: what it reads, three methods, and further ones for what not all can do."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jax import Array

from xmodal_jax.errors import UsageError
from xmodal_jax.types import Batch, Images, Inputs, Repr, Texts


class Matcher(nn.Module):
    """An image-text matching system. A representation is any pytree whose leaves have the item axis first.

    That one invariant lets evaluation slice it, devices gather it and export save it without knowing the system.
    Fields of a subclass come from ``config.model``; those that are named like one of :class:`xmodal_jax.types.Facts`
    (``vocabulary``, ``classes``, ``regions``, ``words``, ``vector_dim``) are filled from the data where the config
    leaves them out. A field may be another system, by a group with a ``name`` of its own in the config
    (``config.model.tower``).
    ``dtype``, where a model has it, is the type of the matrix products; parameters, states and scores stay float32.
    """

    @property
    def inputs(self) -> Inputs:
        """What the system reads, told by its own fields alone."""
        raise NotImplementedError

    @property
    def word_tables(self) -> str:
        """Regular expression of the names of the tables that ``data.word_vectors`` fills; empty where there is none."""
        return ""

    @property
    def padding_counts(self) -> bool:
        """Whether a caption's scores depend on how far it is padded, as in some released codes."""
        return False

    @property
    def rank_terms(self) -> tuple[str, ...]:
        """The losses that teach it to rank; a stage that gives all of them weight 0 has no recall to choose by."""
        return ("rank",)

    @property
    def sharded(self) -> str:
        """Regular expression of the names of the matrices whose rows may lie over several devices; empty for none."""
        return ""

    @property
    def costly_terms(self) -> tuple[tuple[str, ...], ...]:
        """Groups of losses; a stage that gives weight 0 to all of a group neither computes nor logs them."""
        return ()

    def select(self, batch: Batch) -> Batch:
        """What a training step reads in place of ``batch``: negatives that the network itself chooses, say.

        Only asked for where the ranking loss has weight; no gradient goes through it. A caption whose image is not
        among those of the batch has ``row`` -1.
        """
        return batch

    def encode_image(self, image: Images, *, train: bool) -> tuple[Repr, Any]:
        """Images to (representation of N = B items, extra); ``extra`` is what only :meth:`aux` needs."""
        raise NotImplementedError

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Repr, Any]:
        """Captions to (representation of N = C items, extra)."""
        raise NotImplementedError

    def score(self, image: Repr, text: Repr) -> Array:
        """Scores [B, C], higher is better. Pure: no RNG, no mutable state, no pair depends on another pair."""
        raise NotImplementedError

    def aux(self, batch: Batch, image: tuple[Repr, Any], text: tuple[Repr, Any], *, train: bool) -> dict[str, Array]:
        """Further losses by name (scalars); the config gives each a weight. None by default."""
        return {}

    def attention(self, image: Repr, text: Repr) -> Array:
        """How much each word looks at each region, [B, C, R, W], for the few pairs that somebody wants to look at.

        Where words attend to regions, the weights of a real word add up to 1 over the regions; where regions attend to
        words, those of a region over the words. Padding has weight 0. A system without attention leaves this out.
        """
        raise UsageError(f"{type(self).__module__} has no attention between words and regions.")

    def glimpses(self, image: Images, text: Texts) -> tuple[Array, Array]:
        """Where each of K steps looks in the image and in the caption: ([B, C, K, R], [B, C, K, W]).

        The weights of a step add up to 1 over the regions, and over the words. It takes what the towers read, not what
        they give: a system whose steps do not see the other side keeps no weights in its representations.
        """
        raise UsageError(f"{type(self).__module__} has no steps that look at regions and words.")

    def imagine(self, text: Texts, key: Array) -> Array:
        """A picture of each caption, [C, S, S, 3] in 0..1, with chance by the PRNG key ``key``."""
        raise UsageError(f"{type(self).__module__} makes no pictures of captions.")

    def begin(self, source: Images | Texts) -> Any:
        """The decoder's state for N images or captions to speak of, a pytree whose leaves have the item axis first."""
        raise UsageError(f"{type(self).__module__} does not speak: it ranks captions that exist.")

    def word(self, carry: Any, token: Array) -> tuple[Any, Array]:
        """One word further: (next state, logits [N, V]) after the tokens [N]; see :mod:`xmodal_jax.text.generation`."""
        raise UsageError(f"{type(self).__module__} does not speak: it ranks captions that exist.")

    def has(self, method: str) -> bool:
        """Whether the system implements an optional method: "attention", "glimpses", "imagine", "begin", "aux"."""
        return implements(type(self), method)

    def __call__(self, batch: Batch, *, train: bool = False) -> tuple[Array, dict[str, Array]]:
        """Scores [B, C] and the auxiliary losses of a batch; `init` goes through here."""
        image = self.encode_image(batch.image, train=train)
        text = self.encode_text(batch.text, train=train)
        return self.score(image[0], text[0]), self.aux(batch, image, text, train=train)


def implements(model: type[Matcher], method: str) -> bool:
    """Whether a class has an optional method of its own; systems that hold others answer by :meth:`Matcher.has`."""
    return getattr(model, method) is not getattr(Matcher, method)
