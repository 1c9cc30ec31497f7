"""What is compared with: PyTorch, one caption at a time, as the authors of SCAN, VSE++ and ADAPT wrote their training;
and sentences one at a time.

Written from the papers' equations; the order of the work is that of the released code, which is what costs the time:
for each caption, its words (or its filter) meet the regions of all images of the batch, and attended vectors are built.
Of m-CNN no code was released: each caption runs its whole network with all images, as the paper draws it.
Needs torch (extra ``bench``); only the benchmarks import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from xmodal_jax.text.generation import Decoding
from xmodal_jax.text.vocabulary import END, PAD, START, UNKNOWN

torch.set_num_threads(1)

EPS = 1e-8


def unit(x: Tensor, dim: int = -1) -> Tensor:
    return x / (x.pow(2).sum(dim, keepdim=True).sqrt() + EPS)


def attend(query: Tensor, context: Tensor, smooth: float) -> Tensor:
    """Attended vectors [B, Q, D] of queries [B, Q, D] in contexts [B, T, D] (SCAN, eq. 1 to 5)."""
    similar = functional.leaky_relu(torch.bmm(context, query.transpose(1, 2)), 0.1)  # [B, T, Q]
    weight = torch.softmax(smooth * unit(similar).transpose(1, 2), dim=2)  # [B, Q, T]
    return torch.bmm(weight, context)


def cross_attention(image: Tensor, words: Sequence[Tensor], *, direction: str, smooth: float, lse: float) -> Tensor:
    """Scores [B, C] of regions [B, R, D] and captions [W_c, D]."""
    columns = []
    for fragments in words:
        caption = fragments.expand(len(image), *fragments.shape)
        query, context = (caption, image) if direction == "t2i" else (image, caption)
        relevance = functional.cosine_similarity(query, attend(query, context, smooth), dim=2, eps=EPS)
        columns.append(torch.logsumexp(lse * relevance, dim=1) / lse)
    return torch.stack(columns, dim=1)


def fovea(image: Tensor, scale: Tensor, shift: Tensor, query: Tensor, *, smooth: float) -> Tensor:
    """Scores [B, C] of region features [B, D, R] and captions' filters [C, D] (ADAPT, text filters image)."""
    columns = []
    for a, b, q in zip(scale, shift, query, strict=True):
        filtered = a[None, :, None] * image + b[None, :, None]
        pooled = (torch.softmax(smooth * filtered, dim=2) * filtered).mean(dim=2)
        columns.append(unit(pooled) @ q)
    return torch.stack(columns, dim=1)


