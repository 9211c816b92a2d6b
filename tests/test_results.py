"""The records in results/ still give the verdicts that lie beside them."""

import json
import math
from pathlib import Path

import command
import pytest

RESULTS = Path(__file__).parents[1] / "results"


def same(got, kept):
    """Whether two contents of verdicts.json are equal, numbers to rounding."""
    if isinstance(kept, dict):
        return got.keys() == kept.keys() and all(same(got[key], kept[key]) for key in kept)
    if isinstance(kept, list):
        return len(got) == len(kept) and all(map(same, got, kept))
    if isinstance(kept, float):
        return math.isclose(got, kept, rel_tol=1e-9, abs_tol=1e-9)
    return got == kept


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["digits"])
def test_the_report_drawn_anew_has_the_same_verdicts(preset, tmp_path):
    done = command.run(
        "randmix reproduce",
        f"--preset={preset}",
        "--report_only",
        f"--records={RESULTS / preset}",
        f"--workdir={tmp_path / 'again'}",
        limit=900,
    )
    assert (done.status, done.err) == (0, "")
    (page,) = tmp_path.glob("again/report/index.html")
    assert "Not finished" not in page.read_text()
    kept = json.loads((RESULTS / preset / "verdicts.json").read_text())
    got = json.loads((page.parent / "verdicts.json").read_text())
    for one, other in zip(got, kept, strict=True):
        assert same(one, other), one["claim"]
