"""Runs that start from the filters of another run: named once these are known, on any machine."""

import dataclasses

import jax
import numpy as np
import pytest

from randmix import config as configs
from randmix.experiments import measured, records
from randmix.experiments.plan import shard
from randmix.reproduce import measurements, plan, presets, transplants
from randmix.training import runs
from randmix.training import transplants as initial

pytestmark = pytest.mark.slow

SMOKE = presets.get("smoke")


def planned(known=None, **options):
    return plan.build(SMOKE, ("E14",), range(2), known=known, **options)


@pytest.fixture(scope="module")
def source():
    """The run that learns filters, with seed 0."""
    (group,) = (group for group in planned() if group[0].config.mode == "full")
    return group[0]


@pytest.fixture
def known(source, tmp_path):
    """Its record, as it comes from another machine."""
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4)).astype(np.float32)
    folder = tmp_path / "elsewhere"
    measured.write_arrays(folder / f"{measurements.LAYERS}.npz", {"block_00": kernel})
    record = records.Record(
        config=source.config.to_dict(),
        result={"step": 3},
        data=None,
        log=(),
        measurements={measurements.LAYERS: [{"layer": "block_00"}]},
        source=folder,
    )
    assert record.name == source.name
    return {source.name: record}


def of_other_filters(groups):
    (group,) = (group for group in groups if plan.starts_elsewhere(group))
    return group


def test_runs_wait_for_the_filters_and_then_have_their_hash(source, known, tmp_path):
    before = of_other_filters(planned(root=tmp_path))
    assert plan.waits(before)
    after = of_other_filters(planned(known, root=tmp_path))
    assert not plan.waits(after)
    place, digest = configs.transplant(after[0].config.model.filters)
    assert place == str(tmp_path / "filters" / f"{source.name}.npz")
    assert {run.name for run in after}.isdisjoint(run.name for run in before)
    (kernel,) = known[source.name].arrays(measurements.LAYERS).values()
    assert digest == initial.digest_of({"spatial/block_00/depthwise/kernel": kernel})
    others = [group for group in planned(known) if not plan.starts_elsewhere(group)]
    assert not any(map(plan.waits, others))


def test_their_names_do_not_depend_on_the_sweeps_folder(known, tmp_path):
    one, other = (
        of_other_filters(planned(known, root=tmp_path / name)) for name in ("here", "there")
    )
    assert [run.name for run in one] == [run.name for run in other]


def test_the_filters_are_written_from_the_record_and_the_run_starts_from_them(known, tmp_path):
    groups = planned(known, root=tmp_path)
    transplants.write(groups, tmp_path, known)
    run = of_other_filters(groups)[0]
    parts = runs.assemble(run.config, run.folder(tmp_path))
    (kernel,) = next(iter(known.values())).arrays(measurements.LAYERS).values()
    params = jax.jit(parts.init_state)(np.uint32(0)).params
    np.testing.assert_array_equal(params["spatial"]["block_00"]["depthwise"]["kernel"], kernel)
    assert parts.record.mode == "chans"


def test_without_the_arrays_they_still_wait(source, known, tmp_path):
    gone = {source.name: dataclasses.replace(known[source.name], source=tmp_path / "gone")}
    assert plan.waits(of_other_filters(planned(gone)))


def test_a_run_whose_filters_others_need_is_measured(source):
    assert measurements._needed(source, SMOKE)["spectrum of each layer"] == measurements.LAYERS


@pytest.mark.parametrize("n", [2, 3])
def test_a_shard_keeps_its_runs_once_the_filters_are_known(n, known):
    for i in range(1, n + 1):
        before = {str(group[0]) for group in shard(planned(), i, n)}
        assert {str(group[0]) for group in shard(planned(known), i, n)} == before
