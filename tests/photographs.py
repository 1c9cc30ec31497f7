"""A prepared set of small pictures without features, imported from a folder and a table; a model that reads pixels."""

from pathlib import Path

import numpy as np
from importing import run

from xmodal_jax.data.records import open_dataset

GROUNDS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 210), "grey": (128, 128, 128)}
SHAPES = ("left", "right", "top", "bottom")

MODEL = '''"""Two strided convolutions and the mean of word vectors."""

import flax.linen as nn
import jax.numpy as jnp

from xmodal_jax.layers.image import mean_pool
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import dot, l2_normalise
from xmodal_jax.types import Inputs


class Model(Matcher):
    """Pixels to a vector."""

    vocabulary: int
    embed_dim: int = 16

    @property
    def inputs(self):
        return Inputs(("pixels",))

    def setup(self):
        self.convolve = [nn.Conv(8, (3, 3), 4), nn.Conv(16, (3, 3), 2)]
        self.project = nn.Dense(self.embed_dim)
        self.embed = WordEmbedding(self.vocabulary, self.embed_dim)

    def encode_image(self, image, *, train):
        x = image.feature["pixels"]
        assert x.dtype == jnp.uint8
        x = x.astype(jnp.float32) / 127.5 - 1.0
        for layer in self.convolve:
            x = nn.relu(layer(x))
        return l2_normalise(self.project(x.reshape(x.shape[0], -1))), None

    def encode_text(self, text, *, train):
        return l2_normalise(mean_pool(self.embed(text.token), text.mask)), None

    def score(self, image, text):
        return dot(image, text)
'''
CONFIG = """from ml_collections import ConfigDict

from xmodal_jax.defaults import base


def get_config(arg=None):
    config = base("own")
    config.model = ConfigDict({"name": "eyes.py", "embed_dim": 16})
    config.data.pixels.side, config.data.pixels.resize = 24, 28
    config.data.batch_size, config.data.lengths, config.data.minimum_count = 8, (8,), 1
    config.log.tensorboard = False
    return config
"""


def photograph(row, height=30, width=40):
    """A ground of one of four colours with a white bar at one of its edges, and noise: 16 kinds."""
    random = np.random.default_rng(row)
    pixels = np.full((height, width, 3), list(GROUNDS.values())[row % 4], np.int64)
    bar = {"left": np.s_[:, :8], "right": np.s_[:, -8:], "top": np.s_[:8], "bottom": np.s_[-8:]}[SHAPES[row // 4 % 4]]
    pixels[bar] = 250
    return np.clip(pixels + random.integers(-20, 20, pixels.shape), 0, 255).astype(np.uint8)


def words(row):
    return f"{list(GROUNDS)[row % 4]} {SHAPES[row // 4 % 4]}"


def photographs(folder, *, train=24, other=16):
    """The set, below ``folder``: PNG, JPEG and WebP, in splits train, dev and test."""
    from PIL import Image

    pictures = folder / "photographs"
    pictures.mkdir(parents=True)
    lines, row = ["image,caption,split"], 0
    for split, count in (("train", train), ("dev", other), ("test", other)):
        for number in range(count):
            name = f"{split}{number:02d}.{('png', 'jpg', 'webp')[number % 3]}"
            Image.fromarray(photograph(row + number, 30 + number % 5, 40 - number % 7)).save(pictures / name)
            lines += [f"{name},{words(row + number)} {k},{split}" for k in ("one", "two")]
        row += 16 * count
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return run("csv", folder / "captions.csv", folder, images=str(pictures)).directory


def files(folder, split) -> list[Path]:
    """The pictures of a split by row, all of which has one."""
    return [path for path in open_dataset(folder).split(split).pictures if path is not None]
