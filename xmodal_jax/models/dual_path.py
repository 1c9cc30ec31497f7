"""Dual-Path: a perceptron of the image's feature and a deep convolutional net of words, that share one classifier.

Zheng et al., "Dual-Path Convolutional Image-Text Embeddings with Instance Loss", TOMM 2020 (arXiv 1711.05535), and its
released code (layumi/Image-Text-Embedding). Every training image, with its captions, is a class of the classifier that
both towers feed (instance loss); a second stage adds a ranking loss, :func:`xmodal_jax.losses.halves`, on negatives
that the net chooses. configs/dual_path.py holds the settings. Running variances are averaged here, the released code
averages their roots.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax import similarity
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.bottleneck import HE, Bottleneck, Unit
from xmodal_jax.layers.classifier import SharedClassifier
from xmodal_jax.layers.image import image_vector
from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.layers.text import placed, words_of
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Batch, Images, Inputs, Texts

WORDS = ("shift", "left")
FIRST, SHRINK = 2, 4  # a stage's width is divided by these inside its blocks, by the first in that of stage 1 alone


class TextNet(nn.Module):
    """Placed words [N, P] (0: nothing there) to vectors [N, D], before their last ReLU; attributes as in Model."""

    vocabulary: int
    word_dim: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    embed_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, word: Int[Array, "n p"], real: Bool[Array, " n"], *, train: bool) -> Float[Array, "n d"]:
        table = self.param("embedding", HE, (self.vocabulary, self.word_dim))
        bias = self.param("embedding_bias", nn.initializers.zeros, (self.word_dim,))
        x = jnp.where((word > 0)[..., None], jnp.take(table, word, axis=0, mode="clip"), 0.0) + bias
        x = BatchNorm(self.word_dim, momentum=0.1, unbiased=False, epsilon=1e-3, name="norm")(
            x, real[:, None, None], train=train
        )
        last = len(self.widths) - 1
        for stage, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(count):
                inner = (width // FIRST if stage == 0 else width) if block == 0 else width // SHRINK
                stride = 2 if block == 0 and 0 < stage < last else 1
                layer = Bottleneck(width, inner, stride, block == 0, self.dtype, name=f"block_{stage + 1}_{block + 1}")
                x = layer(x, real, train=train)
        # By its place: the gradient of a maximum divides by how many are equal to it, none where XLA rounds anew.
        top = jnp.take_along_axis(x, jnp.argmax(jax.lax.stop_gradient(x), axis=1)[:, None], axis=1)[:, 0]
        return Unit(self.embed_dim, dtype=self.dtype, name="out")(top, real, train=train)


class ImageHead(nn.Module):
    """Image vectors [N, F] to [N, D] before their last ReLU: unit, ReLU, unit."""

    hidden_dim: int
    embed_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "n f"], real: Bool[Array, " n"], *, train: bool) -> Float[Array, "n d"]:
        x = jax.nn.relu(Unit(self.hidden_dim, dtype=self.dtype, name="hidden")(x, real, train=train))
        return Unit(self.embed_dim, dtype=self.dtype, name="out")(x, real, train=train)


class Model(Matcher):
    """Two paths to unit vectors of ``embed_dim`` (D) dimensions and, in training, a classifier of images on both.

    Attributes:
        vocabulary: V, the number of tokens.
        classes: training images.
        embed_dim: D.
        hidden_dim: of the image path: F-hidden_dim-D.
        word_dim: size of a word vector, the first layer of the text path.
        widths: channels of the four stages of the text path; the middle stages halve the number of positions.
        blocks: bottlenecks of each stage.
        tokens: how captions are cut, "cased" for vectors of cased words as in the released code, or "words".
        feature: which image feature is used; regions [B, R, F] are mean-pooled first.
        positions: words of a caption that are read, from the first on.
        position: "shift": in training the words stand at a random offset, for retrieval the vectors of all offsets are
            added up; "left": they always begin at the left.
        offset_step: for retrieval every so-manyth offset, which takes as much less time; 1 in the released code.
        drop_unknown: words outside the vocabulary leave no gap. The released code knows the words of the word vectors
            alone, which is ``data.vector_words``.
        eval_pre_relu: for retrieval both paths end before their last ReLU, as in the released code.
        candidates: captions of other images among which an anchor finds its hardest for the ranking loss, 256 in the
            released code; 0: negatives are the captions of the batch. [reconstruction] Candidates stand at one random
            offset each.
        groups: number of classes into which the training images are grouped by their features; 0: each is one.
        sampled: classes drawn for a step in place of all; 0 for all.
        class_bias: the classifier learns a bias of each class.
        dropout: share of either path's vector left out before the classifier: 0.75 on Flickr30K, 0.5 on COCO.
    """

    vocabulary: int
    classes: int = 0
    embed_dim: int = 2048
    hidden_dim: int = 2048
    word_dim: int = 300
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    blocks: tuple[int, ...] = (3, 4, 6, 1)
    tokens: str = "cased"
    feature: str = "global"
    positions: int = 32
    position: str = "shift"
    offset_step: int = 1
    drop_unknown: bool = True
    eval_pre_relu: bool = True
    candidates: int = 256
    groups: int = 0
    sampled: int = 0
    class_bias: bool = True
    dropout: float = 0.75
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        roles = {"candidate": self.candidates} if self.candidates else {}
        return Inputs((self.feature,), tokens=self.tokens, captions=roles, classes=True)

    @property
    def word_tables(self) -> str:
        return "text_net/embedding"

    @property
    def rank_terms(self) -> tuple[str, ...]:
        return ("rank", "instance_image", "instance_text")

    @property
    def sharded(self) -> str:
        return "classifier/kernel"

    def setup(self) -> None:
        if self.position not in WORDS:
            raise UsageError(f'No place "{self.position}" of words (model.position); there are {", ".join(WORDS)}.')
        if len(self.widths) != len(self.blocks):
            raise UsageError(
                f"model.widths has {len(self.widths)} stages, model.blocks {len(self.blocks)}; give as many."
            )
        dtype, widths, blocks = jnp.dtype(self.dtype), tuple(self.widths), tuple(self.blocks)
        self.text_net = TextNet(self.vocabulary, self.word_dim, widths, blocks, self.embed_dim, dtype)
        self.image_head = ImageHead(self.hidden_dim, self.embed_dim, dtype)
        self.classifier = SharedClassifier(max(self.groups or self.classes, 1), self.embed_dim, self.class_bias, dtype)
        self.drop = nn.Dropout(self.dropout)
        if self.groups:  # filled before training, see xmodal_jax.training.groups
            self.group = self.variable("groups", "of_image", jnp.zeros, (self.classes,), jnp.int32)

    def _image(self, image: Images, *, train: bool) -> Float[Array, "b d"]:
        return self.image_head(image_vector(image, self.feature), jnp.asarray(image.id) >= 0, train=train)

    def _words(self, text: Texts) -> tuple[Int[Array, "c p"], Int[Array, " c"]]:
        return words_of(text.token, text.mask, self.positions, drop_unknown=self.drop_unknown)

    def _text(self, text: Texts, *, train: bool) -> Float[Array, "c d"]:
        """Captions at one offset each, a random one under "shift"."""
        left, length = self._words(text)
        if self.position == "shift":
            offset = jax.random.randint(self.make_rng("dropout"), length.shape, 0, self.positions - length + 1)
            left = placed(left, offset)
        return self.text_net(left, jnp.asarray(text.id) >= 0, train=train)

    def _summed(self, text: Texts) -> Float[Array, "c d"]:
        """Captions at all their offsets, added up."""
        left, length = self._words(text)
        real, relu = jnp.ones_like(length, bool), jax.nn.relu if not self.eval_pre_relu else (lambda x: x)
        total = relu(self.text_net(left, real, train=False))
        if self.position != "shift" or self.is_initializing():
            return total
        net, variables = self.text_net.unbind()

        def add(index: Array, total: Array) -> Array:
            offset = index * self.offset_step
            vector: Any = net.apply(variables, placed(left, jnp.full_like(length, offset)), real, train=False)
            return total + jnp.where((offset + length <= self.positions)[:, None], relu(vector), 0.0)

        # Long captions fit at few offsets: a batch of them ends early.
        last = (self.positions - jnp.min(length)) // self.offset_step
        return jax.lax.fori_loop(1, last + 1, add, total)

    def _unit(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-8)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        before = self._image(image, train=train)
        after = jax.nn.relu(before)
        return self._unit(before if self.eval_pre_relu and not train else after), after

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c d"], Float[Array, "c d"]]:
        if not train:
            total = self._summed(text)
            return self._unit(total), jax.nn.relu(total)
        after = jax.nn.relu(self._text(text, train=True))
        return self._unit(after), after

    def score(self, image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
        return similarity.dot(image, text)

    def select(self, batch: Batch) -> Batch:
        """The batch whose captions of the second half of the images are replaced, each by the candidate that scores
        highest with an image of the first half, in test mode. Each device looks among its own."""
        if batch.candidate is None:
            return batch
        text, others, half = batch.text, batch.candidate, len(batch.image.id) // 2
        if len(text.id) != len(batch.image.id):
            raise UsageError(
                f"Dual-Path's ranking loss takes one caption an image, not {len(text.id)} of {len(batch.image.id)}; "
                "set data.captions_per_image=1."
            )
        anchor = self._unit(jax.nn.relu(self._image(batch.image, train=False)))[:half]
        chosen = jnp.argmax(similarity.dot(anchor, self._unit(jax.nn.relu(self._text(others, train=False)))), axis=1)
        width = max(text.token.shape[1], others.token.shape[1])
        both = [t._replace(token=_wide(t.token, width), mask=_wide(t.mask, width)) for t in (text, others)]
        others = jax.tree.map(lambda x: jnp.asarray(x)[chosen], both[1]._replace(row=jnp.full_like(others.row, -1)))
        kept = jax.tree.map(lambda old, new: jnp.concatenate([old[:half], new, old[2 * half :]]), both[0], others)
        return batch._replace(text=kept)

    def aux(self, batch: Batch, image: Any, text: Any, *, train: bool) -> dict[str, Array]:
        """Instance loss of either path: cross entropy of the class of the image, the caption's own for a caption."""
        drawn = None
        if self.sampled and train:
            drawn = jax.random.randint(self.make_rng("dropout"), (self.sampled,), 0, self.classifier.classes)
        terms = {}
        for name, (_, feature), label in (
            ("instance_image", image, batch.image.id),
            ("instance_text", text, batch.text.image_id),
        ):
            label = jnp.asarray(label)
            if self.groups:
                label = jnp.where(label >= 0, self.group.value[label], -1)
            terms[name] = self.classifier.loss(self.drop(feature, deterministic=not train), label, drawn)
        return terms


def _wide(x: AnyArray, width: int) -> Array:
    return jnp.pad(jnp.asarray(x), ((0, 0), (0, width - x.shape[1])))
