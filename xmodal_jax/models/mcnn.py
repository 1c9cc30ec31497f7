r"""m-CNN: a convolutional network of words that the image joins at one of four levels, and a perceptron that scores.

Ma, Lu, Shang, Li, "Multimodal Convolutional Neural Networks for Matching Image and Sentence", ICCV 2015. No code was
published. Certain are the windows of 3, the pooling of 2, the perceptron that scores, margin 0.5 and dropout 0.1; layer
widths, word and image dimensions, the number of positions and the gate are recalled, the place of the dropout and the
initial values are choices.

Where the image joins, its vector is appended to every window, and the product with the joint matrix is a sum of two,

.. math:: W [\text{window} ; \nu_{im}] = W_t\, \text{window} + W_i\, \nu_{im},

so that all layers up to there run once a caption, :math:`W_i \nu_{im}` once an image; a pair begins with their sum.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.errors import UsageError
from xmodal_jax.layers.image import ImageVector
from xmodal_jax.layers.recurrent import product, uniform
from xmodal_jax.layers.text import WordEmbedding, words_of
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.similarity.vector import NEVER
from xmodal_jax.types import Fragments, Images, Inputs, Texts

LEVELS = ("word", "short", "long", "sentence")  # the number of convolutions that run before the image joins
PADDINGS = {"valid": 0, "same": 1}  # zeros on either side of what a convolution reads
WINDOW, POOLED = 3, 2
MARKERS = 2  # <start> and <end>, tokens that are no words


def windows(x: Float[Array, "*n t f"], length: int, side: int) -> Float[Array, "*n v _"]:
    """Each position with its neighbours, 3 F numbers, of a sequence of ``length`` whose rest beyond T is zero.

    ``side`` zeros stand on either side of it. Windows that lie beyond T as a whole are left out.
    """
    have = x.shape[-2]
    count = min(length + 2 * side - WINDOW + 1, have + side)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(side, count + WINDOW - 1 - side - have), (0, 0)])
    return jnp.concatenate([x[..., k : k + count, :] for k in range(WINDOW)], axis=-1)


def pool(x: Array, length: int, fill: Any) -> Array:
    """The largest of 2 neighbours at axis -2, of a sequence of ``length`` whose rest beyond T is ``fill``."""
    have = x.shape[-2]
    count = min(length // POOLED, -(-have // POOLED))
    x = jnp.pad(
        x[..., : POOLED * count, :],
        [(0, 0)] * (x.ndim - 2) + [(0, max(POOLED * count - have, 0)), (0, 0)],
        constant_values=fill,
    )
    return jnp.max(x.reshape(*x.shape[:-2], count, POOLED, x.shape[-1]), axis=-2)


class Linear(nn.Module):
    """``x W + b``; of vectors shorter than ``rows`` as if zeros followed.

    Initial values are He's (He et al., ICCV 2015), uniform, biases zero.

    Attributes:
        rows: numbers that the matrix reads.
        size: numbers that come out.
        joined: numbers of the other matrix that adds to this one's product, for the initial values.
        bias: whether there is one.
        dtype: of the product.
    """

    rows: int
    size: int
    joined: int = 0
    bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*n f"]) -> Float[Array, "*n d"]:
        scale = (6 / (self.rows + self.joined)) ** 0.5
        kernel = self.param("kernel", uniform(scale), (self.rows, self.size))
        out = product(jnp.asarray(x), kernel[: x.shape[-1]].astype(self.dtype))
        return out + self.param("bias", nn.initializers.zeros, (self.size,)) if self.bias else out


class Model(Matcher):
    """A network of convolutions over the words of a caption, one of whose layers reads the image too.

    Attributes:
        vocabulary: V, the number of tokens.
        level: where the image joins: "word", the first convolution (m-CNN_wd); "short" and "long", the second and the
            third (m-CNN_phs, m-CNN_phl); "sentence", the perceptron (m-CNN_st).
        feature: which image feature is used; regions [B, R, F] are mean-pooled first.
        network, cnn_mode: of "pixels", see :class:`xmodal_jax.layers.image.ImageVector`. The paper has VGG-19, frozen
            or trained in the second half of the training.
        word_dim: size of a word vector [recalled].
        image_dim: size of the image's vector [recalled].
        widths: channels of the three convolutions [recalled].
        hidden_dim: width of the perceptron's hidden layer [recalled].
        positions: words that are read, of longer captions the first; shorter ones are followed by zeros [recalled].
        padding: of the convolutions, "valid" for none or "same"; the paper does not say which.
        dropout: rate on the word vectors, on what later layers of the caption alone read, and on the image's vector.
            Behind the place where both meet there is none: scores are free of chance. The paper names no place.
    """

    vocabulary: int
    level: str = "word"
    feature: str = "global"
    network: str = ""
    cnn_mode: str = "eval"
    word_dim: int = 50
    image_dim: int = 256
    widths: tuple[int, ...] = (200, 300, 300)
    hidden_dim: int = 400
    positions: int = 30
    padding: str = "valid"
    dropout: float = 0.1
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs((self.feature,), most_words=self.positions + MARKERS)

    @property
    def word_tables(self) -> str:
        return r"(.*/)?embed/embedding"

    def setup(self) -> None:
        if self.level not in LEVELS or self.padding not in PADDINGS or len(self.widths) != 3:
            raise UsageError(
                f"model.level is one of {', '.join(LEVELS)}, model.padding one of {', '.join(PADDINGS)}, model.widths "
                f'three numbers; not "{self.level}", "{self.padding}" and {self.widths}.'
            )
        dtype = jnp.dtype(self.dtype)
        self.side, self.join = PADDINGS[self.padding], LEVELS.index(self.level)
        lengths = [self.positions]  # that each convolution reads, and the perceptron
        for _ in self.widths:
            lengths.append((lengths[-1] + 2 * self.side - WINDOW + 1) // POOLED)
        self.lengths = tuple(lengths)
        if lengths[-1] < 1:
            raise UsageError(f"model.positions is {self.positions}, too few for three convolutions; give 22 or more.")
        rows = [WINDOW * size for size in (self.word_dim, *self.widths[:2])] + [lengths[-1] * self.widths[2]]
        sizes = [*self.widths, self.hidden_dim]
        self.image_vector = ImageVector(self.feature, self.network, self.cnn_mode, str(dtype))
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.drop = nn.Dropout(self.dropout)
        self.image_encoder = nn.Dense(self.image_dim, kernel_init=nn.initializers.he_uniform(), dtype=dtype)
        self.layers = [
            Linear(rows[i], sizes[i], self.image_dim if i == self.join else 0, dtype=dtype) for i in range(len(rows))
        ]
        self.image_part = Linear(self.image_dim, sizes[self.join], rows[self.join], bias=False, dtype=dtype)
        self.final = nn.Dense(1, kernel_init=nn.initializers.xavier_uniform())

    def convolve(self, x: Float[Array, "*n t f"], number: int) -> tuple[Float[Array, "*n v d"], Bool[Array, "*n v"]]:
        """Products of a convolution, and its gate: the windows that are not all zero."""
        window = windows(x, self.lengths[number], self.side)
        return self.layers[number](window), jnp.any(window != 0, axis=-1)

    def shrink(self, out: Float[Array, "*n v d"], gate: Bool[Array, "*n v"], number: int) -> Float[Array, "*n t d"]:
        """Gate, ReLU and pooling of a convolution's products."""
        length = self.lengths[number] + 2 * self.side - WINDOW + 1
        return jax.nn.relu(pool(jnp.where(gate[..., None], out, 0.0), length, 0.0))

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], None]:
        """What the image adds to the products of the layer where it joins."""
        vector = jax.nn.relu(self.image_encoder(self.image_vector(image, train=train)).astype(jnp.float32))
        return self.image_part(self.drop(vector, deterministic=not train)), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Fragments, None]:
        """What the caption adds there, [C, T, D], and the gate of it."""
        token, count = words_of(text.token, text.mask, self.positions, drop_unknown=False)
        real = jnp.arange(self.positions) < count[:, None]
        x = jnp.where(real[..., None], self.embed(token), 0.0)
        for number in range(min(self.join + 1, 3)):
            out, gate = self.convolve(self.drop(x, deterministic=not train), number)
            if number == self.join:
                return Fragments(out, gate), None
            x = self.shrink(out, gate, number)
        out = self.layers[3](self.drop(x.reshape(x.shape[0], -1), deterministic=not train))
        return Fragments(out[:, None], jnp.ones((x.shape[0], 1), bool)), None

    def score(self, image: Float[AnyArray, "b d"], text: Fragments) -> Float[Array, "b c"]:
        """The layers that see both. Captions may be cut to their lengths: what lies beyond is zero to each layer."""
        out = jnp.asarray(text.feature)
        if self.join < 3:
            # Pooled before the image is added: it adds the same to both neighbours, so the larger one stays larger.
            length = self.lengths[self.join] + 2 * self.side - WINDOW + 1
            out = pool(jnp.where(text.mask[..., None], out, NEVER), length, NEVER)
        x = jax.nn.relu(out + jnp.asarray(image)[:, None, None])
        for number in range(self.join + 1, 3):
            x = self.shrink(*self.convolve(x, number), number)
        x = x.reshape(*x.shape[:2], -1)
        return self.final(x if self.join == 3 else jax.nn.relu(self.layers[3](x)))[..., 0]
