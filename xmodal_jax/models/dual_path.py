"""Dual-Path: a convolutional path of the image and a deep convolutional net of words, that share one classifier.

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
from xmodal_jax.layers.bottleneck import TextNet, Unit
from xmodal_jax.layers.classifier import SharedClassifier
from xmodal_jax.layers.image import PIXELS, ImageVector
from xmodal_jax.layers.text import placed, words_of
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Batch, Images, Inputs, Texts

WORDS = ("shift", "left")


class ImageHead(nn.Module):
    """What an image network gives, [N, F], to [N, D] before the last ReLU: unit, ReLU, unit."""

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
        feature: which image feature is used; regions [B, R, F] are mean-pooled first, "pixels" go through the network.
        network: name of an image network of :mod:`xmodal_jax.layers.backbones`, for pixels.
        cnn_mode: of the network, see :class:`xmodal_jax.layers.backbones.Backbone`.
        mirror: for retrieval the vectors of a picture and of its mirror image are added up, as in the released code,
            which adds up those of all places of a picture that is not cropped, too; here pictures are squares.
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
    network: str = ""
    cnn_mode: str = "eval"
    mirror: bool = True
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
        self.image_vector = ImageVector(self.feature, self.network, self.cnn_mode, str(dtype))
        self.image_head = ImageHead(self.hidden_dim, self.embed_dim, dtype)
        self.classifier = SharedClassifier(max(self.groups or self.classes, 1), self.embed_dim, self.class_bias, dtype)
        self.drop = nn.Dropout(self.dropout)
        if self.groups:  # filled before training, see xmodal_jax.training.groups
            self.group = self.variable("groups", "of_image", jnp.zeros, (self.classes,), jnp.int32)

    def vector(self, image: Images) -> Float[Array, "b f"]:
        """What the image path begins with; by it :mod:`xmodal_jax.training.groups` groups the training images."""
        return self.image_vector(image, train=False)

    def _image(self, image: Images, *, train: bool) -> Float[Array, "b d"]:
        return self.image_head(self.image_vector(image, train=train), jnp.asarray(image.id) >= 0, train=train)

    def _seen(self, image: Images) -> Float[Array, "b d"]:
        """What retrieval sees of images, those of pixels from both sides."""
        total = self._ending(self._image(image, train=False))
        if not (self.mirror and self.feature == PIXELS):
            return total
        mirrored = image._replace(feature={PIXELS: jnp.asarray(image.feature[PIXELS])[:, :, ::-1]})
        return total + self._ending(self._image(mirrored, train=False))

    def _ending(self, x: jax.Array) -> jax.Array:
        return x if self.eval_pre_relu else jax.nn.relu(x)

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
        real = jnp.ones_like(length, bool)
        total = self._ending(self.text_net(left, real, train=False))
        if self.position != "shift" or self.is_initializing():
            return total
        net, variables = self.text_net.unbind()

        def add(index: Array, total: Array) -> Array:
            offset = index * self.offset_step
            vector: Any = net.apply(variables, placed(left, jnp.full_like(length, offset)), real, train=False)
            return total + jnp.where((offset + length <= self.positions)[:, None], self._ending(vector), 0.0)

        # Long captions fit at few offsets: a batch of them ends early.
        last = (self.positions - jnp.min(length)) // self.offset_step
        return jax.lax.fori_loop(1, last + 1, add, total)

    def _unit(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-8)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        if not train:
            total = self._seen(image)
            return self._unit(total), jax.nn.relu(total)
        after = jax.nn.relu(self._image(image, train=True))
        return self._unit(after), after

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
        first = batch.image._replace(
            **{name: jax.tree.map(lambda x: x[:half], getattr(batch.image, name)) for name in ("feature", "mask", "id")}
        )
        anchor = self._unit(jax.nn.relu(self._image(first, train=False)))
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
