"""Values that change during training, as optax schedules of the step: evaluated inside the step, never recompiled."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from xmodal_jax.errors import UsageError
from xmodal_jax.types import Config


def staircase(options: Config, steps: int, per_epoch: int) -> optax.Schedule:
    """1, multiplied by ``factor`` at each epoch in ``at``."""
    return optax.piecewise_constant_schedule(1.0, {round(epoch * per_epoch): options.factor for epoch in options.at})


def exponential(options: Config, steps: int, per_epoch: int) -> optax.Schedule:
    """1, multiplied by ``factor`` at every ``every`` epochs."""
    return optax.exponential_decay(1.0, max(round(options.every * per_epoch), 1), options.factor, staircase=True)


def cosine(options: Config, steps: int, per_epoch: int) -> optax.Schedule:
    """1 to ``end`` along half a cosine over the stage."""
    return optax.cosine_decay_schedule(1.0, max(steps, 1), alpha=options.end)


def constant(options: Config, steps: int, per_epoch: int) -> optax.Schedule:
    """1 throughout."""
    return optax.constant_schedule(1.0)


def adapt(options: Config, steps: int, per_epoch: int) -> optax.Schedule:
    """ADAPT's rate as the released code really uses it.

    ``options.line`` = (first, last, n) is a line of n values over the first n steps, after which the last one holds,
    and each step of ``options.at_steps`` multiplies by ``options.factor``. Rates are set after a step, from its number
    counted from 1: the very first step takes 1 instead of the line's first value, a decay shows one step later.
    """
    first, last, count = options.line

    def value(step):
        ramp = first + (last - first) * jnp.minimum(step / (count - 1), 1.0)
        decays = sum((step >= at for at in options.at_steps), start=jnp.zeros(()))
        return jnp.where(step == 0, 1.0, ramp) * options.factor**decays

    return value


KINDS = {
    "constant": constant,
    "staircase": staircase,
    "exponential": exponential,
    "cosine": cosine,
    "adapt": adapt,
}


def learning_rate(optim: Config, *, steps: int, per_epoch: int) -> optax.Schedule:
    """``optim.lr`` times ``optim.schedule`` with ``optim.warmup_steps`` of linear warm-up from zero.

    Args:
        optim: the config's ``optim``; each kind of schedule reads its own options of ``optim.schedule``.
        steps: length of the stage.
        per_epoch: steps of one epoch; ``at`` and ``every`` are given in epochs of the stage.

    Raises:
        UsageError: an unknown kind.
    """
    if optim.schedule.kind not in KINDS:
        known = ", ".join(KINDS)
        raise UsageError(f'No schedule "{optim.schedule.kind}" (optim.schedule.kind); there are {known}.')
    shape = KINDS[optim.schedule.kind](optim.schedule, steps, per_epoch)
    warmup = max(int(optim.warmup_steps), 0)

    def value(step):
        ramp = jnp.minimum(1.0, (step + 1) / (warmup + 1))
        return optim.lr * ramp * shape(step)

    return value


def weights(config: Config, *, per_epoch: int) -> dict[str, Any]:
    """Weights of the losses: numbers, or functions of the stage's step for those that ``config.ramps`` names.

    Such a weight rises from 0 by 2 / (1 + exp(-10 p)) - 1 of its value, p the share of the ramp that is done (Ganin and
    Lempitsky, ICML 2015, section 4.1, there over the whole training).

    Raises:
        UsageError: a ramp of a loss that has no weight.
    """

    def ramp(value: float, steps: int) -> optax.Schedule:
        return lambda step: value * (2.0 / (1.0 + jnp.exp(-10.0 * jnp.minimum(step / steps, 1.0))) - 1.0)

    unknown = sorted(set(config.ramps) - set(config.weights))
    if unknown:
        raise UsageError(f"config.ramps names {', '.join(unknown)}, which config.weights does not.")
    steps = {name: round(epochs * per_epoch) for name, epochs in config.ramps.items()}
    return {n: ramp(value, steps[n]) if value and steps.get(n) else value for n, value in config.weights.items()}


# Keys of config.loss that are no options of a loss themselves
NOT_OPTIONS = ("name", "warmup_epochs", "anneal", "mask_same_image", "mask_same_text")


def loss_options(loss: Config, *, per_epoch: int) -> dict[str, Any]:
    """Options of the losses of :mod:`xmodal_jax.losses`: numbers where constant, else functions of the step.

    Hardness is ``loss.hardness``, but 0 during ``loss.warmup_epochs`` (the mean-loss warm-up of VSE-infinity), or
    ``1 - anneal ** step`` where ``loss.anneal`` is set (ADAPT, step counted from 1).
    """
    warmup = round(loss.warmup_epochs * per_epoch)

    def hardness(step):
        rest = loss.anneal ** (step + 1.0) if loss.anneal else 1.0 - loss.hardness
        # Exactly 1 once that is within rounding: the backward pass then has few pairs to look at.
        return jnp.where(step < warmup, 0.0, jnp.where(rest < 1e-7, 1.0, 1.0 - rest))

    options = {name: value for name, value in loss.items() if name not in NOT_OPTIONS}
    return options | ({"hardness": hardness} if warmup or loss.anneal else {})
