"""Values that change during training, as optax schedules of the step: evaluated inside the step, never recompiled."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from xmodal_jax.errors import UsageError
from xmodal_jax.types import Config


def staircase(steps: int, per_epoch: int, *, at: tuple[float, ...] = (), factor: float = 0.1) -> optax.Schedule:
    """1, multiplied by ``factor`` at each epoch in ``at``."""
    return optax.piecewise_constant_schedule(1.0, {round(epoch * per_epoch): factor for epoch in at})


def exponential(steps: int, per_epoch: int, *, every: float = 1.0, factor: float = 0.1) -> optax.Schedule:
    """1, multiplied by ``factor`` at every ``every`` epochs."""
    return optax.exponential_decay(1.0, max(round(every * per_epoch), 1), factor, staircase=True)


def cosine(steps: int, per_epoch: int, *, end: float = 0.0) -> optax.Schedule:
    """1 to ``end`` along half a cosine over the stage."""
    return optax.cosine_decay_schedule(1.0, max(steps, 1), alpha=end)


def constant(steps: int, per_epoch: int) -> optax.Schedule:
    """1 throughout."""
    return optax.constant_schedule(1.0)


KINDS = {"constant": constant, "staircase": staircase, "exponential": exponential, "cosine": cosine}


def learning_rate(optim: Config, *, steps: int, per_epoch: int) -> optax.Schedule:
    """``optim.lr`` times ``optim.schedule`` with ``optim.warmup_steps`` of linear warm-up from zero.

    Args:
        optim: the config's ``optim``; ``schedule`` is ``{"kind": name, option: value, ...}``.
        steps: length of the stage.
        per_epoch: steps of one epoch; ``at`` and ``every`` are given in epochs.

    Raises:
        UsageError: an unknown kind or option.
    """
    options = dict(optim.schedule)
    kind = options.pop("kind", "constant")
    if kind not in KINDS:
        raise UsageError(f'No schedule "{kind}" (optim.schedule.kind); there are {", ".join(sorted(KINDS))}.')
    try:
        shape = KINDS[kind](steps, per_epoch, **options)
    except TypeError as error:
        raise UsageError(f"optim.schedule: {error}.") from error
    warmup = max(int(optim.warmup_steps), 0)

    def value(step):
        ramp = jnp.minimum(1.0, (step + 1) / (warmup + 1))
        return optim.lr * ramp * shape(step)

    return value


def loss_options(loss: Config, *, per_epoch: int) -> dict[str, float | optax.Schedule]:
    """Margin and hardness of :func:`xmodal_jax.losses.triplet`: numbers where constant, else functions of the step.

    Hardness is ``loss.hardness``, but 0 during ``loss.warmup_epochs`` (the mean-loss warm-up of VSE-infinity), or
    ``1 - anneal ** step`` where ``loss.anneal`` is set (ADAPT, step counted from 1).
    """
    warmup = round(loss.warmup_epochs * per_epoch)

    def hardness(step):
        full = 1.0 - loss.anneal ** (step + 1.0) if loss.anneal else loss.hardness
        return jnp.where(step < warmup, 0.0, full)

    return {"margin": loss.margin, "hardness": hardness if warmup or loss.anneal else loss.hardness}
