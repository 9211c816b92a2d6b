"""The report: index.html, results.csv, verdicts.json and figures/, written all at once."""

import base64
import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from etils import epath
from PIL import Image

from randmix.analysis import plots
from randmix.reproduce import (
    claims,
    counting,
    figures,
    measurements,
    neighbours,
    pictures,
    stored,
    sweep,
    tables,
    under_attack,
    verdicts,
)
from randmix.reproduce.claims import CLAIMS
from randmix.reproduce.experiments import EXPERIMENTS
from randmix.reproduce.plan import Group
from randmix.reproduce.presets import Preset, Settings
from randmix.reproduce.records import Records, collect, of_banks, of_smoothing
from randmix.reproduce.titles import title_of
from randmix.reproduce.verdicts import Judgement, Result
from randmix.runtime import durable, locks
from randmix.workdir import artifacts

_TEMPLATE = "report.html.j2"
_COLUMNS = ("experiment", "claim", "mode", "size", "seed", "metric", "value", "run")
# What a number depends on beside its run.
_PLACES = ("epsilon", "layer", "filters", "index", "epoch", "step", "check")
_SHOWN = 10  # most failed checks listed
_SIZES = ("model.name", "model.width", "model.depth", "model.kernel_size", "model.filters")


@dataclasses.dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        folder: the report's folder.
        judgements: the verdicts.
        problems: what failed or is missing, one line each.
    """

    folder: Path
    judgements: Sequence[Judgement]
    problems: Sequence[str]


def write(
    root: Path,
    preset: Preset,
    experiments: Sequence[str],
    groups: Sequence[Group],
    *,
    overrides: Settings,
    command: str,
) -> Report | None:
    """Judges and draws the results in a sweep's folder, and writes them to its report/.

    The report is written to a temporary folder and renamed at the end, so it is never seen half
    written.

    Args:
        root: the sweep's folder.
        preset: the sweep's preset.
        experiments: ids of the requested experiments.
        groups: all runs of the sweep, including those of other shards.
        overrides: keys that the command line changed in the preset.
        command: the command line, shown in the report.

    Returns:
        The report; None if another process is writing it.
    """
    place = root / "report"
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(locks.try_lock(root / "report.lock")):
            return None
        folder = stack.enter_context(_replaced(place))
        records = collect(groups, root, preset)
        problems = [*_problems(groups, root)]
        counted: list[dict[str, Any]] = []
        if "E1" in experiments:
            rows, bare = measurements.random_banks(root, preset)
            records += of_banks(rows, f"pictures/{bare.name}.json")
        if "E8" in experiments and (plain := pictures.unsmoothed(groups, root)):
            records += of_smoothing(measurements.smoothed_filters(plain, root, preset)[0], plain)
        if "E11" in experiments:
            changed = sorted(map(str, overrides.items()))
            name = f"counts-{stored.key(preset.name, _models_key(preset), changed)}"
            file = epath.Path(root) / "measurements" / f"{name}.json"
            counted = stored.kept(file, lambda: counting.rows(preset, overrides))
            records += counting.records(counted, f"measurements/{name}.json")
        judged = verdicts.judge(records, pending(groups, root, experiments, preset))
        drawn, missing = pictures.draw(
            experiments, records, groups, root, preset, epath.Path(folder) / "figures"
        )
        problems += [f"figure {name}: {reason}" for name, reason in missing.items()]
        results = plots.csv_text(_rows(records), _COLUMNS)
        (folder / "results.csv").write_text(results)
        (folder / "verdicts.json").write_text(json.dumps(_verdicts(judged), indent=2) + "\n")
        page = {
            "preset": preset,
            "sections": [
                {
                    "experiment": EXPERIMENTS[id],
                    "claims": claims.of(id),
                    "figures": [_image(folder / "figures", name) for name in drawn[id]],
                    "tables": tables.build(id, records, counted),
                    "data": records.where(id).values("data.name"),
                }
                for id in experiments
            ],
            "claims": CLAIMS.values(),
            "judged": judged,
            "method": verdicts.METHOD,
            "hashes": {
                "claims": claims.fingerprint(),
                "numbers": hashlib.sha256(results.encode()).hexdigest()[:8],
            },
            "overrides": overrides,
            "command": command,
            "problems": problems,
            "checks": _failed_checks(groups, root, preset),
            "facts": _facts(groups, root),
            "runs": [_row(group, root) for group in groups],
            "neighbours": neighbours.NEIGHBOURS,
        }
        (folder / "index.html").write_text(_environment().get_template(_TEMPLATE).render(page))
    return Report(place, judged, problems)


def pending(
    groups: Sequence[Group], root: Path, experiments: Sequence[str], preset: Preset
) -> dict[tuple[str, str], tuple[int, int]]:
    """How many runs of each experiment and data set aren't finished, of how many.

    A run that is to be measured is finished once it was.
    """
    found: dict[tuple[str, str], tuple[int, int]] = {
        (id, ""): (0, 0) for id in ("E1", "E11") if id in experiments
    }
    for run in (run for group in groups for run in group):
        trained = sweep.state(run, root).name == "finished"
        for id in (id for id in run.experiments if id in experiments):
            done = trained and measurements.complete(run, root, preset)
            missing, total = found.get((id, run.config.data.name), (0, 0))
            found[id, run.config.data.name] = missing + (not done), total + 1
    return found


@contextlib.contextmanager
def _replaced(place: Path) -> Iterator[Path]:
    """Yields a new folder, which replaces ``place`` unless an exception interrupts its writing."""
    for left in place.parent.glob(f"{place.name}.new-*"):  # left by a process that was killed
        shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{place.name}.new-", dir=place.parent))
    folder.chmod(0o755)
    yield folder
    old = place.with_name(f"{place.name}.new-old")
    if place.exists():
        place.rename(old)
    durable.flush_tree(folder)
    durable.move(folder, place)
    shutil.rmtree(old, ignore_errors=True)


def _models_key(preset: Preset) -> list[str]:
    """The models that E11 counts, as strings: other models are stored in another file."""
    return [repr(sorted(run.items())) for id in ("E2", "E5") for run in preset.runs.get(id, ())]


def _problems(groups: Sequence[Group], root: Path) -> Iterator[str]:
    for group in groups:
        states = {run.name: sweep.state(run, root) for run in group}
        for run in group:
            state = states[run.name]
            if state.name == "failed":
                what = f"{'+'.join(run.experiments)}: {run.title}"
                yield f"run {run.name} ({what}) failed: {state.reason}"
            for name, reason in measurements.failures(run, root).items():
                yield f"run {run.name} ({run.title}): {name} failed: {reason}"
        unfinished = [run for run in group if states[run.name].name not in ("finished", "failed")]
        if unfinished:
            title = f"{'+'.join(group[0].experiments)}: {group[0].title.rpartition(' seed ')[0]}"
            names = ", ".join(
                f"seed {run.settings['seed']} is run {run.name}" for run in unfinished
            )
            yield f"{title}: not finished: {names}"


def _failed_checks(groups: Sequence[Group], root: Path, preset: Preset) -> dict[str, Any]:
    """Sanity checks of accuracy under attack: counts by outcome, and the failed ones."""
    counts: dict[str, dict[str, int]] = {}
    failed = []
    for run in (run for group in groups for run in group):
        file = under_attack.attacks_file(run, root, preset)
        if not file.exists():
            continue
        for check in stored.read(file, {"checks": list})["checks"]:
            verdict = {True: "passed", False: "failed", None: "open"}[check["passed"]]
            row = counts.setdefault(check["claim"], {"passed": 0, "failed": 0, "open": 0})
            row[verdict] += 1
            if verdict == "failed":
                failed.append(f"{run.name} ({run.title}): {check['claim']}: {check['detail']}")
    if (more := len(failed) - _SHOWN) > 0:
        failed[_SHOWN:] = [f"and {more} more, in the runs' measurements"]
    return {"counts": counts, "failed": failed}


def _facts(groups: Sequence[Group], root: Path) -> dict[str, Any]:
    runs = [run for group in groups for run in group]
    results = {run.name: artifacts.read_result(run.folder(root)) for run in runs}
    finished = [result for result in results.values() if result]
    seconds = sum(map(_seconds, finished))
    devices = [result["device"] for result in finished]
    versions = [result["versions"] for result in finished]
    return {
        "device": sorted({f"{d['count']} x {d['kind']} ({d['platform']})" for d in devices}),
        "versions": sorted({", ".join(f"{k} {v}" for k, v in each.items()) for each in versions}),
        "finished": len(finished),
        "runs": len(runs),
        "seeds": sorted({run.settings["seed"] for run in runs}),
        "commit": sorted({result["commit"] for result in finished if result.get("commit")}),
        "time": str(datetime.timedelta(seconds=round(seconds))),
        "cost": sum(run.cost for run in runs if results[run.name]),
        "data": sorted({run.config.data.name for run in runs}),
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _seconds(result: Mapping[str, Any]) -> float:
    """A run's training time; for seeds trained together, its share of it."""
    return result["wall_seconds"] / result.get("ensemble", 1)


