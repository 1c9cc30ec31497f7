"""sm-LSTM: at each of T steps a pair looks at some regions and some words, and an LSTM collects how alike they are.

Huang, Wang, Wang, "Instance-aware Image and Sentence Matching with Selective Multimodal LSTM", CVPR 2017 (arXiv
1611.05588). There is no released code. Two of the printed equations cannot do what they are for; beside each stands a
form that can, the default. The printed attention adds what the context and the past say after the nonlinearity, where
it is the same for every region and cancels in the softmax: all steps look at the same regions, whatever the pair. The
printed regulariser is a constant, for the weights of a step add up to one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.errors import UsageError
from xmodal_jax.layers.dense import linear, masked_softmax
from xmodal_jax.layers.image import as_regions, image_vector, mean_pool
from xmodal_jax.layers.lstm import LSTM, BiLSTM, lstm_cell, lstm_gates
from xmodal_jax.layers.pairs import additive_logits, factor, over_captions
from xmodal_jax.layers.recurrent import product
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Batch, Fragments, Images, Inputs, Texts

ATTENTIONS = ("joint", "product", "printed")
LOCAL = ("add", "mul")
REGULARISERS = {"squared": 2, "printed": 1}  # powers


class Item(NamedTuple):
    """What no other side changes of an image or a caption."""

    key: Fragments  # [N, T, A]: what of the attention's logit depends on a fragment; [N, T, 1] if it is "printed"
    value: Fragments  # [N, T, D]: fragments as the local similarity sees them
    first: Any  # [N, D]: what is seen at the first step, which has no past


class Side(nn.Module):
    """Attention to the fragments of one side, and what it yields; leading axes broadcast.

    The logit of a fragment x with the item's global context m and the past h is one of (section 3.2 of the paper; w
    without its bias, which cancels in the softmax)

    .. math::
        \\text{joint} \\quad & w \\cdot \\sigma(W_m m + W_x x + W_h h + b) \\\\
        \\text{product} \\quad & w \\cdot (s_m \\odot s_x \\odot s_h), \\quad s_v = \\sigma(W_v v + b_v) \\\\
        \\text{printed} \\quad & w \\cdot (s_m + s_x + s_h)

    ``form`` is one of these; ``hidden`` is A, the size of w, ``size`` D, ``state`` H, the size of h.
    """

    form: str
    hidden: int
    size: int
    state: int
    dtype: Any

    def setup(self) -> None:
        joint = self.form == "joint"
        self.context = linear(self.hidden, self.dtype)
        self.fragment, self.past = (linear(self.hidden, self.dtype, use_bias=not joint) for _ in range(2))
        self.weight = self.param("weight", nn.initializers.xavier_uniform(), (self.hidden, 1))
        self.value = linear(self.size, self.dtype, use_bias=False)
        self.bias = self.param("bias", nn.initializers.zeros, (self.size,))

    def __call__(
        self, x: Float[AnyArray, "n t f"], mask: Bool[AnyArray, "n t"], context: Float[AnyArray, "n m"]
    ) -> tuple[Item, Float[Array, "n t"]]:
        """Items, and where their first step looks."""
        fragment, around = self.fragment(x), self.context(context)[:, None]
        if self.form == "joint":
            key = fragment + around
        elif self.form == "product":
            key = nn.sigmoid(fragment) * nn.sigmoid(around)
        else:
            key = (nn.sigmoid(fragment) + nn.sigmoid(around)) @ self.weight
        item = Item(Fragments(key, mask), Fragments(self.value(x), mask), None)
        weight = self.attend(self.ready(item), jnp.zeros((x.shape[0], self.state), jnp.float32))
        return item._replace(first=self.see(item, weight)), weight

    def ready(self, item: Item) -> Item:
        """What the steps of many pairs share."""
        if self.form != "joint":
            return item
        return item._replace(key=item.key._replace(feature=factor(item.key.feature)))

    def attend(self, item: Item, past: Float[AnyArray, "*n h"]) -> Float[Array, "*n t"]:
        """Weights of the fragments after the state ``past``, for an item that is :meth:`ready`."""
        key, past = item.key.feature, self.past(past)
        if self.form == "joint":
            logit = additive_logits(key, factor(past), self.weight[:, 0])
        elif self.form == "product":
            logit = jnp.einsum("...ta,...a->...t", key, nn.sigmoid(past) * self.weight[:, 0])
        else:
            logit = key[..., 0] + nn.sigmoid(past) @ self.weight
        return masked_softmax(logit, item.key.mask)

    def see(self, item: Item, weight: Float[AnyArray, "*n t"]) -> Float[Array, "*n d"]:
        """The attended fragment through its half of the local similarity."""
        value = item.value.feature.astype(self.dtype)
        seen = jnp.einsum("...t,...td->...d", weight.astype(self.dtype), value, preferred_element_type=jnp.float32)
        return nn.sigmoid(seen + self.bias)


class Pairs(nn.Module):
    """T steps of images and captions whose leading axes broadcast; ``sizes`` are A, D, that of s_t, and H."""

    form: str
    local: str
    sizes: tuple[int, int, int, int]
    steps: int
    dtype: Any

    def setup(self) -> None:
        attention, size, similarity, state = self.sizes
        self.image, self.text = (Side(self.form, attention, size, state, self.dtype) for _ in range(2))
        self.similarity = linear(similarity, self.dtype)
        self.collect = LSTM(state, dtype=self.dtype)
        self.hidden, self.final = linear(state, self.dtype), linear(1, self.dtype)

    def score(self, image: Item, text: Item) -> Float[Array, "b c"]:
        return over_captions(self, *self.ready(image, text))

    def ready(self, image: Item, text: Item) -> tuple[Item, Item]:
        return self.image.ready(image), self.text.ready(text)

    def walk(self, image: Item, text: Item) -> tuple[Float[Array, "*n"], list[tuple[Any, Any]]]:
        """Scores of items that are ready, and where the steps after the first look."""
        matrix_in, matrix, bias = self.collect.weights(self.sizes[2])
        meet = {"add": jnp.add, "mul": jnp.multiply}[self.local]

        def read(a: AnyArray, w: AnyArray) -> jax.Array:
            return product(self.similarity(meet(a, w)), matrix_in) + bias

        state, steps = lstm_gates(0.0, read(image.first, text.first))[0], []
        for _ in range(self.steps - 1):
            region, word = self.image.attend(image, state.hidden), self.text.attend(text, state.hidden)
            steps.append((region, word))
            state = lstm_cell(state, read(self.image.see(image, region), self.text.see(text, word)), matrix)[0]
        return self.final(nn.sigmoid(self.hidden(state.hidden)))[..., 0], steps

    def __call__(self, image: Item, text: Item) -> Float[Array, "*n"]:
        return self.walk(image, text)[0]


class Model(Matcher):
    """Regions and words, attended to T times by each pair, compared, and collected by an LSTM.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D, of the hidden layer in which the attended region and word are compared [recalled].
        attention_dim: A, of the hidden layer of the attention [recalled].
        similarity_dim: size of the local similarity of a step [recalled].
        hidden_dim: H, of the LSTM that collects them and of the layer before the score [recalled].
        text_dim: size of the words' LSTM in each direction [recalled].
        word_dim: size of a word vector [recalled].
        feature: the image's instances: regions or the cells of a grid [B, R, F].
        context: the image feature that is the global context, or "mean", that of the instances. A caption's is its
            words' states at the last one.
        steps: T.
        attention_form: "joint", "product", or "printed", which ignores the pair; see :class:`Side`. The first two are a
            [reconstruction].
        local_sim: "mul" or "add", how the halves of the local similarity meet [reconstruction].
        regulariser: "squared", or "printed", a constant; see :meth:`Model.aux`.
    """

    vocabulary: int
    embed_dim: int = 1024
    attention_dim: int = 512
    similarity_dim: int = 256
    hidden_dim: int = 1024
    text_dim: int = 512
    word_dim: int = 300
    feature: str = "region"
    context: str = "global"
    steps: int = 3
    attention_form: str = "joint"
    local_sim: str = "mul"
    regulariser: str = "squared"
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs((self.feature,) if self.context == "mean" else (self.feature, self.context))

    @property
    def word_tables(self) -> str:
        return "embed/embedding"

    def setup(self) -> None:
        for name, known in (("attention_form", ATTENTIONS), ("local_sim", LOCAL), ("regulariser", REGULARISERS)):
            if getattr(self, name) not in known:
                raise UsageError(f'No {name} "{getattr(self, name)}" (model.{name}); there are {", ".join(known)}.')
        dtype = jnp.dtype(self.dtype)
        sizes = (self.attention_dim, self.embed_dim, self.similarity_dim, self.hidden_dim)
        self.pairs = Pairs(self.attention_form, self.local_sim, sizes, self.steps, dtype)
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.words = BiLSTM(self.text_dim, merge="concatenation", dtype=dtype)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Item, Float[Array, "b r"]]:
        """Images, and where their first step looks."""
        region, mask = as_regions(image.feature[self.feature]), jnp.asarray(image.mask)
        context = mean_pool(region, mask) if self.context == "mean" else image_vector(image, self.context)
        return self.pairs.image(region, mask, context)

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Item, Float[Array, "c w"]]:
        """Captions, and where their first step looks."""
        mask = jnp.asarray(text.mask)
        word = self.words(self.embed(text.token), mask)
        last = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
        return self.pairs.text(word, mask, jnp.take_along_axis(word, last[:, None, None], axis=1)[:, 0])

    def score(self, image: Item, text: Item) -> Float[Array, "b c"]:
        return self.pairs.score(image, text)

    def looks(
        self, image: tuple[Item, Any], text: tuple[Item, Any]
    ) -> tuple[Float[Array, "*n k r"], Float[Array, "*n k w"]]:
        """Where the K = T steps of encoded items look; leading axes broadcast."""
        steps = [(image[1], text[1]), *self.pairs.walk(*self.pairs.ready(image[0], text[0]))[1]]
        shape = jnp.broadcast_shapes(image[1].shape[:-1], text[1].shape[:-1])
        region, word = (
            jnp.stack([jnp.broadcast_to(weight, (*shape, weight.shape[-1])) for weight in side], axis=-2)
            for side in zip(*steps, strict=True)
        )
        return region, word

    def glimpses(self, image: Images, text: Texts) -> tuple[Float[Array, "b c k r"], Float[Array, "b c k w"]]:
        images = jax.tree.map(lambda leaf: leaf[:, None], self.encode_image(image, train=False))
        return self.looks(images, self.encode_text(text, train=False))

    def aux(self, batch: Batch, image: Any, text: Any, *, train: bool) -> dict[str, jax.Array]:
        """``coverage``: how unevenly the steps together look at a pair's fragments, a mean over the batch's captions,
        each with its own image; no other pair is looked at.

        For the weights p of regions and q of words :math:`\\sum_i (1 - \\sum_t p_{ti})^2 + \\sum_j (1 - \\sum_t
        q_{tj})^2` over the real fragments. Printed without the squares, it is their number less 2 T.
        """
        row, real = jnp.asarray(batch.text.row), jnp.asarray(batch.text.id) >= 0
        own = jax.tree.map(lambda leaf: leaf[row], image)
        total = jnp.zeros(())
        for weight, mask in zip(self.looks(own, text), (own[0].key.mask, text[0].key.mask), strict=True):
            missed = (1.0 - jnp.sum(weight, axis=1)) ** REGULARISERS[self.regulariser]
            total += jnp.sum(jnp.where(mask & real[:, None], missed, 0.0))
        return {"coverage": total / jnp.maximum(jnp.sum(real), 1)}