def selective(
    weights: dict[str, Tensor], region: Tensor, whole: Tensor, words: Sequence[Tensor], *, steps: int
) -> Tensor:
    """Scores [B, C] of regions [B, R, F], whole images [B, F] and captions [W_c, F] by sm-LSTM with the attention
    "joint" and the local similarity "mul". What of the images no caption changes is computed once."""

    def linear(x: Tensor, name: str) -> Tensor:
        product, bias = x @ weights[f"{name}/kernel"], weights.get(f"{name}/bias")
        return product if bias is None else product + bias

    def see(side: str, key: Tensor, fragment: Tensor, state: Tensor) -> Tensor:
        hidden = torch.sigmoid(key + linear(state, f"{side}/past")[:, None])  # [B, T, A]
        weight = torch.softmax((hidden @ weights[f"{side}/weight"])[..., 0], dim=1)
        attended = torch.bmm(weight[:, None], fragment)[:, 0]
        return torch.sigmoid(linear(attended, f"{side}/value") + weights[f"{side}/bias"])

    region_key, columns = linear(region, "image/fragment") + linear(whole, "image/context")[:, None], []
    for caption in words:
        fragment = caption.expand(len(region), *caption.shape)
        key = (linear(caption, "text/fragment") + linear(caption[-1], "text/context")).expand(len(region), -1, -1)
        state = cell = region.new_zeros(len(region), weights["hidden/bias"].shape[0])
        for _ in range(steps):
            both = see("image", region_key, region, state) * see("text", key, fragment, state)
            inputs = linear(both, "similarity") @ weights["collect/input"] + state @ weights["collect/recurrent"]
            into, forget, new, out = (inputs + weights["collect/bias"]).chunk(4, dim=1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
            state = torch.sigmoid(out) * torch.tanh(cell)
        columns.append(linear(torch.sigmoid(linear(state, "hidden")), "final")[:, 0])
    return torch.stack(columns, dim=1)


def mcnn(feature: Tensor, table: Tensor, *parameters: Tensor, token: Tensor, join: int) -> Tensor:
    """Scores [B, C] of image features [B, F] and captions [C, 30], 0 behind their words (m-CNN, valid convolutions).

    ``parameters``: matrix and bias of the image's layer, of three convolutions, of the perceptron's two layers; that of
    number ``join``, from 0, reads the image behind its window.
    """
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
    (kernel, bias), *layers, hidden, last = pairs
    image = torch.relu(feature @ kernel + bias)
    columns = []
    for ids in token:
        x = (table[ids] * (ids > 0)[:, None])[None]
        for number, (kernel, bias) in enumerate(layers):
            count = x.shape[1] - 2
            window = torch.cat([x[:, k : k + count] for k in range(3)], dim=2)
            gate = (window != 0).any(dim=2, keepdim=True)
            if number == join:
                window = torch.cat([window.expand(len(image), -1, -1), image[:, None].expand(-1, count, -1)], dim=2)
            x = (gate * torch.relu(functional.linear(window, kernel.T, bias))).unflatten(1, (-1, 2)).amax(dim=2)
        whole = x.flatten(1)
        if join == 3:
            whole = torch.cat([whole.expand(len(image), -1), image], dim=1)
        columns.append((torch.relu(whole @ hidden[0] + hidden[1]) @ last[0] + last[1])[:, 0])
    return torch.stack(columns, dim=1)


def dot(image: Tensor, text: Tensor) -> Tensor:
    return image @ text.T


def triplet(scores: Tensor, *, margin: float, hardness: float) -> Tensor:
    """Hinge loss of scores [B, C] whose caption c belongs to image c, C at most B; annealed where hardness < 1."""
    matched = scores.diagonal()
    negative = ~torch.eye(*scores.shape, dtype=torch.bool)
    by_image = (margin + scores[: len(matched)] - matched[:, None]).clamp(min=0) * negative[: len(matched)]
    by_caption = (margin + scores - matched[None]).clamp(min=0) * negative
    hardest = by_image.max(1).values.sum() + by_caption.max(0).values.sum()
    if hardness == 1:
        return hardest
    return hardness * hardest + (1 - hardness) * (by_image.sum() + by_caption.sum())


def matcher(
    score: Callable[..., Tensor],
    sides: Sequence[np.ndarray | dict[str, np.ndarray]],
    words: Sequence[np.ndarray] | None,
    options: dict[str, Any],
    *,
    margin: float,
    hardness: float | None,
) -> Callable[[], Any]:
    """A run of ``score(*sides, words)``: scores where ``hardness`` is None, else the loss with its gradients."""
    grad = hardness is not None

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).requires_grad_(grad)

    args: list[Any] = [
        {name: tensor(array) for name, array in side.items()} if isinstance(side, dict) else tensor(side)
        for side in sides
    ]
    if words is not None:
        args.append([tensor(array) for array in words])

    def run() -> Any:
        with torch.set_grad_enabled(grad):
            scores = score(*args, **options)
            if hardness is None:
                return scores.numpy()
            loss = triplet(scores, margin=margin, hardness=hardness)
            loss.backward()
            return loss.item()

    return run