def _row(group: Group, root: Path) -> dict[str, Any]:
    """A row of the table of runs: one group, with a run for each seed."""
    results = [artifacts.read_result(run.folder(root)) for run in group]
    seconds = [_seconds(result) for result in results if result]
    return {
        "name": group[0].name,
        "title": group[0].title.rpartition(" seed ")[0],
        "experiments": " ".join(group[0].experiments),
        "runs": [(run.settings["seed"], run.name, sweep.state(run, root).name) for run in group],
        "seconds": f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
        "cost": f"{group[0].cost / 1e9:,.1f}",
    }


def summary(judgement: Judgement) -> str:
    """The deciding effect in a line, or why there is no verdict."""
    known = [r for r in judgement.deciding if not math.isnan(r.interval.mean)]
    if not known:
        return judgement.reason or "nothing to compare yet"
    # The effect that supports the claim least.
    worst = max(known, key=lambda result: result.p_supported)
    text = in_words(worst)
    return f"{text}; {judgement.reason}" if judgement.reason else text


def in_words(result: Result) -> str:
    """A result in one line."""
    mean = f"{number(result.interval.mean)} {result.unit}".strip()
    return f"{result.title}: {mean}, {interval_in_words(result)}"


def interval_in_words(result: Result) -> str:
    """The interval of a result and its number of seeds, or a note that there is none."""
    if result.interval.n < 2 or math.isnan(result.interval.mean):
        return f"no interval, n = {result.interval.n}"
    low, high = number(result.interval.low), number(result.interval.high)
    return f"[{low}, {high}], n = {result.interval.n}"


