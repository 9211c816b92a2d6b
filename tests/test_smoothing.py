"""The gain of smoothing: its definition, from evaluation files, and refused combinations."""

import csv
import json

import command
import numpy as np
import pytest

from randmix.analysis import smoothing
from randmix.errors import UserError

EPSILONS = (0.0, 4.0, 64.0)


def write(folder, index, accuracies, data="digits, test", epsilons=EPSILONS):
    folder.mkdir()
    lines = [f"fgsm,{e:g},{a}" for e, a in zip(epsilons, accuracies, strict=True)]
    (folder / "attacks.csv").write_text(
        "\n".join(["attack,epsilon,accuracy", *lines, "noise,0,1"]) + "\n"
    )
    (folder / "attacks.json").write_text(
        json.dumps({"smoothing_index": index, "data": data, "examples": "all 360"})
    )
    return folder


@pytest.fixture
def folders(tmp_path):
    """Index 2 before index 0, an order that a user may give."""
    return [
        write(tmp_path / "two", 2.0, (0.9, 0.5, 0.2)),
        write(tmp_path / "zero", 0.0, (0.8, 0.4, 0.0)),
    ]


def test_the_gain_is_relative_to_the_unsmoothed_run(folders, tmp_path):
    files = smoothing.draw(folders, "fgsm", tmp_path / "out")
    assert [file.name for file in files] == ["smoothing.png", "smoothing.svg", "smoothing.csv"]
    rows = list(csv.DictReader(files[-1].read_text().splitlines()))
    got = [(float(r["smoothing_index"]), float(r["epsilon"]), r["relative_gain"]) for r in rows]
    assert got == [
        (0.0, 0.0, "0"),
        (0.0, 4.0, "0"),
        (0.0, 64.0, ""),  # no accuracy is left to gain on
        (2.0, 0.0, "0.125"),
        (2.0, 4.0, "0.25"),
        (2.0, 64.0, ""),
    ]
    np.testing.assert_allclose(
        smoothing.relative_gains([smoothing.read(f, "fgsm") for f in folders])[0],
        [0.125, 0.25, np.nan],
    )


def test_the_command_line(folders, tmp_path):
    done = command.run(
        "randmix spectrum",
        f"--folders={folders[0]},{folders[1]}",
        f"--out={tmp_path / 'out'}",
    )
    assert done.status == 0, done.err
    assert done.out.splitlines()[0] == f"{tmp_path / 'out' / 'smoothing.png'}"
    done = command.run("randmix spectrum", f"--folders={folders[0]}")
    assert (done.status, done.err) == (
        2,
        "randmix: --folders: got 1, allowed two or more; for example --folders=runs/s0,runs/s2\n",
    )


def test_what_cannot_be_compared(folders, tmp_path):
    def message(*chosen, attack="fgsm"):
        with pytest.raises(UserError) as error:
            smoothing.draw(chosen, attack, tmp_path / "out")
        return str(error.value)

    two, zero = folders
    assert message(two, two) == "--folders: got 0 of smoothing index 0, allowed one, the baseline"
    other = write(tmp_path / "other", 1.0, (0.9, 0.5, 0.2), data="mnist, test")
    assert message(zero, other) == (
        "--folders: got data 'mnist, test: all 360' at index 1, "
        "allowed 'digits, test: all 360' as at index 0"
    )
    fewer = write(tmp_path / "fewer", 3.0, (0.9, 0.5), epsilons=EPSILONS[:2])
    assert "got epsilons (0.0, 4.0) at index 3, allowed (0.0, 4.0, 64.0)" in message(zero, fewer)
    assert message(zero, two, attack="fgs") == (
        f"{zero}: --attack: got 'fgs', allowed fgsm, noise; did you mean 'fgsm'?"
    )
    empty = tmp_path / "empty"
    assert message(zero, empty) == (
        f"{empty}: no accuracies under attack there; first run python -m randmix evaluate "
        "--workdir=... --attacks=fgsm"
    )
