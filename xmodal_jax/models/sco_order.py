"""SCO with order learning by generation: what an image is matched by must also tell its caption word by word.

Huang, Wu, Song, Wang, "Learning Semantic Concepts and Order for Image and Sentence Matching", CVPR 2018 (arXiv
1712.02036). No code was released. The matching half is :mod:`xmodal_jax.models.sco`. Its vector v starts an LSTM
decoder, and L_gen = - sum_t log P(w_t | w_<t, v) of the caption that the image is paired with teaches v the order in
which its concepts are said.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax import similarity
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.decoder import LSTMDecoder
from xmodal_jax.layers.lstm import LSTM, LSTMState
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.losses import tokens
from xmodal_jax.models import sco
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Batch, Images, Texts


class Model(sco.Model):
    """SCO's two towers, and a decoder that says an image's caption from v.

    The best decoder of the paper shares nothing with the sentence encoder and always reads the true words.

    Attributes:
        share_lstm: the decoder's LSTM is the sentence encoder's (the ablation "shared").
        share_words: its word vectors are the sentence encoder's. Whether the paper's are in its best decoder is not
            known.
        start: how v enters the decoder: "state", it is the first hidden state, or "input", a linear map of it is read
            before the first word. Which is [reconstruction].
        sampling: the probability with which each word that the decoder reads in training, after ``<start>``, is one
            that it drew itself in place of the caption's (the ablation "sampling": Bengio et al., "Scheduled Sampling
            for Sequence Prediction with Recurrent Neural Networks", NIPS 2015).
        sampling_steps: the probability rises to that in a line over so many steps; 0 for all of it at once. The paper's
            schedule is not known.
    """

    share_lstm: bool = False
    share_words: bool = False
    start: str = "state"
    sampling: float = 0.0
    sampling_steps: int = 0

    def setup(self) -> None:
        super().setup()
        shares = self.share_lstm or self.share_words
        if shares and self.text != "lstm":
            raise UsageError(f'A decoder shares parameters with an LSTM alone, and model.text is "{self.text}".')
        lstm = self.text_encoder.forward if self.share_lstm else LSTM(self.embed_dim, dtype=jnp.dtype(self.dtype))
        self.decoder = LSTMDecoder(self.vocabulary, self.word_dim, lstm, self.start)
        self.embed = self.text_encoder.embed if self.share_words else WordEmbedding(self.vocabulary, self.word_dim)
        if self.sampling and self.sampling_steps:
            self.done = self.variable("sampling", "steps", jnp.zeros, (), jnp.int32)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """The unit vectors that are compared, and v."""
        v = self.fuse(image)
        return similarity.l2_normalise(v), v

    def aux(self, batch: Batch, image: Any, text: Any, *, train: bool) -> dict[str, jax.Array]:
        """L_gen of the captions from the v of their images: summed over tokens, averaged over the captions that
        count."""
        token, mask = jnp.asarray(batch.text.token), jnp.asarray(batch.text.mask)
        counted = jnp.asarray(batch.text.id) >= 0
        read, valid = token[:, :-1], mask[:, 1:] & counted[:, None]
        v = image[1][batch.text.row]
        if train and self.sampling:
            read = self.sampled(v, read, valid)
        loss = tokens.cross_entropy(self.decoder(v, self.embed(read), valid), token[:, 1:], valid)
        return {"captioning": loss / jnp.maximum(jnp.sum(counted), 1)}

    def sampled(self, v: Float[Array, "c d"], token: Int[Array, "c t"], valid: Bool[Array, "c t"]) -> Int[Array, "c t"]:
        """``token`` with words that the decoder drew, each from what it says after all those before it.

        No gradient goes through a draw, so the words are drawn first and the loss is that of reading them.
        """
        probability = jnp.asarray(self.sampling)
        if self.sampling_steps:
            probability = probability * jnp.minimum(self.done.value / self.sampling_steps, 1.0)
            if self.is_mutable_collection("sampling"):
                self.done.value = self.done.value + 1
        coin, draw = jax.random.split(self.make_rng("dropout"))
        replaced = jax.random.bernoulli(coin, probability, token.shape)
        model, variables = self.unbind()
        word = partial(model.apply, jax.lax.stop_gradient(variables), method="word")

        def further(place: jax.Array, carry: tuple[LSTMState, jax.Array]) -> tuple[LSTMState, jax.Array]:
            state, read = carry
            out: Any = word(state, read[:, place - 1])
            drawn = jax.random.categorical(jax.random.fold_in(draw, place), out[1])
            return out[0], read.at[:, place].set(jnp.where(replaced[:, place], drawn, read[:, place]))

        state = jax.lax.stop_gradient(self.decoder.begin(v))
        longest = jnp.max(jnp.sum(valid, axis=1))
        return jax.lax.fori_loop(1, longest, further, (state, token))[1]

    def begin(self, source: Images | Texts) -> LSTMState:
        if not isinstance(source, Images):
            raise UsageError("SCO speaks of images alone.")
        return self.decoder.begin(self.fuse(source))

    def word(self, carry: LSTMState, token: Int[AnyArray, " n"]) -> tuple[LSTMState, jax.Array]:
        return self.decoder.step(carry, self.embed(token))
