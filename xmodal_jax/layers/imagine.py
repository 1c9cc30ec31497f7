"""Pictures from sentences: a conditional generative adversarial network on small pictures.

DCGAN (Radford et al., ICLR 2016) with the conditioning augmentation of StackGAN (Zhang et al., ICCV 2017). Pictures are
float32 [N, S, S, 3] in -1..1. Where those papers take statistics of the batch, the generator normalises groups of
channels and the discriminator nothing: a picture depends on its sentence and its noise alone, and the devices of a run
agree.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from xmodal_jax.errors import UsageError
from xmodal_jax.layers.dense import xavier
from xmodal_jax.losses import adversarial
from xmodal_jax.similarity import AnyArray

SMALLEST = 4  # pixels a side that the generator begins with and the discriminator ends with
NORMAL = nn.initializers.normal(0.02)


def doublings(side: int) -> int:
    """How often a side of 4 pixels doubles to ``side``. Raises UsageError for one that it does not reach."""
    times = max(side // SMALLEST, 1).bit_length() - 1
    if times < 1 or SMALLEST << times != side:
        raise UsageError(f"Pictures are generated with 8, 16, 32, 64 or 128 pixels a side (model.side), not {side}.")
    return times


def grouped(x: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """Normalised in groups of channels, with a learned scale and bias; within a module's compact method."""
    return nn.GroupNorm(num_groups=math.gcd(8, x.shape[-1]))(x)


def as_picture(pixels: Shaped[AnyArray, "n h h 3"], side: int) -> Float[Array, "n s s 3"]:
    """Pixels uint8 of any side as pictures of ``side``, made smaller with antialiasing."""
    picture = jnp.asarray(pixels, jnp.float32) / 127.5 - 1
    if picture.shape[1] == side:
        return picture
    return jax.image.resize(picture, (len(picture), side, side, 3), "linear", antialias=True)


class Generator(nn.Module):
    """Noise and a condition [N, Z + Y] to pictures; ``filters`` channels before the last layer, twice as many before
    each further one."""

    side: int
    filters: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[AnyArray, "n z"]) -> Float[Array, "n s s 3"]:
        times = doublings(self.side)
        options = {"kernel_init": NORMAL, "dtype": jnp.dtype(self.dtype)}
        channels = self.filters << (times - 1)
        x = nn.Dense(SMALLEST * SMALLEST * channels, **options)(x)
        x = nn.relu(grouped(x.reshape(-1, SMALLEST, SMALLEST, channels).astype(jnp.float32)))
        for _ in range(times - 1):
            channels //= 2
            x = nn.ConvTranspose(channels, (4, 4), (2, 2), use_bias=False, **options)(x)
            x = nn.relu(grouped(x.astype(jnp.float32)))
        return jnp.tanh(nn.ConvTranspose(3, (4, 4), (2, 2), **options)(x).astype(jnp.float32))


class Discriminator(nn.Module):
    """The logit [N] of pictures' being real and of their sentences; ``condition_dim`` numbers of the sentence join in
    where 4 pixels a side are left."""

    side: int
    filters: int
    condition_dim: int
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[AnyArray, "n s s 3"], sentence: Float[AnyArray, "n d"]) -> Float[Array, " n"]:
        # Nothing is normalised: statistics of one picture would hide its colour and its contrast
        options = {"kernel_init": nn.initializers.he_normal(), "dtype": jnp.dtype(self.dtype)}
        for number in range(doublings(self.side)):
            x = nn.Conv(self.filters << number, (4, 4), (2, 2), **options)(x).astype(jnp.float32)
            x = nn.leaky_relu(x, 0.2)
        condition = nn.leaky_relu(nn.Dense(self.condition_dim, **options)(sentence).astype(jnp.float32), 0.2)
        shape = (*x.shape[:3], self.condition_dim)
        x = jnp.concatenate([x, jnp.broadcast_to(condition[:, None, None], shape)], axis=-1)
        x = nn.Conv(x.shape[-1] - self.condition_dim, (1, 1), **options)(x).astype(jnp.float32)
        x = nn.leaky_relu(x, 0.2).reshape(len(x), -1)
        return nn.Dense(1, **options)(x)[:, 0].astype(jnp.float32)


class TextToImage(nn.Module):
    """Both players and what scales them.

    Attributes:
        side: S, pixels of a side.
        noise_dim: Z.
        condition_dim: Y, numbers of a sentence that the generator sees, and of those that the discriminator sees.
        filters: channels at the largest size.
        dtype: of the products.
    """

    side: int
    noise_dim: int = 100
    condition_dim: int = 128
    filters: int = 64
    dtype: Any = "float32"

    def setup(self) -> None:
        self.augment = xavier(2 * self.condition_dim, self.dtype)
        self.generator = Generator(self.side, self.filters, self.dtype)
        self.discriminator = Discriminator(self.side, self.filters, self.condition_dim, self.dtype)

    def __call__(
        self, sentence: Float[AnyArray, "n d"], key: jax.Array
    ) -> tuple[Float[Array, "n s s 3"], tuple[Float[Array, "n y"], Float[Array, "n y"]]]:
        """A picture of each sentence, and mean and log standard deviation of the condition that it was drawn with."""
        mean, log_sigma = jnp.split(self.augment(sentence).astype(jnp.float32), 2, axis=1)
        keys = jax.random.split(key)
        condition = mean + jnp.exp(log_sigma) * jax.random.normal(keys[0], mean.shape)
        noise = jax.random.normal(keys[1], (len(mean), self.noise_dim))
        return self.generator(jnp.concatenate([noise, condition], axis=1)), (mean, log_sigma)

    def losses(
        self,
        picture: Float[AnyArray, "n s s 3"],
        sentence: Float[AnyArray, "n d"],
        wrong: Float[AnyArray, "n d"],
        real: Bool[AnyArray, " n"],
        differs: Bool[AnyArray, " n"],
        key: jax.Array,
    ) -> dict[str, Array]:
        """What each player minimises: "discrimination" has a gradient for the discriminator alone, "generation" and
        "kl" for the generator and for what made the sentences.

        Sentences reach the discriminator without gradient, lest an encoder please it by what it says of a picture
        rather than by the picture.

        Args:
            wrong: sentences of other images, as far as ``differs``.
        """
        fake, condition = self(sentence, key)
        if self.is_initializing():
            self.discriminator(picture, sentence)
        net = {"params": self.discriminator.variables["params"]}

        def logit(variables: Any, picture: Any, sentence: Any) -> Any:
            return self.discriminator.clone(parent=None).apply(variables, picture, jax.lax.stop_gradient(sentence))

        shown = jnp.concatenate([picture, jax.lax.stop_gradient(fake), picture])
        true, generated, mistaken = jnp.split(logit(net, shown, jnp.concatenate([sentence, sentence, wrong])), 3)
        fooled = logit(jax.lax.stop_gradient(net), fake, sentence)
        return {
            "discrimination": adversarial.discrimination(true, generated, mistaken, real, differs),
            "generation": adversarial.generation(fooled, real),
            "kl": adversarial.divergence(*condition, real),
        }