def ranks(image: np.ndarray, text: np.ndarray, per_image: int, queries: int) -> np.ndarray:
    """Sort all candidates of each of the first ``queries`` images and of their captions, one query after another."""
    out = []
    for b in range(queries):
        order = np.argsort(image[b] @ text.T)[::-1]
        out.append(min(np.where(order == b * per_image + k)[0][0] for k in range(per_image)))
    for c in range(queries * per_image):
        order = np.argsort(text[c] @ image.T)[::-1]
        out.append(np.where(order == c // per_image)[0][0])
    return np.array(out)


class Hypothesis(NamedTuple):
    """The beginning of a sentence."""

    token: tuple[int, ...]
    log_probability: float
    state: Tensor  # [D]

    @property
    def ended(self) -> bool:
        return self.token[-1:] == (END,)


def gru_cell(gru: Mapping[str, Tensor], word: Tensor, state: Tensor) -> Tensor:
    """TensorFlow's form: words [N, F] and states [N, D] to the next states."""
    gates = torch.sigmoid(torch.cat([word, state], 1) @ gru["gates_kernel"] + gru["gates_bias"])
    reset, update = gates.chunk(2, dim=1)
    new = torch.tanh(torch.cat([word, reset * state], 1) @ gru["candidate_kernel"] + gru["candidate_bias"])
    return update * state + (1 - update) * new


def sentence(
    gru: Mapping[str, Tensor], project: Tensor, table: Tensor, vector: Tensor, decoding: Decoding
) -> list[int]:
    """The best sentence of one item by beam search, a step of the decoder for each word of its hypotheses."""

    def rank(hypothesis: Hypothesis) -> float:
        return hypothesis.log_probability / max(len(hypothesis.token), 1) ** decoding.alpha

    beam = [Hypothesis((), 0.0, vector)]
    for step in range(decoding.longest):
        live = [hypothesis for hypothesis in beam if not hypothesis.ended]
        if not live:
            break
        last = [hypothesis.token[-1] if hypothesis.token else START for hypothesis in live]
        state = gru_cell(gru, table[last], torch.stack([hypothesis.state for hypothesis in live]))
        log_probability = torch.log_softmax(state @ project, dim=1)
        log_probability[:, [PAD, START, UNKNOWN, *([END] if step == 0 else [])]] = -torch.inf
        best = log_probability.topk(decoding.beams, dim=1)
        further = [hypothesis for hypothesis in beam if hypothesis.ended]
        for row, before in enumerate(live):
            for value, token in zip(best.values[row].tolist(), best.indices[row].tolist(), strict=True):
                further.append(Hypothesis((*before.token, token), before.log_probability + value, state[row]))
        beam = sorted(further, key=rank, reverse=True)[: decoding.beams]
    return [token for token in max(beam, key=rank).token if token != END]


def sentences(
    gru: dict[str, np.ndarray], project: np.ndarray, table: np.ndarray, vector: np.ndarray, decoding: Decoding
) -> Callable[[], list[list[int]]]:
    """A run of :func:`sentence` for each of the vectors [N, D]."""
    cell = {name: torch.from_numpy(array) for name, array in gru.items()}
    matrix, words, items = (torch.from_numpy(array) for array in (project, table, vector))

    def run() -> list[list[int]]:
        with torch.no_grad():
            return [sentence(cell, matrix, words, item, decoding) for item in items]

    return run


class Scan(nn.Module):
    """SCAN's encoders and one training step."""

    def __init__(self, features: int, vocabulary: int, word_dim: int, size: int):
        super().__init__()
        self.size = size
        self.project = nn.Linear(features, size)
        self.embed = nn.Embedding(vocabulary, word_dim)
        self.gru = nn.GRU(word_dim, size, batch_first=True, bidirectional=True)
        self.optimiser = torch.optim.Adam(self.parameters(), lr=2e-4)

    def step(self, region: Tensor, token: Tensor, length: Tensor) -> float:
        """Captions [C, W] from the longest to the shortest, as packed sequences want them."""
        image = unit(self.project(region))
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(token), length, batch_first=True)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        words = unit((states[..., : self.size] + states[..., self.size :]) / 2)
        captions = [words[c, : int(length[c])] for c in range(len(length))]
        scores = cross_attention(image, captions, direction="t2i", smooth=9.0, lse=6.0)
        loss = triplet(scores, margin=0.2, hardness=1)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 2.0)
        self.optimiser.step()
        return loss.item()


def step(features: int, vocabulary: int, word_dim: int, size: int, *batch: np.ndarray) -> Callable[[], float]:
    """A run of one training step on regions [B, R, F], tokens [C, W] and lengths [C]."""
    scan = Scan(features, vocabulary, word_dim, size)
    region, token, length = (torch.from_numpy(x) for x in batch)
    return lambda: scan.step(region, token.long(), length)
