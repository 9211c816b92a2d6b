"""The report: index.html, results.csv, verdicts.json and figures/, written all at once."""

import base64
import contextlib
import dataclasses
import datetime
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from PIL import Image

from randmix.analysis import pages, plots
from randmix.errors import UserError, writing
from randmix.experiments import measured, sweep
from randmix.experiments.plan import Group
from randmix.experiments.records import Record
from randmix.reproduce import (
    claims,
    cost,
    counting,
    departures,
    figures,
    forest,
    listings,
    measurements,
    neighbours,
    pictures,
    sentences,
    tables,
    under_attack,
    verdicts,
)
from randmix.reproduce.claims import CLAIMS
from randmix.reproduce.experiments import EXPERIMENTS
from randmix.reproduce.numbers import collect, of_banks, of_smoothing
from randmix.reproduce.order import pending
from randmix.reproduce.presets import Preset, Settings
from randmix.reproduce.titles import known_name, title_of
from randmix.reproduce.verdicts import SUPPORTED, Judgement
from randmix.runtime import durable, locks

_OVERVIEW = "verdicts"  # name of the first figure; further ones have a number
_TEMPLATE = "report.html.j2"
_FILTERS = {
    "two_decimals": sentences.two_decimals,
    "claimed": sentences.claimed,
    "interval": sentences.interval_in_words,
    "sentence": sentences.sentence,
    "title_of": title_of,
}
_SHOWN = 10  # most failed checks listed


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
    found: Mapping[str, Record],
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
        found: the records of the finished ones, by name; all that is known of them.
        overrides: keys that the command line changed in the preset.
        command: the command line, shown in the report.

    Returns:
        The report; None if another process is writing it.

    Raises:
        UserError: the folder can't be written to.
    """
    place = root / "report"
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(place, "make room, or give a --workdir that you may write to"))
        if not stack.enter_context(locks.try_lock(root / "report.lock")):
            return None
        folder = stack.enter_context(_replaced(place))
        numbers = collect(groups, found, preset)
        problems = [*_problems(groups, found, root, preset)]
        counted: list[dict[str, Any]] = []
        if "E1" in experiments:
            rows, bare = measurements.random_banks(root, preset)
            numbers += of_banks(rows, f"pictures/{bare.name}.json")
        if "E8" in experiments and (plain := pictures.unsmoothed(groups, found)):
            try:
                rows, _ = measurements.smoothed_filters(found[plain.name], root, preset)
                numbers += of_smoothing(rows, plain, found[plain.name])
            except UserError as error:  # the filters, which lie beside the records, aren't here
                problems.append(f"E8: {error}")
        if "E11" in experiments:
            changed = sorted(map(str, overrides.items()))
            name = f"counts-{measured.key(preset.name, _models_key(preset), changed)}"
            file = epath.Path(root) / "measurements" / f"{name}.json"
            try:
                known = {one.data["name"]: one.data for one in found.values() if one.data}
                counted = measured.kept(file, lambda: counting.rows(preset, overrides, known))
            except UserError as error:  # the data, which decide the shapes, aren't here
                problems.append(f"E11: {error}")
            numbers += counting.numbers(counted, f"measurements/{name}.json")
        judged = verdicts.judge(numbers, pending(groups, found, experiments, preset))
        drawn, missing = pictures.draw(
            experiments, numbers, groups, found, root, preset, epath.Path(folder) / "figures"
        )
        problems += [f"figure {name}: {reason}" for name, reason in missing.items()]
        overviews = []
        for i, part in enumerate(forest.pages(judged)):
            name, overview = f"{_OVERVIEW}-{i + 1}" if i else _OVERVIEW, forest.draw(part)
            plots.save(overview.figure, folder / "figures" / name, overview.rows)
            overviews.append({**_image(folder / "figures", name), "judged": part})
        results = listings.of_numbers(numbers)
        (folder / "results.csv").write_text(results)
        (folder / "verdicts.json").write_text(listings.of_verdicts(judged))
        page = {
            "preset": preset,
            "sections": [
                {
                    "experiment": EXPERIMENTS[id],
                    # The notes are about ResNets with nothing between their halves.
                    "note": ""
                    if overrides.get("model.between", "none") != "none"
                    else EXPERIMENTS[id].note,
                    "claims": claims.of(id),
                    "figures": [_image(folder / "figures", name) for name in drawn[id]],
                    "tables": tables.build(id, numbers, counted),
                    "data": {*map(known_name, numbers.where(id).values("data.name"))},
                }
                for id in experiments
            ],
            "claims": CLAIMS.values(),
            "judged": judged,
            "overviews": overviews,
            "banner": _banner(groups, found, judged),
            "summary": _summary(judged),
            "method": verdicts.METHOD,
            "hashes": {
                "claims": claims.fingerprint(),
                "numbers": hashlib.sha256(results.encode()).hexdigest()[:8],
            },
            "departures": departures.table(groups, found, preset),
            "overrides": overrides,
            "command": command,
            "problems": problems,
            "checks": _failed_checks(groups, found, preset),
            "facts": _facts(groups, found),
            "runs": [_row(group, found, root) for group in groups],
            "neighbours": neighbours.NEIGHBOURS,
        }
        (folder / "index.html").write_text(
            pages.template("randmix.reproduce", _TEMPLATE, _FILTERS).render(page)
        )
    return Report(place, judged, problems)


@contextlib.contextmanager
def _replaced(place: Path) -> Iterator[Path]:
    """Yields a new folder, which replaces ``place`` unless an exception interrupts its writing."""
    old = place.with_name(f"{place.name}.new-old")
    if old.exists() and not place.exists():  # a process was killed between the two renames
        old.rename(place)
    for left in place.parent.glob(f"{place.name}.new-*"):  # left by a process that was killed
        shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{place.name}.new-", dir=place.parent))
    folder.chmod(0o755)
    yield folder
    durable.flush_tree(folder)  # first, as a full disk may say so only here
    if place.exists():
        place.rename(old)
    durable.move(folder, place)
    shutil.rmtree(old, ignore_errors=True)


def _models_key(preset: Preset) -> list[str]:
    """The models that E11 counts, as strings: other models are stored in another file."""
    return [repr(sorted(run.items())) for id in ("E2", "E5") for run in preset.runs.get(id, ())]


def _problems(
    groups: Sequence[Group], found: Mapping[str, Record], root: Path, preset: Preset
) -> Iterator[str]:
    for group in groups:
        unfinished = []
        for run in group:
            if run.name in found:
                if not measurements.complete(run, found[run.name], preset):
                    failures = measurements.failures(run, root)
                    for name, reason in failures.items():
                        yield f"run {run.name} ({run}): {name} failed: {reason}"
                    if not failures:
                        yield f"run {run.name} ({run}): not measured"
            elif (state := sweep.state(run, root)).name == "failed":
                what = f"{'+'.join(run.experiments)}: {run}"
                yield f"run {run.name} ({what}) failed: {state.reason}"
            else:
                unfinished.append(run)
        if unfinished:
            title = f"{'+'.join(group[0].experiments)}: {group[0].title}"
            names = ", ".join(
                f"seed {run.settings['seed']} is run {run.name}" for run in unfinished
            )
            yield f"{title}: not finished: {names}"


def _banner(
    groups: Sequence[Group], found: Mapping[str, Record], judged: Sequence[Judgement]
) -> dict[str, Any]:
    """What a reader must know before any verdict: unfinished runs, and what can't be assessed."""
    names = [run.name for group in groups for run in group]
    failed: dict[str, list[str]] = {}
    for one in judged:
        # A claim before all of its runs are finished says that already.
        if one.verdict != verdicts.NOT_DECIDED:
            name = f"{one.claim.id} ({title_of(one.data)})" if one.data else one.claim.id
            for reason in sentences.obstacles(one):
                failed.setdefault(reason, []).append(name)
    return {
        "unfinished": len([name for name in names if name not in found]),
        "runs": len(names),
        "failed": failed,
        "claims": len({name for names in failed.values() for name in names}),
    }


