"""Trained parameter groups and phases, from what a config calls ``groups``, ``train`` or ``mode``.

A group is a label, a selector and its own settings. Groups that start later divide the run into
phases. In each phase, groups that haven't started are frozen, so that they cost no gradient.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from randmix import masks, ranges
from randmix.errors import UserError, check_choice
from randmix.masks.rules import FREEZE, TRAIN


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that are trained with the same settings.

    Attributes:
        label: the group's name in the label tree.
        chosen: a selector, or a fraction of the filters of one.
        optimizer: keys of ``config.optimizer`` that differ for this group.
        lr_scale: multiplier of the learning rate.
        start_step: number of steps during which the group stays frozen.
    """

    label: str
    chosen: masks.Selector | masks.Fraction
    optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lr_scale: float = 1.0
    start_step: int = 0

    def __str__(self) -> str:
        notes = [f"from step {self.start_step}"] if self.start_step else []
        notes += [f"learning rate x {self.lr_scale:g}"] if self.lr_scale != 1 else []
        notes += [f"{key} {value}" for key, value in self.optimizer.items()]
        return f"{self.label}: {', '.join([repr(self.chosen), *notes])}"


def source(mode: str, train: str | None, groups: Any) -> tuple[str, str]:
    """Returns the config key that defines what is trained, and a word or selector for it.

    >>> source("chans", None, None)
    ('mode', 'chans')
    >>> source("chans", "leaf('bias')", None)
    ('train', "leaf('bias')")
    """
    if groups is not None:
        return "groups", "groups"
    return ("mode", mode) if train is None else ("train", train)


def build(
    mode: str,
    train: str | None,
    groups: Sequence[Any] | None,
    *,
    optimizer_keys: Iterable[str],
    steps_per_epoch: int,
    total_steps: int,
) -> tuple[Group, ...]:
    """Returns the trained groups; parameters in no group stay frozen.

    Args:
        mode: one of ``masks.MODES``; used if the next two are None.
        train: the text of a selector or fraction, or None; used if the next one is None.
        groups: an ordered sequence of ``(label, selector text, settings)``, or None. A parameter
            belongs to the first group that selects it. Settings are ``lr_scale``, ``start_epoch``
            or ``start_step``, and optimizer keys.
        optimizer_keys: the keys of ``config.optimizer``.
        steps_per_epoch, total_steps: of the run.

    Raises:
        UserError: an invalid selector, an unknown setting, a number out of its range in
            ``randmix.ranges``, two groups with one label, no group that starts with the run, or a
            group that starts after its end.
    """
    key, text = source(mode, train, groups)
    if groups is None:
        if key == "mode":
            check_choice("config.mode", mode, masks.MODES)
        return (Group(TRAIN, _parse(f"config.{key}", text)),)
    # clip_norm clips all groups at once.
    optimizer_keys = [name for name in optimizer_keys if name != "clip_norm"]
    built = tuple(
        _group(f"config.groups, entry {i}", entry, optimizer_keys, steps_per_epoch)
        for i, entry in enumerate(groups, 1)
    )
    labels = [group.label for group in built]
    if len(set(labels)) < len(labels):
        raise UserError(f"config.groups: got the labels {', '.join(labels)}, allowed once each")
    if not built:
        raise UserError("config.groups: got (), allowed one or more entries, or None")
    if all(group.start_step for group in built):
        raise UserError(
            "config.groups: every group starts later; at least one must start with the run"
        )
    for group in built:
        if group.start_step >= total_steps:
            raise UserError(
                f"config.groups: {group.label!r} starts after step {group.start_step}, "
                f"allowed less than the run's {total_steps} steps"
            )
    return built


def _group(key: str, entry: Any, optimizer_keys: list[str], steps_per_epoch: int) -> Group:
    if not isinstance(entry, tuple | list) or len(entry) != 3 or not isinstance(entry[2], Mapping):
        raise UserError(
            f"{key}: got {entry!r}, allowed (label, selector text, settings such as {{}})"
        )
    label, text, settings = entry
    if not isinstance(label, str) or label in ("", FREEZE):
        raise UserError(f"{key}: got the label {label!r}, allowed a name other than {FREEZE!r}")
    key, settings = f"{key} ({label!r})", dict(settings)
    for name, value in settings.items():
        check_choice(key, name, [*ranges.GROUP, *optimizer_keys])
        if allowed := ranges.GROUP.get(name) or ranges.CONFIG.get(f"optimizer.{name}"):
            ranges.check(f"{key}: {name}", value, allowed)
        elif name == "nesterov" and not isinstance(value, bool):
            raise UserError(f"{key}: nesterov: got {value!r}, allowed True or False")
    if "start_epoch" in settings and "start_step" in settings:
        raise UserError(f"{key}: give start_epoch or start_step, not both")
    start_step = settings.pop("start_step", round(settings.pop("start_epoch", 0) * steps_per_epoch))
    return Group(
        label=label,
        chosen=_parse(key, text),
        lr_scale=float(settings.pop("lr_scale", 1.0)),
        start_step=start_step,
        optimizer=settings,
    )


def _parse(key: str, text: str) -> masks.Selector | masks.Fraction:
    try:
        return masks.parse(text, masks.MODES)
    except masks.MaskError as error:
        raise UserError(f"{key}: {error}") from error


def label_tree(params: Any, groups: tuple[Group, ...], key: str) -> tuple[Any, Any]:
    """Returns the label of every parameter, "freeze" if in no group, and the masks inside leaves.

    Args:
        params: a tree of arrays or shapes.
        groups: in order of precedence.
        key: the config key that they come from, for error messages.

    Returns:
        ``(labels, channel_masks)``, see ``masks.labels`` and ``masks.channel_masks``.

    Raises:
        UserError: a group that selects nothing, a term of a selector that matches nothing, or a
            mode or selector that leaves nothing to freeze; only "full" and groups may.
    """
    rules = [*((group.label, group.chosen) for group in groups), (FREEZE, masks.everything)]
    try:
        if key == "groups" and FREEZE not in jax.tree.leaves(
            masks.labels(params, rules, strict=False)
        ):
            rules.pop()
        return masks.labels(params, rules), masks.channel_masks(params, rules, strict=False)
    except masks.MaskError as error:
        raise UserError(f"config.{key}: {error}") from error


def labels_at(labels: Any, groups: tuple[Group, ...], step: int) -> Any:
    """Returns the label tree of the phase after ``step`` steps; groups yet to start are frozen."""
    waiting = {group.label for group in groups if group.start_step > step}
    return jax.tree.map(lambda label: FREEZE if label in waiting else label, labels)
