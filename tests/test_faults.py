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


def test_killed_runs_end_like_an_undisturbed_one(case):
    assert faults.disturb(case, 2, np.random.default_rng(0), kill=True).startswith("2 hits")


def test_a_second_run_in_one_workdir_is_refused(case):
    assert faults.two_at_once(case) == "the second refused"


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
