"""Learning-rate schedules, and the optimizer for a label tree.

Both may be the user's own or optax's; their arguments are then the keys of their group in the
config.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from randmix import config as configs
from randmix import masks, parts
from randmix.errors import UserError, did_you_mean
from randmix.training.groups import Group

# Arguments that aren't keys: a mask of what decays is ours, kernels only.
_MASKS = ("mask", "weight_decay_mask")
# Arguments of optax's schedules and the user's own that are the run's length unless given.
_LENGTHS = ("total_steps", "decay_steps", "transition_steps")


def build_schedule(
    options: Mapping[str, Any],
    total_steps: int,
    peak: float,
    *,
    code_dir: str | None = None,
    user: Mapping[str, Any] | None = None,
) -> optax.Schedule:
    """Returns the learning rate as a function of the number of steps taken.

    Args:
        options: the keys of ``config.schedule``; `randmix.config` says what they mean.
        total_steps: the length of the run.
        peak: the largest learning rate; a schedule of the user's own or of optax is multiplied by
            it.
        code_dir, user: the keys of the config, for a schedule of the user's own.

    Raises:
        UserError: an unknown schedule, or a function of the user's own that raises an error.
    """
    name = options["name"]
    if name not in _SCHEDULES:
        function = _find_schedule("config.schedule.name", name, code_dir)
        taken = parts.parameters(function)
        lengths = {key: total_steps for key in _LENGTHS if key in taken}
        given = {key: value for key, value in options.items() if key != "name"}
        with parts.running("config.schedule.name", name):
            shape = parts.bound(function, user or {})(**{**lengths, **given})
            float(shape(0))
            with jax.numpy_dtype_promotion("standard"):  # as in the train step
                jax.eval_shape(shape, jax.ShapeDtypeStruct((), jnp.int32))
        return lambda step: peak * shape(step)
    return _SCHEDULES[name](options, total_steps, peak)


def _step_schedule(options: Mapping[str, Any], total_steps: int, peak: float) -> optax.Schedule:
    # In a short run, several boundaries may fall on one step.
    steps = Counter(round(share * total_steps) for share in options["boundaries"])
    factor = float(options["factor"])
    factors = {step: math.prod([factor] * count) for step, count in steps.items()}
    return optax.piecewise_constant_schedule(peak, factors)


def _cosine_schedule(options: Mapping[str, Any], total_steps: int, peak: float) -> optax.Schedule:
    # optax requires a step of decay.
    warmup = min(round(options["warmup"] * total_steps), total_steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, total_steps)


def _linear_schedule(options: Mapping[str, Any], total_steps: int, peak: float) -> optax.Schedule:
    steps = jnp.asarray([share * total_steps for share, _ in options["points"]])
    rates = jnp.asarray([multiple * peak for _, multiple in options["points"]])
    return lambda step: jnp.interp(jnp.asarray(step, jnp.float32), steps, rates)


_SCHEDULES: dict[str, Callable[[Mapping[str, Any], int, float], optax.Schedule]] = {
    "linear": _linear_schedule,
    "step": _step_schedule,
    "cosine": _cosine_schedule,
    "constant": lambda options, total_steps, peak: optax.constant_schedule(peak),
}


def build_optimizer(
    options: Mapping[str, Any],
    schedule: Callable[[float], optax.Schedule],
    labels: Any,
    groups: tuple[Group, ...],
    step: int = 0,
    *,
    code_dir: str | None = None,
    user: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer of all groups in the phase after ``step`` steps.

    The state has the same structure in every phase; that of a group yet to start stays at its
    initial value. Frozen leaves have neither state nor updates. The global gradient norm is clipped
    once, over all trainable leaves, before they are partitioned by label; frozen leaves have no
    gradient (None) and don't contribute to it.

    Args:
        options: the keys of ``config.optimizer``; `randmix.config` says what they mean. A group may
            have other values.
        schedule: from the largest learning rate to the run's schedule.
        labels: the label of every parameter: its group's, or "freeze".
        groups: the trained groups.
        step: the number of steps taken.
        code_dir, user: the keys of the config, for an optimizer of the user's own.

    Raises:
        UserError: an unknown optimizer, or a function of the user's own that raises an error or
            returns something else.
    """
    transforms = {}
    for group in groups:
        own = _options_of(group, options)
        descent = _descent(own, schedule, group, code_dir, user or {})
        transforms[group.label] = _paused(descent) if group.start_step > step else descent
    optimizer = masks.transform(lambda _: labels, transforms)
    if options["clip_norm"] > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(options["clip_norm"]), optimizer)
    return optimizer


