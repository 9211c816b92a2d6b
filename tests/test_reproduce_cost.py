"""What a sweep took, by kind of machine."""

import pytest

from randmix.experiments.records import Record
from randmix.reproduce import cost

CPU = {"device": {"kind": "cpu", "platform": "cpu", "count": 1}}
GPU = {"device": {"kind": "H200", "platform": "gpu", "count": 2}, "cores": 16}


def record(where, seconds, ensemble=None, **measurements):
    together = {} if ensemble is None else {"ensemble": ensemble}
    return Record({}, {"wall_seconds": seconds, **together, **where}, None, [], measurements)


def test_hours_are_by_machine_and_shared_by_seeds_trained_together():
    found = [
        record({**CPU, "cores": 2}, 3600.0),
        record({**CPU, "cores": 2}, 3600.0, ensemble=4),
        record({**CPU, "cores": 8}, 360.0),
        record(GPU, 720.0),
    ]
    assert [(one.name, one.runs) for one in cost.machines(found)] == [
        ("2 CPU cores", 2),
        ("2 x H200, 16 CPU cores", 1),
        ("8 CPU cores", 1),
    ]
    assert [one.training for one in cost.machines(found)] == pytest.approx([1.25, 0.2, 0.1])


def test_attacks_count_where_they_ran():
    attacks = {"seconds": 7200.0, **CPU, "cores": 2}
    steps = {"seconds": 1800.0, **CPU, "cores": 2}
    found = [record(GPU, 3600.0, attacks=attacks, step=steps, steps=[1, 2])]
    assert cost.machines(found) == [
        ("2 CPU cores", 0, 0.0, 2.5),
        ("2 x H200, 16 CPU cores", 1, 1.0, 0.0),
    ]


def test_older_records_know_neither_their_cores_nor_the_time_of_attacks():
    found = [record(CPU, 36.0, attacks={"clean": 0.9, "rows": []})]
    assert cost.machines(found) == [("CPU cores not recorded", 1, pytest.approx(0.01), 0.0)]
    assert cost.machines([]) == []
