"""The training step: state, loss, update. Pure functions; no I/O and no device names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from xmodal_jax import losses
from xmodal_jax.losses.chunked import Pairs
from xmodal_jax.losses.pairing import Pairing
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity.pairwise import Block, pairwise
from xmodal_jax.types import Batch, Repr


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
    """What a stage minimises. Weights, and options of the rank loss, are numbers or functions of the stage's step."""

    rank_loss: Callable[..., jax.Array]
    options: Mapping[str, float | optax.Schedule]
    weights: Mapping[str, float | optax.Schedule]
    mask_same_image: bool = False
    mask_same_text: bool = False
    block: Block | None = None  # pairs scored at a time; chosen by the kind of device where None
    mesh: Mesh | None = None  # devices that share the score matrix
    extras: tuple[str, ...] = ()  # what else the rank loss takes: "pairing", "image_scores", "text_scores"
    chunk: int = 0  # where positive, `rank_loss` is one of losses.chunked and scores so many images at a time


def local_rows(batch: Batch, axis: str | None) -> Batch:
    """A device's own batch with caption rows that count its own images; as it is in the global view."""
    if axis is None:
        return batch
    first = jax.lax.axis_index(axis) * batch.image.id.shape[0]
    text, target = (
        texts and texts._replace(row=jnp.maximum(texts.row - first, 0)) for texts in (batch.text, batch.target)
    )
    return batch._replace(text=text, target=target)


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

    if model.has("select") and objective.weights.get("rank"):
        variables = {"params": jax.lax.stop_gradient(params), **state}
        selected: Any = model.apply(variables, batch, method="select", rngs={"dropout": jax.random.fold_in(rng, 3)})
        batch = selected
    image = call("encode_image", drop_image, batch.image)
    text = call("encode_text", drop_text, batch.text)
    aux = call("aux", drop_aux, local_rows(batch, axis), image, text)
    gather = partial(jax.lax.all_gather, axis_name=axis, tiled=True) if axis else lambda x: x
    image_repr, text_repr = jax.tree.map(gather, (image[0], text[0]))
    pairing = jax.tree.map(gather, Pairing.of(batch.image, batch.text))

    def at_step(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value(stage_step) if callable(value) else value for name, value in values.items()}

    options, weights = at_step(objective.options), at_step(objective.weights)
    idle = {name for group in model.costly_terms if not any(map(objective.weights.get, group)) for name in group}
    terms = {name: value for name, value in aux.items() if name not in idle}
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
                pairing,
                objective.chunk,
                objective.mask_same_image,
                objective.mesh.size if objective.mesh else 1,
                objective.mask_same_text,
            )
            terms["rank"], matched, hardest = objective.rank_loss(pairs, **options)
        else:
            scores = pairwise(score, variables, image_repr, text_repr, block=objective.block, mesh=objective.mesh)
            positive = pairing.positive()
            masks = {"mask_same_image": objective.mask_same_image, "mask_same_text": objective.mask_same_text}
            where = pairing.counted(**masks)
            extras: dict[str, Callable[[], Any]] = {
                "pairing": lambda: pairing,
                "image_scores": lambda: score(variables, image_repr, image_repr),
                "text_scores": lambda: score(variables, text_repr, text_repr),
            }
            further = {name: extras[name]() for name in objective.extras}
            terms["rank"] = objective.rank_loss(scores, positive, where, **options, **further)
            matched, hardest = losses.violations(scores, positive, where)
        real = pairing.real()
        count, rows = jnp.sum(real), jnp.isfinite(hardest)
        # Captions whose image scores another caption within the margin of theirs; of a loss without one, higher
        violated = hardest[pairing.row] + options.get("margin", 0.0) > matched
        metrics |= {
            "pairs": count,
            "loss_per_pair": terms["rank"] / jnp.maximum(count, 1),
            "violations": jnp.sum(real & violated) / jnp.maximum(count, 1),
            "score_positive": jnp.sum(jnp.where(real, matched, 0.0)) / jnp.maximum(count, 1),
            "score_hardest": jnp.sum(jnp.where(rows, hardest, 0.0)) / jnp.maximum(jnp.sum(rows), 1),
        }
    metrics |= {f"weight_{name}": weights[name] for name, weight in objective.weights.items() if callable(weight)}
    # A term without weight is logged alone: its backward pass would cost as much as another's.
    weighed = [weights[name] * term for name, term in terms.items() if objective.weights[name]]
    loss = sum(weighed, start=jnp.zeros(()))
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
    live: Sequence[bool] | None = None,
    axis: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update. A non-finite gradient leaves parameters and statistics as they were and sets ``finite`` to 0.

    Args:
        live: which leaves of the parameters are trained, all by default. No gradient of the others is computed.
    """
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    if axis:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))
    stage_step = state.step - stage_start
    leaves, tree = jax.tree.flatten(state.params)
    live = live or [True] * len(leaves)

    def of_live(trained: list[Any]) -> Any:
        rest = iter(trained)
        params = tree.unflatten([next(rest) if on else leaf for leaf, on in zip(leaves, live, strict=True)])
        return loss_fn(params, model, objective, state.model_state, batch, stage_step, rng, axis)

    trained = [leaf for leaf, on in zip(leaves, live, strict=True) if on]
    (_, (metrics, model_state)), grads = jax.value_and_grad(of_live, has_aux=True)(trained)
    if axis:
        # Every device differentiates the same global loss; the gather's transpose has summed the devices' parts.
        grads, metrics = jax.lax.pmean((grads, metrics), axis)
        model_state = jax.tree.map(
            lambda x: x if jnp.issubdtype(x.dtype, jnp.integer) else jax.lax.pmean(x, axis), model_state
        )
    norm, rest = optax.tree.norm(grads), iter(grads)
    grads = tree.unflatten([next(rest) if on else jnp.zeros_like(leaf) for leaf, on in zip(leaves, live, strict=True)])
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
