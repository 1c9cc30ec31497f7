"""GXN (Gu, Cai, Joty, Niu, Wang, "Look, Imagine and Match", CVPR 2018, arXiv 1711.06420): two embeddings of an item.

An abstract and a grounded embedding of each image and each caption; the grounded ones also serve two generative paths:
a decoder says the caption of an image ("i2t"), by cross entropy and then by self-critical rewards, and a conditional
adversarial network draws the picture of a caption ("t2i"). No code is public; sizes and weights are [recalled] or a
[reconstruction], and all of them fields here or keys of the config.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax import similarity
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.decoder import Decoder
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import PIXELS, ImageVector
from xmodal_jax.layers.imagine import TextToImage, as_picture
from xmodal_jax.layers.text import ProjectedGRU, WordEmbedding
from xmodal_jax.losses import tokens
from xmodal_jax.losses.modality import mean
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.text.generation import allowed_log_probability, greedy, sample
from xmodal_jax.text.ngrams import NGrams
from xmodal_jax.text.rewards import REWARDS
from xmodal_jax.text.vocabulary import END, START
from xmodal_jax.types import Batch, Images, Inputs, Texts

PATHS = ("i2t", "t2i")
MEASURES = ("dot", "order")


class Model(Matcher):
    """Two towers whose representation is one vector [N, 2 D]: both embeddings, scaled so that one inner product (or
    order similarity) is their combined score ``lambda S(abstract) + (1 - lambda) S(grounded)``.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D, of each embedding.
        word_dim: size of a word vector; encoders and decoder share them.
        gru_dim: units of the sentence encoders' GRUs, each way.
        feature: which image feature is used; regions are mean-pooled first.
        network: name of an image network of :mod:`xmodal_jax.layers.backbones`, for the feature "pixels".
        cnn_mode: "eval" or "train", as in :class:`xmodal_jax.models.vse.Model`.
        bidirectional: read captions both ways.
        dual: both embeddings; False leaves the grounded one alone, [N, D] (the paper's baselines).
        abstract: lambda.
        measure: "dot", of unit vectors, or "order".
        absolute: take absolute values of all embeddings (order-embeddings).
        paths: what the grounded embeddings are trained to generate: "i2t", captions, "t2i", pictures.
        references: further captions of an image that sampled ones are rewarded by; 0 for cross entropy alone.
        reward: "cider" (CIDEr-D) or "bleu" (BLEU-4), of :mod:`xmodal_jax.text.rewards`.
        longest: most tokens of a sampled caption.
        side: pixels of a side of generated pictures, 8 to 128.
        noise_dim: numbers of noise that the generator sees.
        condition_dim: numbers of a caption that the generator sees, and of those that its discriminator sees.
        filters: channels of both at the largest size of a picture, twice as many at each smaller one.
    """

    vocabulary: int
    embed_dim: int = 1024
    word_dim: int = 300
    gru_dim: int = 1024
    feature: str = "global"
    network: str = ""
    cnn_mode: str = "eval"
    bidirectional: bool = True
    dual: bool = True
    abstract: float = 0.5
    measure: str = "dot"
    absolute: bool = False
    paths: Sequence[str] = ()
    references: int = 0
    reward: str = "cider"
    longest: int = 20
    side: int = 64
    noise_dim: int = 100
    condition_dim: int = 128
    filters: int = 64
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        further = (PIXELS,) if "t2i" in self.paths and self.feature != PIXELS else ()
        return Inputs((self.feature,), captions={"target": self.references} if self.rewarded else {}, further=further)

    @property
    def rewarded(self) -> bool:
        """Whether captions are sampled and rewarded."""
        return "i2t" in self.paths and self.references > 0

    @property
    def word_tables(self) -> str:
        return "embed/embedding"

    @property
    def costly_terms(self) -> tuple[tuple[str, ...], ...]:
        return ("captioning",), ("self_critical", "reward"), ("discrimination", "generation", "kl")

    def has(self, method: str) -> bool:
        needs = {"begin": "i2t" in self.paths, "imagine": "t2i" in self.paths, "aux": bool(self.paths)}
        return needs.get(method, True) and super().has(method)

    def setup(self) -> None:
        for name, value, known in (("measure", [self.measure], MEASURES), ("paths", self.paths, PATHS),
                                   ("reward", [self.reward], REWARDS)):  # fmt: skip
            if unknown := [x for x in value if x not in known]:
                raise UsageError(f'No "{unknown[0]}" of model.{name}; there are {", ".join(known)}.')
        dtype = jnp.dtype(self.dtype)
        self.image_vector = ImageVector(self.feature, self.network, self.cnn_mode, str(dtype))
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.grounded_image = xavier(self.embed_dim, dtype)
        self.grounded_text = ProjectedGRU(self.gru_dim, self.embed_dim, self.bidirectional, dtype)
        if self.dual:
            self.abstract_image = xavier(self.embed_dim, dtype)
            self.abstract_text = ProjectedGRU(self.gru_dim, self.embed_dim, self.bidirectional, dtype)
        if "i2t" in self.paths:
            self.decoder = Decoder(self.vocabulary, self.embed_dim, cell="pytorch", dtype=dtype)
        if self.rewarded:  # filled before training, see xmodal_jax.training.setup
            empty = NGrams.empty()._asdict()
            self.ngrams = {name: self.variable("ngrams", name, jnp.asarray, value) for name, value in empty.items()}
        if "t2i" in self.paths:
            sizes = (self.noise_dim, self.condition_dim, self.filters)
            self.imagination = TextToImage(self.side, *sizes, dtype=dtype)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b e"], Float[Array, "b d"]]:
        vector = self.image_vector(image, train=train)
        if self.feature == PIXELS:
            vector = similarity.l2_normalise(vector)
        grounded = self.unit(self.grounded_image(vector))
        return self.joined(self.unit(self.abstract_image(vector)) if self.dual else None, grounded), grounded

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c e"], Float[Array, "c d"]]:
        words = self.embed(text.token)
        grounded = self.unit(self.grounded_text(words, text.mask))
        return self.joined(self.unit(self.abstract_text(words, text.mask)) if self.dual else None, grounded), grounded

    def unit(self, x: Float[AnyArray, "n d"]) -> Float[Array, "n d"]:
        """``x`` as an embedding."""
        x = similarity.l2_normalise(jnp.asarray(x, jnp.float32))
        return jnp.abs(x) if self.absolute else x

    def joined(self, abstract: Float[Array, "n d"] | None, grounded: Float[Array, "n d"]) -> Float[Array, "n e"]:
        """Both embeddings as one vector; each score is quadratic in the scale of its vectors."""
        if abstract is None:
            return grounded
        return jnp.concatenate([self.abstract**0.5 * abstract, (1 - self.abstract) ** 0.5 * grounded], axis=-1)

    def score(self, image: Float[AnyArray, "b e"], text: Float[AnyArray, "c e"]) -> Float[Array, "b c"]:
        return getattr(similarity, self.measure)(image, text)

    def aux(self, batch: Batch, image: Any, text: Any, *, train: bool) -> dict[str, jax.Array]:
        """The losses of the paths, each a mean over the captions that count: "captioning", the cross entropy summed
        over tokens; "self_critical", whose value means nothing, and "reward", that of greedy captions; "discrimination"
        for the discriminator alone, "generation" and "kl" for the rest of the path."""
        terms: dict[str, jax.Array] = {}
        row, real = jnp.asarray(batch.text.row), jnp.asarray(batch.text.id) >= 0
        key = self.make_rng("dropout") if train else jax.random.key(0)
        if "i2t" in self.paths:
            vector, token = image[1][row], jnp.asarray(batch.text.token)
            said = jnp.asarray(batch.text.mask)[:, 1:] & real[:, None]
            logits = self.decoder(vector, self.embed(token[:, :-1]), said)
            terms["captioning"] = tokens.cross_entropy(logits, token[:, 1:], said) / jnp.maximum(jnp.sum(real), 1)
            if self.rewarded:
                terms |= self.rewards(batch, vector, real, jax.random.fold_in(key, 1))
        if "t2i" in self.paths:
            if self.is_initializing():  # whoever only wants the shapes has no pictures
                picture = jnp.zeros((len(row), self.side, self.side, 3))
            else:
                picture = as_picture(batch.image.feature[PIXELS], self.side)[row]
            other = jnp.asarray(batch.text.image_id)
            differs = (other[:, None] != other) & real & real[:, None]
            # The next caption of another image, so that no two captions meet the same wrong one where they can avoid it
            turn = (jnp.arange(len(row)) + jnp.arange(len(row))[:, None]) % len(row)
            first = jnp.argmax(jnp.take_along_axis(differs, turn, axis=1), axis=1)
            wrong = text[1][(jnp.arange(len(row)) + first) % len(row)]
            judged = real & jnp.any(differs, axis=1)
            sides = (picture, text[1], wrong, real, judged)
            terms |= self.imagination.losses(*sides, jax.random.fold_in(key, 2))
        return terms

    def rewards(
        self, batch: Batch, vector: Float[Array, "c d"], real: Bool[Array, " c"], key: jax.Array
    ) -> dict[str, jax.Array]:
        """Sampled captions against greedy ones, by what all captions of the image that are at hand have in common with
        them; a reference that repeats another counts once."""
        target = batch.target
        assert target is not None  # `inputs` asks for it
        speak = {"longest": self.longest}
        net, values = jax.lax.stop_gradient((self.decoder.variables, self.embed.variables))

        def begin(vector: Any) -> Any:
            return self.decoder.clone(parent=None).apply(net, vector, method="begin")

        def word(carry: Any, token: Any) -> Any:
            words = self.embed.clone(parent=None).apply(values, token)
            return self.decoder.clone(parent=None).apply(net, carry, words, method="step")

        start = jax.lax.stop_gradient(vector)
        drawn, likely = sample(begin, word, start, key, **speak), greedy(begin, word, start, **speak)
        count, width = len(vector), max(batch.text.token.shape[1], target.token.shape[1])
        ids, references, lengths = (
            jnp.concatenate([own[:, None], others.reshape(count, self.references, *others.shape[1:])], axis=1)
            for own, others in zip(of(batch.text, width), of(target, width), strict=True)
        )
        repeated = (ids[:, :, None] == ids[:, None, :]) & jnp.tri(ids.shape[1], k=-1, dtype=bool)
        counts = (ids >= 0) & ~jnp.any(repeated, axis=2)
        table = NGrams(**{name: variable.value for name, variable in self.ngrams.items()})
        judge = jax.vmap(REWARDS[self.reward], (0, 0, None, None, None, None))
        both = (jnp.stack(pair) for pair in ((drawn.token, likely.token), (drawn.length, likely.length)))
        reward, baseline = judge(*both, references, lengths, counts, table)
        probability = self.log_probability(vector, drawn.token, drawn.length)
        return {
            "self_critical": tokens.self_critical(probability, reward, baseline, real),
            "reward": mean(baseline, real),
        }

    def log_probability(
        self, vector: Float[Array, "c d"], token: Int[Array, "c t"], length: Int[Array, " c"]
    ) -> Float[Array, " c"]:
        """That of drawing each sentence, ``<end>`` included, from what may be said."""
        place = jnp.arange(token.shape[1])
        mask = place <= length[:, None]
        said = jnp.where(place < length[:, None], token, END)
        before = jnp.concatenate([jnp.full_like(token[:, :1], START), token[:, :-1]], axis=1)
        logits = self.decoder(vector, self.embed(before), mask)
        allowed = jax.vmap(allowed_log_probability, (1, 0), 1)(logits, place)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(allowed, axis=-1), said[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(mask, chosen, 0.0), axis=1)

    def begin(self, source: Images | Texts) -> tuple[jax.Array, ...]:
        if not isinstance(source, Images):
            raise UsageError("GXN speaks of images alone.")
        return self.decoder.begin(self.encode_image(source, train=False)[1])

    def word(
        self, carry: tuple[Float[AnyArray, "n s"], ...], token: Int[AnyArray, " n"]
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        return self.decoder.step(carry, self.embed(token))

    def imagine(self, text: Texts, key: jax.Array) -> Float[Array, "c s s 3"]:
        return (self.imagination(self.encode_text(text, train=False)[1], key)[0] + 1) / 2


def of(text: Texts, width: int) -> tuple[Int[Array, " c"], Int[Array, "c w"], Int[Array, " c"]]:
    """Ids, words and lengths of captions without ``<start>`` and ``<end>``."""
    token = jnp.pad(jnp.asarray(text.token)[:, 1:], ((0, 0), (0, width - text.token.shape[1])))
    return jnp.asarray(text.id), token, jnp.maximum(jnp.sum(jnp.asarray(text.mask), axis=1) - 2, 0)