def _summary(judged: Sequence[Judgement]) -> list[str]:
    """How the primary claims of each data set fared, in a sentence each."""
    lines = []
    primary = [one for one in judged if one.claim.primary]
    for data in dict.fromkeys(one.data for one in primary):
        ids: dict[str, list[str]] = {}
        own = [one for one in primary if one.data == data]
        for one in own:
            ids.setdefault(one.verdict, []).append(one.claim.id)
        words = [f"{len(of)} {verdict} ({', '.join(of)})" for verdict, of in ids.items()]
        none = (
            "" if any(SUPPORTED in verdict for verdict in ids) else ", of which none is supported"
        )
        plural = "s" if len(own) > 1 else ""
        where = f" on {title_of(data)}" if data else ""
        lines.append(f"{len(own)} primary claim{plural}{where}{none}: {', '.join(words)}.")
    return lines


def _failed_checks(
    groups: Sequence[Group], found: Mapping[str, Record], preset: Preset
) -> dict[str, Any]:
    """Sanity checks of accuracy under attack: counts by outcome, and the failed ones."""
    counts: dict[str, dict[str, int]] = {}
    failed = []
    for run in (run for group in groups for run in group if run.name in found):
        attacks = found[run.name].measurements.get(under_attack.attacks_name(preset))
        for check in attacks["checks"] if attacks else ():
            verdict = {True: "passed", False: "failed", None: "open"}[check["passed"]]
            row = counts.setdefault(check["claim"], {"passed": 0, "failed": 0, "open": 0})
            row[verdict] += 1
            if verdict == "failed":
                failed.append(f"{run.name} ({run}): {check['claim']}: {check['detail']}")
    if (more := len(failed) - _SHOWN) > 0:
        failed[_SHOWN:] = [f"and {more} more, in the runs' measurements"]
    return {"counts": counts, "failed": failed}


def _facts(groups: Sequence[Group], found: Mapping[str, Record]) -> dict[str, Any]:
    runs = [run for group in groups for run in group]
    finished = [found[run.name].result for run in runs if run.name in found]
    versions = [result["versions"] for result in finished]
    return {
        "machines": cost.machines(found[run.name] for run in runs if run.name in found),
        "versions": sorted({", ".join(f"{k} {v}" for k, v in each.items()) for each in versions}),
        "finished": len(finished),
        "runs": len(runs),
        "seeds": sorted({run.settings["seed"] for run in runs}),
        "commit": sorted({result["commit"] for result in finished if result.get("commit")}),
        "cost": sum(run.cost for run in runs if run.name in found),
        "data": sorted({run.config.data.name for run in runs}),
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _row(group: Group, found: Mapping[str, Record], root: Path) -> dict[str, Any]:
    """A row of the table of runs: one group, with a run for each seed."""
    seconds = [found[run.name].seconds for run in group if run.name in found]
    runs = []
    for run in group:
        state = "finished" if run.name in found else sweep.state(run, root).name
        runs.append((run.config.seed, run.name, state, run.folder(root).exists()))
    return {
        "title": group[0].title,
        "experiments": " ".join(group[0].experiments),
        "runs": runs,
        "seconds": f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
        "cost": f"{group[0].cost / 1e9:,.1f}",
    }


def _image(folder: Path, name: str) -> dict[str, Any]:
    """A figure as a data URI, and its width in CSS pixels, which keeps text at one size."""
    lines = name in figures.DRAWN or name.startswith(_OVERVIEW)
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
