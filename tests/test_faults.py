"""Short form of the fault campaign; `python tests/faults.py` is the long one."""

import faults
import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "config.py").write_text(faults.CONFIG)
    return faults.Case("convmixer-chans", folder)


def rng():
    return np.random.default_rng(0)


def test_killed_runs_end_like_an_undisturbed_one(case):
    tries, _ = faults.disturb(case, 2, rng(), kill=True)
    assert tries >= 2


def test_a_run_goes_on_after_a_power_cut(case):
    try:
        outcome = faults.power_cuts(case, 3, rng())[0]
    except faults.NotTried as reason:  # not root, or root of a container
        outcome = str(reason)
    assert outcome in ("only root can mount a disk", "mkfs.ext4 is missing", 4, 5, 6, 7)


def test_every_damaged_file_is_named_or_mended(case):
    assert faults.other_files(case, False, ["zeros"])[0] >= 3


def test_a_second_run_in_one_workdir_is_refused(case):
    assert faults.two_at_once(case) == (1, "the second was refused")


def test_two_processes_save_often_where_listings_are_slow_and_stale(case):
    assert faults.many_saves(case, 1, 2, "stale")[0] == 1


def test_a_killed_process_of_two_costs_nothing(case):
    assert faults.kill_one_of_two(case, 1, rng())[0] == 1


def test_losses_are_detected(case):
    workdir = case.workdir()
    case.finish(workdir)
    log = workdir / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for wrong in (
        lines[:-2] + lines[-1:],
        lines + lines[-1:],
        [lines[0].replace("1", "2", 1), *lines[1:]],
    ):
        log.write_text("".join(wrong))
        with pytest.raises(faults.Lost, match=r"other lines in metrics\.jsonl"):
            case.compare(workdir)
    log.write_text("".join(lines))
    path, (shape, content) = next(iter(case.expected[1].items()))
    case.expected[1][path] = (shape, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(faults.Lost, match="another "):
        case.compare(workdir)
    case.expected[1][path] = (shape, content)
    case.compare(workdir)
