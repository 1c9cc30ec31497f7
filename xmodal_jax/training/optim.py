"""Optimiser: gradient clipping, a named update rule, and per-parameter rules chosen by regular expression."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xmodal_jax.errors import UsageError
from xmodal_jax.types import Config


def path_name(path: tuple[Any, ...]) -> str:
    """``text_encoder/embed/embedding`` for a key path of a parameter tree."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def match_rules(params: Any, rules: list[dict[str, Any]]) -> Any:
    """The rule of every parameter: the first whose ``match`` fits the whole parameter name.

    Args:
        params: tree of parameters.
        rules: ``{"match": regex, "lr": multiplier, "decay": multiplier, "clip": bool}``; ``lr`` 0 freezes.

    Returns:
        A tree like ``params`` of indices into ``rules``.

    Raises:
        UsageError: a parameter without a rule, or a rule that no parameter reaches.
    """
    patterns = [re.compile(rule["match"]) for rule in rules]

    def index(path, _):
        name = path_name(path)
        for i, pattern in enumerate(patterns):
            if pattern.fullmatch(name):
                return i
        raise UsageError(f'No optimiser rule matches parameter "{name}"; end optim.rules with match=".*".')

    chosen = jax.tree_util.tree_map_with_path(index, params)
    idle = sorted(set(range(len(rules))) - set(jax.tree.leaves(chosen)))
    if idle and rules[idle[0]]["match"] != ".*":
        names = ", ".join(path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)[:8])
        raise UsageError(f'Optimiser rule "{rules[idle[0]]["match"]}" reaches no parameter; names are like {names}.')
    return chosen


def scale_by_tree(factors: Any) -> optax.GradientTransformation:
    """Multiply each update by its number; 0 gives exact zeros even for a non-finite update."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda update, factor: jnp.zeros_like(update) if factor == 0 else update * factor,
            updates,
            factors,
        )
    )


def clip_by_tensor_norm(limit: float) -> optax.GradientTransformation:
    """Scale each gradient tensor to an L2 norm of at most ``limit`` (order-embedding, released code)."""

    def clip(gradient):
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        return gradient * (limit / jnp.maximum(norm, limit))

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def update_rule(optim: Config) -> optax.GradientTransformation:
    """The named rule without its learning rate: adam, adamw, adamax or sgd (with ``momentum`` and ``nesterov``)."""
    adam = {"b1": optim.b1, "b2": optim.b2, "eps": optim.eps}
    rules = {
        "adam": lambda: optax.scale_by_adam(**adam),
        "adamw": lambda: optax.scale_by_adam(**adam),
        "adamax": lambda: optax.scale_by_adamax(**adam),
        "sgd": lambda: optax.trace(optim.momentum, nesterov=optim.nesterov) if optim.momentum else optax.identity(),
    }
    if optim.name not in rules:
        raise UsageError(f'No optimiser "{optim.name}" (optim.name); there are {", ".join(rules)}.')
    return rules[optim.name]()


def live_leaves(optim: Config, params: Any) -> list[bool]:
    """For each leaf of ``params`` whether a rule trains it, which means a learning-rate multiplier that is not 0."""
    rules = [{"lr": 1.0, **dict(rule)} for rule in optim.rules]
    return [float(rules[index]["lr"]) != 0 for index in jax.tree.leaves(match_rules(params, rules))]


def make_optimiser(optim: Config, params: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """One optax transform for all parameters.

    Order: frozen gradients become zero; clip by element, by tensor, by global norm; weight decay inside the gradient
    (adam, adamax, sgd: L2 as in PyTorch) or beside it (adamw); the rule; learning-rate multipliers; the schedule.
    Parameters of a rule with ``clip`` False neither count in the global norm nor are scaled by it.

    Raises:
        UsageError: an unknown optimiser or a rule problem (see :func:`match_rules`).
    """
    rules = [{"lr": 1.0, "decay": 1.0, "clip": True, **dict(rule)} for rule in optim.rules]
    chosen = match_rules(params, rules)
    rates = jax.tree.map(lambda i: float(rules[i]["lr"]), chosen)
    live = jax.tree.map(lambda rate: float(rate != 0), rates)
    decays = jax.tree.map(lambda i, on: optim.weight_decay * rules[i]["decay"] * on, chosen, live)
    decay = optax.stateless(lambda updates, p: jax.tree.map(lambda u, w, d: u + d * w if d else u, updates, p, decays))
    parts = [scale_by_tree(live)]
    if optim.clip_value:
        parts.append(optax.clip(optim.clip_value))
    if optim.clip_tensor_norm:
        parts.append(clip_by_tensor_norm(optim.clip_tensor_norm))
    if optim.clip_norm:
        clip = optax.clip_by_global_norm(optim.clip_norm)
        clipped = jax.tree.map(lambda i: bool(rules[i]["clip"]), chosen)
        parts.append(clip if all(jax.tree.leaves(clipped)) else optax.masked(clip, clipped))
    parts += [update_rule(optim), decay] if optim.name == "adamw" else [decay, update_rule(optim)]
    return optax.chain(*parts, scale_by_tree(rates), optax.scale_by_learning_rate(schedule))
