"""The records in results/ still give the verdicts that lie beside them."""

import collections
import html
import json
import math
import re
import statistics
from pathlib import Path

import command
import numpy as np
import pytest
import scipy.stats

from randmix.experiments import records

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize(
    ("preset", "flags"),
    [
        ("digits", []),
        ("fashion_mnist", []),
        ("mnist", []),
        ("cifar10", ["--data=imagefolder/cifar10"]),  # which isn't prepared here
    ],
)
def test_the_report_drawn_anew_has_the_same_verdicts(preset, flags, tmp_path):
    done = command.run(
        "randmix reproduce",
        *(f"--preset={preset}", *flags, "--report_only"),
        f"--records={RESULTS / preset}",
        f"--workdir={tmp_path / 'again'}",
        limit=900,
    )
    assert done.status == bool(done.err)
    missing = ("not finished", ": not measured", "the finished runs have nothing that it shows")
    assert all(any(word in line for word in missing) for line in done.err.splitlines())
    (page,) = tmp_path.glob("again/report/index.html")
    assert ("Not finished" in page.read_text()) == bool(done.err)
    kept = json.loads((RESULTS / preset / "verdicts.json").read_text())
    got = json.loads((page.parent / "verdicts.json").read_text())
    for one, other in zip(got, kept, strict=True):
        assert same(one, other), one["claim"]


FINDINGS = Path(__file__).parents[1] / "docs" / "findings.md"
FOLDERS = {
    "Digits": "digits",
    "MNIST": "mnist",
    "Fashion-MNIST": "fashion_mnist",
    "Fashion-MNIST (JPEG)": "fashion_mnist_jpeg",
    "CIFAR-10 (JPEG)": "cifar10",
}
MINUS = "\N{MINUS SIGN}"
_NUMBER = rf"({MINUS}?\d+\.\d\d)"
INTERVAL = re.compile(rf"{_NUMBER} \[{_NUMBER}, {_NUMBER}\]")


def rows(column, columns=5):
    """The rows of docs/findings.md's tables of so many columns that name a data set in one."""
    lines = FINDINGS.read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == columns and row[column] in FOLDERS]


def judged():
    """Rows of verdicts: claim, in words, data set, measured, verdict."""
    return rows(2)


def test_the_findings_have_every_primary_claim_of_each_data_set_with_verdicts():
    primary = {
        (one["claim"], title)
        for title, folder in FOLDERS.items()
        if (file := RESULTS / folder / "verdicts.json").exists()
        for one in json.loads(file.read_text())
        if one["primary"]
    }
    assert primary
    assert {(claim, data) for claim, _, data, *_ in judged()} >= primary


@pytest.mark.parametrize("row", judged(), ids=lambda row: f"{row[0]}-{row[2]}")
def test_the_findings_are_those_of_the_verdicts(row):
    claim, _, data, measured, verdict = row
    one = published(data, claim)
    assert verdict == one["verdict"]
    assert {*INTERVAL.findall(measured)} <= {*map(printed, one["effects"])}
    assert INTERVAL.search(measured) or verdict in ("not decided", "not assessable")


@pytest.mark.parametrize("row", rows(0, columns=6), ids=lambda row: "-".join(row[:2]))
def test_the_findings_robustness_is_that_of_the_verdicts(row):
    data, model, seeds, *cells = row
    effects = published(data, {"ResNet": "4a", "ConvMixer": "4c"}[model.split(",")[0]])["effects"]
    assert {effect["interval"]["n"] for effect in effects} == {int(seeds)}
    assert [INTERVAL.findall(cell) for cell in cells] == [
        [*filter(None, [printed(effect)])] for effect in effects
    ]


def published(data, claim):
    """The entry of a claim in the verdicts.json of a data set."""
    kept = json.loads((RESULTS / FOLDERS[data] / "verdicts.json").read_text())
    (one,) = (one for one in kept if one["claim"] == claim)
    return one


def printed(effect):
    """Mean and ends of an effect's interval as the findings write them, if all are known."""
    ends = [(effect["interval"] or {}).get(end) for end in ("mean", "low", "high")]
    return None if None in ends else tuple(f"{end:.2f}".replace("-", MINUS) for end in ends)


@pytest.mark.parametrize("row", rows(0), ids=lambda row: "-".join(row[:3]))
def test_the_findings_accuracies_are_those_of_the_records(row):
    data, model, mode, epochs, accuracy = row
    family, width, depth = re.fullmatch(r"(\w+), width (\d+), depth (\d+)", model).groups()
    wanted = {
        **{"model.name": family.lower(), "model.width": int(width), "model.depth": int(depth)},
        **{"mode": mode.lower(), "epochs": float(epochs), "data.validation": 0.0},
        **{"model.filters": "random", "model.smoothing_index": 0.0, "defense.epsilon": 0.0},
    }
    values = [100 * value for value in recorded(data, "test_accuracy", wanted)]
    assert accuracy == f"{spread(values)} ({len(values)})"


