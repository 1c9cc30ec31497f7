"""SGR and SAF: similarity vectors of words and of the whole, reasoned over as a graph or filtered by attention.

Diao, Zhang, Ma, Lu, AAAI 2021 (arXiv 2101.01368), and the released code Paranioar/SGRAF. The two are trained
separately; SGRAF is the mean of their score matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.errors import UsageError
from xmodal_jax.layers.dense import linear, masked_softmax
from xmodal_jax.layers.image import as_regions, mean_pool
from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.layers.recurrent import BiGRU
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray, l2_normalise
from xmodal_jax.types import Batch, Fragments, Images, Inputs, Texts


class Item(NamedTuple):
    """An image or a caption: unit fragments [N, T, D] and a unit vector of the whole [N, D]."""

    part: Fragments
    whole: Any


def product(spec: str, a: AnyArray, b: AnyArray, dtype: Any) -> jax.Array:
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


class SelfAttention(nn.Module):
    """The whole of a caption [N, D]: its words, weighted by their agreement with their mean (TextSA)."""

    dropout: float
    dtype: Any

    def normalise(self, local: AnyArray, mean: AnyArray, real: AnyArray, *, train: bool) -> tuple[Any, Any]:
        return local, mean

    @nn.compact
    def __call__(self, part: Fragments, item: AnyArray, *, train: bool) -> jax.Array:
        """``item [N]`` is False for padding rows of the batch."""
        (feature, mask), size = part, part.feature.shape[-1]
        local = linear(size, self.dtype, "local")(feature)
        mean = linear(size, self.dtype, "mean")(mean_pool(feature, mask))
        maps = self.normalise(local, mean, mask & item[:, None], train=train)
        local, mean = (nn.Dropout(self.dropout, deterministic=not train)(jnp.tanh(x)) for x in maps)
        attention = masked_softmax(linear(1, self.dtype, "weight")(local * mean[:, None])[..., 0], mask)
        return l2_normalise(jnp.einsum("nt,ntd->nd", attention, feature))


class VisualSelfAttention(SelfAttention):
    """The whole of an image (VisualSA). The first batch norm has a channel for each *region index*, as released."""

    regions: int = 36

    def normalise(self, local: AnyArray, mean: AnyArray, real: AnyArray, *, train: bool) -> tuple[Any, Any]:
        if local.shape[1] > self.regions:
            raise UsageError(f"Images have up to {local.shape[1]} regions, config.model.regions is {self.regions}.")
        by_region, by_feature = BatchNorm(self.regions, name="local_norm"), BatchNorm(mean.shape[1], name="mean_norm")
        local = by_region(jnp.swapaxes(local, 1, 2), real[:, None], train=train)
        return jnp.swapaxes(local, 1, 2), by_feature(mean, jnp.any(real, axis=1, keepdims=True), train=train)


class Graph(nn.Module):
    """SGR: similarity vectors [..., T, K] to one [..., K], node 0 after some rounds over a complete graph."""

    steps: int
    dtype: Any

    @nn.compact
    def __call__(self, nodes: AnyArray, mask: AnyArray, *, train: bool = False) -> jax.Array:
        for step in range(self.steps):
            query, key, out = (
                linear(nodes.shape[-1], self.dtype, f"{name}_{step}") for name in ("query", "key", "out")
            )
            logit = product("...qk,...tk->...qt", query(nodes), key(nodes), self.dtype)
            edge = masked_softmax(logit, mask[..., None, :])
            nodes = jax.nn.relu(out(product("...qt,...tk->...qk", edge, nodes, self.dtype)))
        return jnp.asarray(nodes)[..., 0, :]


class Filter(nn.Module):
    """SAF: similarity vectors [..., T, K] to one [..., K], their sum weighted by gates that add up to one."""

    dtype: Any

    @nn.compact
    def __call__(self, nodes: AnyArray, mask: AnyArray, *, train: bool = False) -> jax.Array:
        gate = BatchNorm(1, name="norm")(linear(1, self.dtype, "gate")(nodes), mask[..., None], train=train)[..., 0]
        gate = jnp.where(mask, jax.nn.sigmoid(gate), 0.0)
        gate = gate / (jnp.sum(gate, axis=-1, keepdims=True) + 1e-8)
        return l2_normalise(product("...t,...tk->...k", gate, nodes, self.dtype))


class Pairs(nn.Module):
    """Scores of images and captions; their leading axes broadcast."""

    size: int
    smooth: float
    make_reason: Callable[[], nn.Module]
    dtype: Any

    def setup(self) -> None:
        self.reason = self.make_reason()
        self.local, self.whole, self.final = (linear(size, self.dtype) for size in (self.size, self.size, 1))

    def attention(self, image: Item, text: Item) -> Float[Array, "*n r w"]:
        """How words attend to regions, [..., R, W]; weights of a word add up to 1."""
        (region, region_mask), (word, word_mask) = image.part, text.part
        similar = jax.nn.leaky_relu(product("...rd,...wd->...rw", region, word, self.dtype), negative_slope=0.1)
        similar = l2_normalise(jnp.where(word_mask[..., None, :], similar, 0.0))  # over the words of the caption
        return masked_softmax(self.smooth * similar, region_mask[..., None], axis=-2)

    def nodes(self, image: Item, text: Item) -> tuple[jax.Array, jax.Array]:
        """Similarity vectors [..., 1 + W, K], that of the wholes first, and which are real."""
        (region, _), (word, word_mask) = image.part, text.part
        attention = self.attention(image, text)
        attended = l2_normalise(product("...rw,...rd->...wd", attention, region, self.dtype))
        local = l2_normalise(self.local(jnp.square(attended - word)))
        whole = l2_normalise(self.whole(jnp.square(image.whole - text.whole)))
        real = jnp.concatenate([jnp.ones_like(word_mask[..., :1]), word_mask], axis=-1)
        return jnp.concatenate([whole[..., None, :], local], axis=-2), real

    def __call__(self, carry: tuple[()], image: Item, text: Item) -> tuple[tuple[()], jax.Array]:
        return carry, jax.nn.sigmoid(self.final(self.reason(*self.nodes(image, text))))[..., 0]


class Model(Matcher):
    """Similarity vectors between words and what they attend to, and between the wholes; then SGR or SAF.

    The batch norm of SAF's gates sits inside the pair score. The released code takes its training statistics from each
    caption with all images of the batch; pairs would then depend on each other. Here scores use the running
    statistics in training too, and :meth:`aux` moves them once a step, from pairs of each caption with its own
    image and with the next image of the batch. SGR has no such norm.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D.
        word_dim: size of a word vector.
        similarity_dim: K, size of a similarity vector.
        reasoning: "sgr" or "saf".
        steps: rounds of SGR.
        smooth: inverse temperature of the words' attention to regions.
        dropout: on word vectors and inside the attention that makes the wholes.
        regions: the most regions an image may have; VisualSA's batch norm has a channel for each.
        feature: which image feature is used; a global one is one region.
        bidirectional: average the states of a forward and a backward GRU.
    """

    vocabulary: int
    embed_dim: int = 1024
    word_dim: int = 300
    similarity_dim: int = 256
    reasoning: str = "sgr"
    steps: int = 3
    smooth: float = 9.0
    dropout: float = 0.4
    regions: int = 36
    feature: str = "region"
    bidirectional: bool = True
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs((self.feature,), most_regions=self.regions)

    @property
    def word_tables(self) -> str:
        return r"(.*/)?embed/embedding"

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.image_encoder = linear(self.embed_dim, dtype)
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.drop = nn.Dropout(self.dropout)
        self.context = BiGRU(self.embed_dim, bidirectional=self.bidirectional, dtype=dtype)
        self.image_whole = VisualSelfAttention(self.dropout, dtype, self.regions)
        self.text_whole = SelfAttention(self.dropout, dtype)
        reasoning = {"sgr": partial(Graph, self.steps, dtype), "saf": partial(Filter, dtype)}
        self.pairs = Pairs(self.similarity_dim, self.smooth, reasoning[self.reasoning], dtype)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Item, None]:
        region = self.image_encoder(as_regions(image.feature[self.feature]))
        part = Fragments(l2_normalise(region), jnp.asarray(image.mask))
        return Item(part, self.image_whole(part, jnp.asarray(image.id) >= 0, train=train)), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Item, None]:
        word = self.drop(self.embed(text.token), deterministic=not train)
        part = Fragments(l2_normalise(self.context(word, text.mask)), jnp.asarray(text.mask))
        return Item(part, self.text_whole(part, jnp.asarray(text.id) >= 0, train=train)), None

    def score(self, image: Item, text: Item) -> Float[Array, "b c"]:
        """One caption at a time, recomputed in the backward pass: the largest array is [B, W, D]."""
        axes: Any = (nn.broadcast, 0)
        over_captions = nn.scan(
            nn.remat(Pairs.__call__, prevent_cse=False),
            variable_broadcast=("params", "batch_stats"),
            split_rngs={"params": False},
            in_axes=axes,
            out_axes=1,
        )
        return over_captions(self.pairs, (), image, text)[1]

    def attention(self, image: Item, text: Item) -> Float[Array, "b c r w"]:
        images = jax.tree.map(lambda leaf: leaf[:, None], image)
        return jnp.where(text.part.mask[:, None], self.pairs.attention(images, text), 0.0)

    def aux(self, batch: Batch, image: Any, text: Any, *, train: bool) -> dict[str, jax.Array]:
        """No loss; in training, the running statistics of SAF's gates."""
        if train:
            row = jnp.asarray(batch.text.row)
            rows = jnp.concatenate([row, (row + 1) % batch.image.id.shape[0]])
            images = jax.tree.map(lambda leaf: leaf[rows], image[0])
            texts = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), text[0])
            counted = (jnp.asarray(batch.image.id)[rows] >= 0) & (jnp.tile(batch.text.id, 2) >= 0)
            nodes, real = self.pairs.nodes(images, texts)
            self.pairs.reason(nodes, real & counted[:, None], train=True)
        return {}