def _options_of(group: Group, options: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a group's optimizer: the run's, and its own values."""
    name = group.optimizer.get("name", options["name"])
    foreign = options["name"] in _OPTIMIZERS and name not in _OPTIMIZERS
    meant = {key: value for key, value in options.items() if not (foreign and key in _OF_SGD)}
    return {**meant, **group.optimizer}


def _descent(
    options: Mapping[str, Any],
    schedule: Callable[[float], optax.Schedule],
    group: Group,
    code_dir: str | None,
    user: Mapping[str, Any],
) -> optax.GradientTransformation:
    of_run = schedule(options["learning_rate"] * group.lr_scale)

    def learning_rate(count: ArrayLike) -> ArrayLike:
        # A group counts its own steps; the schedule counts the run's.
        return of_run(count + group.start_step)

    name = options["name"]
    key = "config.optimizer.name"
    if "name" in group.optimizer:
        key = f"config.groups ({group.label!r}): name"
    function = _find_optimizer(key, name, code_dir)
    taken = parts.parameters(function)
    given = {key: value for key, value in options.items() if key not in configs.PARTS["optimizer"]}
    arguments = parts.accepted(function, given)
    decayed = {key: kernels_only for key in _MASKS if key in taken}
    needed = parts.required(function) - {"learning_rate", "user", *_MASKS, *arguments}
    if needed:
        # The run's optimizer has all of its own; this one is a group's.
        raise UserError(
            f"config.groups ({group.label!r}): {name} needs a value for {', '.join(sorted(needed))}"
        )
    with parts.running(key, name):
        made = parts.bound(function, user)(
            **{**arguments, **decayed, "learning_rate": learning_rate}
        )
    if not isinstance(made, optax.GradientTransformation):
        raise UserError(
            f"{key}: {name} returned a {type(made).__name__}, allowed is an "
            "optax.GradientTransformation"
        )
    return made


def check(optimizer: optax.GradientTransformation, name: str, trainable: Any) -> None:
    """Raises a UserError if an optimizer that isn't ours can't take a step; computes nothing.

    Args:
        optimizer: from ``build_optimizer``.
        name: the name that the config has for it.
        trainable: shapes and dtypes of the parameters, with None for the frozen ones.
    """

    def step(params: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # as in the train step
            return optimizer.update(params, optimizer.init(params), params)

    with parts.running("config.optimizer.name", name):
        jax.eval_shape(step, trainable)


def _adamw(
    learning_rate: optax.Schedule, weight_decay: float, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    return optax.adamw(
        learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=kernels_only
    )


def _sgd(
    learning_rate: optax.Schedule, weight_decay: float, momentum: float, nesterov: bool
) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(weight_decay, kernels_only),
        optax.sgd(learning_rate, momentum or None, nesterov=nesterov),
    )


_OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}
_OF_SGD = ("momentum", "nesterov")  # of other optimizers these have other defaults


def _find_optimizer(key: str, name: str, code_dir: str | None) -> Callable[..., Any]:
    """The function of an optimizer: ours, optax's, or the user's own by MODULE:FUNCTION."""
    if name in _OPTIMIZERS:
        return _OPTIMIZERS[name]
    if not parts.is_own(name):
        of_optax = [other for other in dir(optax) if _takes_learning_rate(getattr(optax, other))]
        _check_known(key, name, [*_OPTIMIZERS], of_optax, "an optimizer of optax")
        return getattr(optax, name)
    function = parts.find(key, name, code_dir)
    if not _takes_learning_rate(function):
        raise UserError(
            f"{key}: got {name!r}, allowed is a function with the argument learning_rate"
        )
    return function


def _takes_learning_rate(function: Any) -> bool:
    try:
        return "learning_rate" in parts.parameters(function)
    except (TypeError, ValueError):  # not a function, or one without a signature
        return False


def _find_schedule(key: str, name: str, code_dir: str | None) -> Callable[..., Any]:
    """The function of a schedule of optax, or of the user's own by MODULE:FUNCTION."""
    if not parts.is_own(name):
        of_optax = [
            other
            for other in dir(optax.schedules)
            if other.endswith(("_schedule", "_decay", "_interpolate"))
        ]
        _check_known(key, name, [*_SCHEDULES], of_optax, "a schedule of optax")
        return getattr(optax.schedules, name)
    function = parts.find(key, name, code_dir)
    if not callable(function):
        raise UserError(f"{key}: got {name!r}, which isn't a function")
    return function


def _check_known(key: str, name: str, ours: list[str], of_optax: list[str], kind: str) -> None:
    """Raises a UserError unless optax has the name; it suggests the nearest."""
    if name not in of_optax:
        raise UserError(
            f"{key}: got {name!r}, allowed {', '.join(ours)}, {kind} or MODULE:FUNCTION"
            f"{did_you_mean(name, ours) or did_you_mean(name, of_optax)}"
        )


def complete(
    group: str,
    options: Mapping[str, Any],
    usual: Mapping[str, Any],
    code_dir: str | None,
) -> dict[str, Any]:
    """Returns the keys of ``config.optimizer`` or ``config.schedule`` with all that its part has.

    Keys of our own optimizers or schedules that the part doesn't take, or that are sgd's alone, are
    dropped if they have their default, so that changing only the name suffices.

    Args:
        group: "optimizer" or "schedule".
        options: the group's keys, complete if the part is ours.
        usual: the defaults of our own parts.
        code_dir: see ``parts.find``.

    Raises:
        UserError: an unknown part, or a key that it doesn't take.
    """
    name = options["name"]
    common = configs.PARTS[group]
    if group == "optimizer":
        ours, find = _OPTIMIZERS, _find_optimizer
    else:
        ours, find = _SCHEDULES, _find_schedule
    if name in ours:
        return dict(options)
    function = find(f"config.{group}.name", name, code_dir)
    taken = set(parts.parameters(function)) - set(_OF_SGD)
    changed = usual.keys() <= options.keys()  # only the name, perhaps
    given = {
        key: value
        for key, value in options.items()
        if key not in common
        and not (changed and key not in taken and (key, value) in usual.items())
    }
    own = parts.arguments(
        f"config.{group}",
        name,
        function,
        given,
        filled=_LENGTHS,
        reserved=("learning_rate", "user", *_MASKS),
    )
    return {key: options[key] for key in common} | own


def _paused(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns a transform that keeps the state of ``inner``; paused leaves have no gradients."""
    return optax.GradientTransformation(
        inner.init, lambda updates, state, params=None: (updates, state)
    )


def kernels_only(params: Any) -> Any:
    """Returns a tree of bools, True for kernels: biases and normalization have no weight decay."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