@pytest.mark.parametrize("row", rows(0, columns=7), ids=lambda row: "-".join(row[:4]))
def test_the_findings_psnrs_are_those_of_the_records(row):
    data, width, depth, kernel_size, *psnrs = row
    keys = "model.width", "model.depth", "model.kernel_size"
    wanted = dict(zip(keys, map(int, (width, depth, kernel_size)), strict=True))
    for mode, psnr in zip(("full", "chans", "space"), psnrs, strict=True):
        values = recorded(data, "test_psnr", {**wanted, "mode": mode, "model.name": "convmixer"})
        complete = len(values) == {"MNIST": 3, "Fashion-MNIST": 5}[data]
        assert psnr == (spread(values) if complete else "")


def recorded(data, metric, wanted):
    """A metric of the recorded runs with the wanted settings."""
    return [
        record.result["metrics"][metric]
        for record in records.read(RESULTS / FOLDERS[data] / records.COMPRESSED).values()
        if metric in record.result["metrics"]
        and all(record.settings[key] == value for key, value in wanted.items())
    ]


def spread(values):
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


@pytest.fixture(scope="module")
def mixers(tmp_path_factory):
    """The cells of the report of E13 on CIFAR-10, by mixer: of its overview, and of all tables."""
    done = command.run(
        "randmix reproduce",
        *("--preset=cifar10", "--tier=laptop", "--data=imagefolder/cifar10", "--experiments=E13"),
        *("--report_only", f"--records={RESULTS / 'cifar10'}"),
        f"--workdir={tmp_path_factory.mktemp('mixers')}",
        limit=900,
    )
    page = Path(done.out.split()[-1]).read_text()
    overview, cells, mixer = {}, collections.defaultdict(list), ""
    for row in re.findall("<tr.*?</tr>", page, re.DOTALL):
        texts = re.findall("<t[hd].*?</t[hd]>", row, re.DOTALL)
        title, *others = [html.unescape(re.sub("<.*?>", "", text)).strip() for text in texts]
        if ", width" in title:
            mixer = title.removeprefix("MetaFormer, ").partition(", width")[0]
            overview.setdefault(mixer, others)
        cells[mixer] += others
    return overview, cells


def test_the_findings_mixers_are_those_of_the_report(mixers):
    overview, cells = mixers
    lines = FINDINGS.read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [row for row in rows if row[0] in overview]
    accuracies, others = rows[:7], rows[7:]
    assert [values == overview[mixer] for mixer, *values in accuracies] == 7 * [True]
    assert len(others) == 2 * 7
    for mixer, *values in others:
        assert {*values} <= {*cells[mixer]}


def radii(verdicts):
    """Chans - Full in halving radius, octaves, by attack and seed: the effects of claim 4c."""
    (claim,) = (one for one in json.loads(verdicts.read_text()) if one["claim"] == "4c")
    effects = {effect["words"].split(" under ")[1]: effect for effect in claim["effects"]}
    names = {"FGSM": "FGSM", "PGD-2": "PGD-2", "strong": "the strong attack"}
    values = {name: effect["values"] for name, effect in effects.items()}
    return {short: np.array([values[name][s] for s in "012"]) for short, name in names.items()}


def test_the_findings_control_is_that_of_the_records(tmp_path):
    done = command.run(
        "randmix reproduce",
        *("--preset=fashion_mnist", "--data=arrays/fashion_mnist_jpeg", "--experiments=E6"),
        *("--report_only", f"--records={RESULTS / 'fashion_mnist_jpeg'}", "--seeds=3"),
        f"--workdir={tmp_path}",
    )
    coded = radii(Path(done.out.split()[-1]).with_name("verdicts.json"))
    original = radii(RESULTS / "fashion_mnist" / "verdicts.json")
    text = FINDINGS.read_text().partition("## What JPEG images change")[2]
    for name, values in coded.items():
        of, between, apart = map(interval, (original[name], values, values - original[name]))
        rows = rf"\| {name}.*\| {of} \| \|\n\| \| JPEG \|.*\| {between} \| {apart} \|\n"
        assert re.search(rows, text), (name, of, between, apart)


def interval(values):
    """The mean of three values with its 95 % Student interval, as the findings write it."""
    half = scipy.stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    numbers = (np.mean(values), np.mean(values) - half, np.mean(values) + half)
    mean, low, high = (f"{number:.2f}".replace("-", MINUS) for number in numbers)
    return re.escape(f"{mean} [{low}, {high}]")
