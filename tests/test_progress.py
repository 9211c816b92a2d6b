"""Progress lines of long work, where there is no terminal."""

import itertools

import pytest

from randmix.runtime import progress


@pytest.mark.parametrize(
    ("every", "shown"),
    [
        (0, ["50 %, 2 s", "100 %, 4 s"]),  # a line per 10 %, here per item
        (3, ["100 %, 4 s"]),
        (60, []),
    ],
)
def test_a_line_per_tenth_but_no_sooner_than_asked(every, shown, monkeypatch, capsys):
    clock = itertools.count(0, 2)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert [*progress.track("ab", 2, "work", every=every)] == ["a", "b"]
    assert capsys.readouterr().out.splitlines() == [f"work: {line}" for line in shown]
