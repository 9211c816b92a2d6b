"""What the claims wait for: the order in which runs are made, and how many are missing."""

import dataclasses
from collections.abc import Mapping, Sequence

from randmix.experiments.plan import Group, PlannedRun
from randmix.experiments.records import Record
from randmix.reproduce import measurements
from randmix.reproduce.claims import CLAIMS, Claim
from randmix.reproduce.presets import Preset


def soonest_verdicts_first(groups: Sequence[Group]) -> list[Group]:
    """Orders groups so that, at any time, as many primary claims as possible are decided.

    The claim whose missing runs, with those of its gates, cost least comes first, then the one
    that then costs least, and so on. Runs that no primary claim needs follow in the given order.
    """
    left, ordered = list(groups), []
    waiting = [claim for claim in CLAIMS.values() if claim.primary]
    while waiting:
        needed = {claim.id: [g for g in left if claim.needs(g[0])] for claim in waiting}
        claim = min(waiting, key=lambda claim: sum(map(_cost, needed[claim.id])))
        waiting.remove(claim)
        ordered += needed[claim.id]
        left = [group for group in left if group not in needed[claim.id]]
    return ordered + left


def _cost(group: Group) -> float:
    return len(group) * group[0].cost


def pending(
    groups: Sequence[Group],
    known: Mapping[str, Record],
    experiments: Sequence[str],
    preset: Preset,
) -> dict[tuple[str, str], tuple[int, int]]:
    """How many of the runs that a claim compares on a data set aren't finished, of how many.

    A run that is to be measured for the claim, as by attacks, is finished once it was. Of claims
    without runs, E1's and E11's, the data set is "". A claim whose experiment has no run that it
    compares isn't asked there.

    Args:
        groups: all runs of the sweep.
        known: the records of the finished ones, by name.
        experiments: ids of the requested experiments.
        preset: the sweep's preset.

    Returns:
        (claim's id, data set) -> (unfinished, all).
    """
    runs = [run for group in groups for run in group]

    def finished(run: PlannedRun, claim: Claim) -> bool:
        asked = {claim.experiment, *(gate.experiment for gate in claim.gates)}
        own = dataclasses.replace(run, experiments=tuple(asked & {*run.experiments}))
        return run.name in known and measurements.complete(own, known[run.name], preset)

    found = {}
    for claim in (claim for claim in CLAIMS.values() if claim.experiment in experiments):
        if claim.experiment in ("E1", "E11"):
            found[claim.id, ""] = (0, 0)
        asked = [run for run in runs if claim.experiment in run.experiments]
        for data in dict.fromkeys(run.config.data.name for run in asked if claim.compares(run)):
            own = [r for r in runs if claim.needs(r) and r.config.data.name == data]
            found[claim.id, data] = sum(not finished(run, claim) for run in own), len(own)
    return found
