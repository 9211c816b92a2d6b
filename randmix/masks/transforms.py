"""One optax transform for a tree of labels: an optimizer, decay and a start for each group."""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from randmix.masks.errors import MaskError, nearest, shown
from randmix.masks.labelling import Rules, assign, filter_mask
from randmix.masks.rules import FREEZE, Rule, checked_rules
from randmix.masks.selectors import Fraction, is_bounded
from randmix.masks.splitting import blend
from randmix.masks.strictness import selector_of
from randmix.masks.tree import ABSENT, Leaf, PyTree, flatten

Setting = (
    optax.GradientTransformation
    | optax.Schedule
    | float
    | Mapping[str, Any]  # optimizer, start, and the optimizer's own arguments
)


class StartState(NamedTuple):
    """State of a group that starts later.

    Attributes:
        step: number of updates so far, [] int32.
        inner_state: state of the group's optimizer, its initial one until the start.
    """

    step: jax.Array
    inner_state: Any


def transform(
    rules: Rules | Callable[[PyTree], PyTree], settings: Mapping[str, Setting]
) -> optax.GradientTransformationExtraArgs:
    """One optax transform that trains each label with its own settings and freezes "freeze".

    A frozen leaf has no optimizer state, and its update is -0.0, which changes no bit: 0.0 would
    turn -0.0 into 0.0. (A device that flushes subnormal numbers does so in this addition too; a
    `partition` leaves them out of it.) The filters that a `fraction` leaves out stand still alike.

    It works on any tree that `labels` reads: dicts, lists, Linen's and nnx's trees, Equinox modules
    without their functions (`eqx.filter(model, eqx.is_inexact_array)`), and the first half of a
    `partition`. Labels are computed again from each tree, while tracing, so predicates of `where`
    may read shapes and dtypes but no values. The state is a pytree of arrays: training resumes from
    a saved one bit for bit.

    Args:
        rules: as in `labels`, always strict; or a function from a tree to its labels. Given the
            trainable half of a `partition`, rules with `where` terms aren't checked, since the
            predicate can't see the other half.
        settings: for each label but "freeze", one of

            - an optax transform, such as `optax.lion(1e-4)`;
            - a learning rate, a number or a schedule, for Adam;
            - a dict: `optimizer`, an optax transform or a function that builds one, `optax.adamw`
              by default; `start`, the number of updates before the group begins, 0 by default; and
              the arguments of the function: `learning_rate`, `weight_decay` (0 by default for
              AdamW) and its others.

            Until its start a group is frozen and its moments and count are the initial ones. A
            schedule given as `learning_rate` counts all updates, those before the start too.

    Raises:
        MaskError: an invalid rule; a label without settings, or settings without a label; a setting
            that is none of these. When the state is made: what `labels` refuses.

    >>> params = {"spatial": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}}
    >>> rules = [("slow", "role('head')"), ("freeze", "everything")]
    >>> optimizer = transform(rules, {"slow": {"optimizer": optax.sgd, "learning_rate": 0.5}})
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> print(updates["head"]["kernel"], updates["spatial"]["kernel"])
    [-0.5 -0.5] [-0. -0.]
    """
    if not isinstance(settings, Mapping):
        raise MaskError(f"settings must be a dict from label to setting, got {shown(settings)}")
    given = [] if callable(rules) else checked_rules(rules)
    if given:
        _check_names({label for label, _ in given}, settings, all_used=True)
    transforms = {label: _descent(label, setting) for label, setting in settings.items()}

    def label(tree: PyTree) -> PyTree:
        if callable(rules):
            found = rules(tree)
            _check_names(set(jax.tree.leaves(found)), settings)
            return found
        _, treedef, assigned = _assigned(tree, given)
        return treedef.unflatten([label for label, _ in assigned])

    inner = optax.multi_transform({**transforms, FREEZE: optax.stateless(_still)}, label)
    if not any(isinstance(chosen, Fraction) for _, chosen in given):
        return inner

    def update(updates, state, params=None, **extra):
        leaves, treedef, assigned = _assigned(updates, given)
        learned = treedef.unflatten(list(map(_learned, leaves, assigned)))
        updates = blend(learned, updates, optax.tree.zeros_like(updates))
        updates, state = inner.update(updates, state, params, **extra)
        return blend(learned, updates, _still(updates)), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _assigned(tree: PyTree, rules: list[Rule]) -> tuple[list[Leaf], Any, list[Rule]]:
    """The leaves of a tree or of one half of it, its treedef, and the rule of each leaf."""
    leaves, treedef = flatten(tree, nones=True)
    terms = (term for _, chosen in rules for term in selector_of(chosen).terms())
    unseen = any(leaf.value is ABSENT for leaf in leaves)
    strict = not (unseen and any(term.kind == "where" for term in terms))
    return leaves, treedef, assign(leaves, rules, strict)


