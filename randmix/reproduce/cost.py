"""What a sweep took, by kind of machine: records may come from several."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from randmix.experiments.records import Record


class Machine(NamedTuple):
    """What a kind of machine did.

    Attributes:
        name: its devices and its CPU cores.
        runs: the number of runs that it trained.
        training: hours of training, with compilation and evaluation.
        attacks: hours of attacks.
    """

    name: str
    runs: int = 0
    training: float = 0.0
    attacks: float = 0.0


def machines(found: Iterable[Record]) -> list[Machine]:
    """The machines that trained or attacked runs, those that worked longest first."""
    by_name: dict[str, Machine] = {}

    def add(where: Mapping[str, Any], **more: float) -> None:
        name = _name(where)
        old = by_name.get(name, Machine(name))._asdict()
        by_name[name] = Machine(name, **{key: old[key] + more.get(key, 0) for key in _SUMS})

    for record in found:
        add(record.result, runs=1, training=record.seconds / 3600)
        for one in record.measurements.values():
            if isinstance(one, dict) and "seconds" in one:
                add(one, attacks=one["seconds"] / 3600)
    return sorted(by_name.values(), key=lambda one: -(one.training + one.attacks))


_SUMS = Machine._fields[1:]


def _name(where: Mapping[str, Any]) -> str:
    """The machine of a result or a measurement; older ones don't know their cores."""
    device, cores = where["device"], where.get("cores")
    on = f"{cores} CPU cores" if cores else "CPU cores not recorded"
    if device["platform"] == "cpu":
        return on
    return f"{device['count']} x {device['kind']}, {on}"