def number(value: float) -> str:
    r"""Formats a number with two decimals and a true minus sign; "n/a" for NaN.

    >>> number(-1.234) == "\N{MINUS SIGN}1.23"
    True
    """
    if math.isnan(value):
        return "n/a"
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _verdicts(judged: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The content of verdicts.json; numbers that aren't finite become null."""
    return [
        {
            "claim": one.claim.id,
            "data": one.data,
            "text": one.claim.text,
            "source": one.claim.source,
            "primary": one.claim.primary,
            "verdict": one.verdict,
            "reason": one.reason,
            "p": _finite(one.p),
            "rule": one.claim.rule,
            "gates": [gate._asdict() for gate in one.gates],
            "effects": [_finite(dataclasses.asdict(result)) for result in one.results],
        }
        for one in judged
    ]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rows(records: Records) -> list[dict[str, Any]]:
    """The lines of results.csv."""
    return [
        {
            "experiment": record.experiment,
            "claim": " ".join(claim.id for claim in claims.of(record.experiment)),
            "mode": record.mode,
            "size": _size(record.settings),
            "seed": record.seed,
            "metric": record.metric,
            "value": record.value,
            "run": record.run,
        }
        for record in records
    ]


def _size(settings: Mapping[str, Any]) -> str:
    """All settings but mode and seed that distinguish a number, as "key=value" joined by spaces."""
    shown = [("data", settings.get("data.name"))]
    shown += [(key.rpartition(".")[2], settings.get(key)) for key in _SIZES]
    shown += [(key, settings.get(key)) for key in _PLACES]
    if settings.get("model.smoothing_index"):
        shown.append(("smoothing_index", settings["model.smoothing_index"]))
    if settings.get("defense.epsilon"):
        shown.append(("defended", settings["defense.epsilon"]))
    if 0 < settings.get("share", 0) < 1:
        shown.append(("share", settings["share"]))
    return " ".join(f"{key}={value}" for key, value in shown if value is not None)


def _image(folder: Path, name: str) -> dict[str, Any]:
    """A figure as a data URI, and its width in CSS pixels, which keeps text at one size."""
    lines = name in figures.DRAWN
    # For pictures of filters and images, an SVG would contain the same pixels.
    suffix, kind = ("svg", "svg+xml") if lines else ("png", "png")
    content = base64.b64encode((folder / f"{name}.{suffix}").read_bytes()).decode()
    with Image.open(folder / f"{name}.png") as png:
        inches = png.width / png.info["dpi"][0]
    return {
        "name": name,
        "uri": f"data:image/{kind};base64,{content}",
        "width": round(110 * inches),
        "kind": "line" if lines else "image",
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("randmix.reproduce", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": number,
        "interval": interval_in_words,
        "summary": summary,
        "title_of": title_of,
    }
    return environment