def _learned(leaf: Leaf, rule: Rule) -> Any:
    """The mask of the filters of a leaf that a fraction learns, or None."""
    _, chosen = rule
    if leaf.value is ABSENT or not isinstance(chosen, Fraction):
        return None
    return filter_mask(leaf, chosen)


def _still(updates: PyTree, params: PyTree | None = None) -> PyTree:
    """Updates that change no bit: x + -0.0 is x, whereas -0.0 + 0.0 is 0.0."""
    return jax.tree.map(lambda update: jnp.full_like(update, -0.0), updates)


def _check_names(labels: set[str], settings: Mapping[str, Setting], all_used: bool = False) -> None:
    for name in sorted(labels - {FREEZE, *settings}):
        raise MaskError(f"no settings for the label {name!r}, got {_listed(settings)}")
    for name in settings:
        if name == FREEZE:
            raise MaskError(f"{FREEZE!r} takes no settings: its leaves don't change")
        if all_used and name not in labels:
            near = nearest(shown(name), labels - {FREEZE})
            raise MaskError(
                f"settings for {shown(name)}, which is no label of the rules, "
                f"the nearest is {near!r}"
            )


def _listed(settings: Mapping[str, Setting]) -> str:
    return "settings for " + ", ".join(map(shown, settings)) if settings else "none"


def _descent(label: str, setting: Setting) -> optax.GradientTransformation:
    setting = _as_transform(setting)
    if isinstance(setting, optax.GradientTransformation):
        return setting
    options: dict[str, Any] = (
        dict(setting) if isinstance(setting, Mapping) else {"learning_rate": setting}
    )
    optimizer, start = _as_transform(options.pop("optimizer", None)), options.pop("start", 0)
    if not is_bounded(start):
        raise MaskError(f"start of {label!r} must be an integer of at least 0, got {shown(start)}")
    if isinstance(optimizer, optax.GradientTransformation):
        if options:
            raise MaskError(
                f"settings of {label!r}: the optimizer is built, so {', '.join(options)} can't "
                "reach it: give the optax function instead, such as optax.adamw"
            )
    else:
        optimizer = _built(label, optimizer, options, start)
    return _from_step(optimizer, int(start)) if start else optimizer


def _as_transform(setting: Any) -> Any:
    return setting.gradient_transformation() if isinstance(setting, optax.MultiSteps) else setting


def _built(label: str, function: Any, options: dict[str, Any], start: int) -> Any:
    """The transform that an optax function returns for a group's options."""
    if function is None:
        function = optax.adamw
        options.setdefault("weight_decay", 0.0)  # optax's default is 1e-4
    if not callable(function):
        raise MaskError(
            f"optimizer of {label!r} must be an optax transform or a function that builds one, "
            f"got {shown(function)}"
        )
    name = getattr(function, "__name__", shown(function))
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise MaskError(f"settings of {label!r}: {name}: {error}") from None
    first = jnp.zeros((), jnp.int32)  # the count, as optax passes it to schedules
    for key in ("learning_rate", "weight_decay"):
        value = options.get(key)
        if value is not None and not _is_rate(value(first) if callable(value) else value):
            raise MaskError(
                f"{key} of {label!r} must be a number of at least 0 or a schedule, "
                f"got {shown(value)}"
            )
    schedule = options.get("learning_rate")
    if start and callable(schedule):
        options["learning_rate"] = lambda count: schedule(count + start)
    return function(**options)


def _is_rate(value: Any) -> bool:
    if isinstance(value, jax.Array):
        return value.ndim == 0
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and 0 <= float(value) < math.inf


def _from_step(
    inner: optax.GradientTransformation, start: int
) -> optax.GradientTransformationExtraArgs:
    """Like `inner` from a step on; before it, nothing moves and the state stays the initial one."""
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return StartState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates, state, params=None, **extra):
        def moving():
            return inner.update(updates, state.inner_state, params, **extra)

        def still():
            shapes, _ = jax.eval_shape(moving)
            zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
            return _still(zeros), state.inner_state

        updates, inner_state = jax.lax.cond(state.step >= start, moving, still)
        return updates, StartState(jnp.asarray(optax.safe_increment(state.step)), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
