"""The training step: state, loss, update. Pure functions; no I/O and no device names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from xmodal_jax import losses
from xmodal_jax.losses.chunked import Pairs
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import correspondence
from xmodal_jax.similarity.pairwise import Block, pairwise
from xmodal_jax.types import Batch, Images, Repr, Texts


class TrainState(NamedTuple):
    """All that training changes; what is not here (or in the config) does not exist."""

    step: Any  # int32 scalar: updates done
    params: Any
    model_state: Any  # running statistics and the like, {} for most systems
    opt_state: Any
    ema: Any  # exponential moving average of params, {} when off
    rng: Any  # key data; every step folds its number in


class Initial(NamedTuple):
    """What `init` returns, split into what is trained and what is not."""

    params: Any
    model_state: Any


def initialise(model: Matcher, batch: Batch, seed: int) -> Initial:
    """Parameters and running statistics from the seed."""
    variables = jax.jit(lambda key: model.init({"params": key, "dropout": key}, batch))(jax.random.key(seed))
    variables = dict(variables)
    return Initial(variables.pop("params"), variables)


def make_state(initial: Initial, optimiser: Any, seed: int, ema_decay: float) -> TrainState:
    """The state before the first step."""
    ema = jax.tree.map(jnp.copy, initial.params) if ema_decay else {}
    rng = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))
    return TrainState(
        jnp.zeros((), jnp.int32),
        initial.params,
        initial.model_state,
        optimiser.init(initial.params),
        ema,
        rng,
    )


class Objective(NamedTuple):
    """What a stage minimises. ``options`` of the rank loss are numbers, or functions of the stage's step."""

    rank_loss: Callable[..., jax.Array]
    options: Mapping[str, float | optax.Schedule]
    weights: Mapping[str, float]
    mask_same_image: bool = False
    block: Block | None = None  # pairs scored at a time; chosen by the kind of device where None
    mesh: Mesh | None = None  # devices that share the score matrix
    chunk: int = 0  # where positive, `rank_loss` is one of losses.chunked and scores so many images at a time


def counted(image: Images, text: Texts, *, mask_same_image: bool) -> jax.Array:
    """``where [B, C]``: pairs that count, without padding and, on demand, without siblings in other rows."""
    where = (image.id >= 0)[:, None] & (text.id >= 0)[None, :]
    if mask_same_image:
        sibling = image.id[:, None] == text.image_id[None, :]
        where &= ~sibling | correspondence(text.row, image.id.shape[0])
    return where


def loss_fn(
    params: Any,
    model: Matcher,
    objective: Objective,
    model_state: Any,
    batch: Batch,
    stage_step: jax.Array,
    rng: jax.Array,
    axis: str | None = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
    """Weighted sum of the rank loss and the model's auxiliary losses over the global batch.

    Args:
        axis: name of the mapped axis when each device holds its own rows (pmap); representations are then gathered
            so that negatives come from the global batch. None in the global view.

    Returns:
        loss, (metrics, model state after the forward pass).
    """
    names = list(model_state)
    drop_image, drop_text, drop_aux = jax.random.split(rng, 3)
    state = model_state

    def call(method: str, key: jax.Array, *args: Any) -> Any:
        nonlocal state
        variables = {"params": params, **state}
        out, new = model.apply(variables, *args, train=True, method=method, rngs={"dropout": key}, mutable=names)
        state = {**state, **new}
        return out

    image = call("encode_image", drop_image, batch.image)
    text = call("encode_text", drop_text, batch.text)
    aux = call("aux", drop_aux, batch, image, text)
    gather = partial(jax.lax.all_gather, axis_name=axis, tiled=True) if axis else lambda x: x
    image_repr, text_repr = jax.tree.map(gather, (image[0], text[0]))
    images = batch.image._replace(feature={}, mask=None, box=None, id=gather(batch.image.id))
    row, image_id, caption_id = (gather(x) for x in (batch.text.row, batch.text.image_id, batch.text.id))
    texts = Texts(None, None, row, image_id, caption_id)

    options = {name: value(stage_step) if callable(value) else value for name, value in objective.options.items()}
    terms = dict(aux)
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in options.items()}
    if objective.weights.get("rank", 0.0):

        def score(variables: Any, image: Repr, text: Repr) -> Any:
            return model.apply(variables, image, text, method="score")

        variables = {"params": params, **state}
        if objective.chunk:
            pairs = Pairs(
                partial(score, variables),
                image_repr,
                text_repr,
                images,
                texts,
                objective.chunk,
                objective.mask_same_image,
                objective.mesh.size if objective.mesh else 1,
            )
            terms["rank"], own, hardest = objective.rank_loss(pairs, **options)
        else:
            scores = pairwise(score, variables, image_repr, text_repr, block=objective.block, mesh=objective.mesh)
            positive = correspondence(texts.row, images.id.shape[0])
            where = counted(images, texts, mask_same_image=objective.mask_same_image)
            terms["rank"] = objective.rank_loss(scores, positive, where, **options)
            own, hardest = losses.violations(scores, positive, where)
        real = (texts.id >= 0) & (images.id[texts.row] >= 0)
        count, rows = jnp.sum(real), jnp.isfinite(hardest)
        metrics |= {
            "pairs": count,
            "loss_per_pair": terms["rank"] / jnp.maximum(count, 1),
            "score_positive": jnp.sum(jnp.where(real, own, 0.0)) / jnp.maximum(count, 1),
            "score_hardest": jnp.sum(jnp.where(rows, hardest, 0.0)) / jnp.maximum(jnp.sum(rows), 1),
        }
    loss = sum((objective.weights[name] * term for name, term in terms.items()), start=jnp.zeros(()))
    return loss, ({"loss": loss, **terms, **metrics}, state)


def check_weights(model: Matcher, objective: Objective, variables: Any, batch: Batch) -> None:
    """Raise a UsageError unless the config's weights and the model's auxiliary losses name each other exactly."""
    from xmodal_jax.errors import UsageError

    _, aux = jax.eval_shape(partial(model.apply, train=False), variables, batch)
    have, want = set(aux) | {"rank"}, set(objective.weights)
    if have != want:
        missing, unknown = sorted(have - want), sorted(want - have)
        raise UsageError(
            "config.weights must name each loss once: "
            + "; ".join(
                f"{word} {', '.join(names)}" for word, names in (("missing", missing), ("unknown", unknown)) if names
            )
            + "."
        )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Matcher,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    stage_start: int,
    ema_decay: float = 0.0,
    axis: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update. A non-finite gradient leaves parameters and statistics as they were and sets ``finite`` to 0."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    if axis:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))
    stage_step = state.step - stage_start
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (_, (metrics, model_state)), grads = gradient(
        state.params, model, objective, state.model_state, batch, stage_step, rng, axis
    )
    if axis:
        # Every device differentiates the same global loss; the gather's transpose has summed the devices' parts.
        grads, model_state = jax.lax.pmean((grads, model_state), axis)
    norm = optax.tree.norm(grads)
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = (
        jax.tree.map(lambda old, new: ema_decay * old + (1.0 - ema_decay) * new, state.ema, params) if ema_decay else {}
    )
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    new = (params, model_state, opt_state, ema)
    old = (state.params, state.model_state, state.opt_state, state.ema)
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    metrics |= {"grad_norm": norm, "finite": finite}
    params, model_state, opt_state, ema = kept
    return TrainState(state.step + 1, params, model_state, opt_state, ema, state.rng), metrics
