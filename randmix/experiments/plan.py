"""The runs of a sweep: in groups of seeds, with their costs, divided into shards."""

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from randmix import config as configs
from randmix.data import catalog
from randmix.errors import UserError
from randmix.experiments.records import RUNS, Record
from randmix.models import Model, counts
from randmix.training import runs as assembly


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep; its string is its title and its seed.

    Attributes:
        name: fingerprint of its config; also the name of its folder.
        config: the config, as it is asked for.
        resolved: the config with what its data and this machine decide, see ``runs.resolve``; None
            for a run that is only reported on, without its data.
        settings: the config keys that the sweep sets, flat, and the seed.
        title: what distinguishes it from the runs with other settings.
        experiments: ids of the experiments that use it, if the sweep has any.
        cost: multiply-adds of the forward passes in training.
        steps: number of training steps.
    """

    name: str
    config: configs.Config
    resolved: configs.Config | None
    settings: Mapping[str, Any]
    title: str
    experiments: tuple[str, ...]
    cost: float
    steps: int

    def folder(self, root: epath.PathLike) -> epath.Path:
        """The run's workdir."""
        return epath.Path(root) / RUNS / self.name

    def __str__(self) -> str:
        return f"{self.title}, seed {self.config.seed}"


Group = tuple[PlannedRun, ...]  # runs that differ only in their seed


def group(
    config: configs.Config,
    seeds: Iterable[int],
    settings: Mapping[str, Any],
    title: str,
    experiments: tuple[str, ...] = (),
    kept: Mapping[str, Record] | None = None,
) -> Group:
    """Plans one run for each seed, and finds mistakes in their config before anything is trained.

    Args:
        config: the runs' config, with any seed.
        seeds: their seeds.
        settings, title, experiments: see ``PlannedRun``.
        kept: None, or the records that a report is drawn from: then the data set need not be there.

    Raises:
        UserError: the config is invalid, or its data set isn't prepared.
    """
    runs = [_planned(config, seed, settings, title, experiments) for seed in seeds]
    try:
        cost, steps = _costs(config)
    except UserError:
        if kept is None:
            raise
        cost, steps = next((_known(kept[run.name]) for run in runs if run.name in kept), (0.0, 0))
        return tuple(dataclasses.replace(run, cost=cost, steps=steps) for run in runs)
    return tuple(dataclasses.replace(_resolved(run), cost=cost, steps=steps) for run in runs)


def _planned(
    config: configs.Config,
    seed: int,
    settings: Mapping[str, Any],
    title: str,
    experiments: tuple[str, ...],
) -> PlannedRun:
    """A run that is not yet resolved, without its cost."""
    own = config.copy_and_resolve_references()
    own.seed = seed
    configs.check(own)  # of the seeds, ``_costs`` sees none
    name = configs.fingerprint(own)
    return PlannedRun(name, own, None, {**settings, "seed": seed}, title, experiments, 0.0, 0)


def _resolved(run: PlannedRun) -> PlannedRun:
    """The run with its resolved config; filters from another run are named by their content."""
    resolved, _ = assembly.resolve(run.config)
    named = run.config.copy_and_resolve_references()
    if "filters" in named.model:
        named.model.filters = resolved.model.filters
    return dataclasses.replace(run, name=configs.fingerprint(named), resolved=resolved)


def _costs(config: configs.Config) -> tuple[float, int]:
    """Multiply-adds and steps."""
    parts = assembly.assemble(config)
    dataset, steps = parts.data.dataset, parts.loop.total_steps
    if not dataset.embedded:
        catalog.require_prepared(dataset.name, config.data.data_dir)
    images = steps * parts.step.batch_size
    return float(_multiply_adds(parts.step.model, dataset.image_shape) * images), steps


def _known(record: Record) -> tuple[float, int]:
    """As ``_costs``, from a run's record."""
    config, data, steps = configs.from_values(record.config), record.data, record.result["step"]
    if data is None:
        return 0.0, steps
    image_shape = tuple(data["image_shape"])
    model = assembly.build_model(config, data["num_classes"], image_shape=image_shape)
    images = steps * config.batch_size
    return float(_multiply_adds(model, image_shape) * images), steps


@functools.cache
def _multiply_adds(model: Model, image_shape: tuple[int, int, int]) -> int:
    return counts.forward(model, image_shape)


def parse_shard(text: str) -> tuple[int, int]:
    """Parses ``"3/8"`` into (3, 8): the third of eight jobs.

    Raises:
        UserError: the text is not i/n with 1 <= i <= n.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    i, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= i <= n:
        raise UserError(
            f"--shard: got {text!r}, allowed is i/n with i from 1 to n, for example --shard=3/8"
        )
    return i, n


def shard(groups: Iterable[Group], i: int, n: int) -> list[Group]:
    """The groups of job i (from 1) of n, assigned greedily: costliest first, to the job with least.

    The result depends only on the groups, so n jobs divide them without communicating.
    """
    loads, mine = [0.0] * n, []
    for group in sorted(groups, key=_place):
        taker = loads.index(min(loads))
        # Even with a tiny model a run costs something: its compilation.
        loads[taker] += len(group) * max(group[0].cost, 1.0)
        if taker == i - 1:
            mine.append(group)
    return mine


def _place(group: Group) -> tuple[float, str]:
    """A key to sort by, which doesn't change once filters from another run are known."""
    settings = sorted(group[0].settings.items(), key=lambda setting: setting[0])
    return -group[0].cost, repr(settings)


def table(
    groups: Sequence[Group],
    finished: Collection[str],
    minutes: Mapping[str, float] | None = None,
) -> str:
    """A text table with one line per run: name, cost, steps, experiments, description, state.

    Args:
        groups: the runs.
        finished: the names of those that are finished.
        minutes: those of each of the others, from ``calibration.minutes``, or None.
    """
    runs = [run for group in groups for run in group]
    wide = max([11, *(len("+".join(run.experiments)) for run in runs)])
    column = f"{'experiments':{wide}}  " if any(run.experiments for run in runs) else ""
    timed = "" if minutes is None else f"{'minutes':>9}  "
    lines = [f"{'run':8}  {'10^9 MAC':>12}  {'steps':>9}  {timed}{column}description"]
    for run in runs:
        used = f"{'+'.join(run.experiments):{wide}}  " if column else ""
        done = "  (finished)" if run.name in finished else ""
        time = "" if minutes is None else f"{minutes.get(run.name, 0.0):9,.2f}  "
        costs = f"{run.cost / 1e9:12,.4g}  {run.steps:9,}  {time}"
        lines.append(f"{run.name:8}  {costs}{used}{run}{done}")
    total = sum(run.cost for run in runs)
    left = sum(run.cost for run in runs if run.name not in finished)
    lines.append(
        f"{len(runs)} runs, {total / 1e12:.3g} x 10^12 multiply-adds (MAC) of forward passes "
        f"(images x epochs x the model's), {left / 1e12:.3g} x 10^12 of them remaining; "
        f"training takes about three times as many{', plus the attacks' if column else ''}"
    )
    if minutes is not None:
        lines.append(
            f"about {sum(minutes.values()):,.1f} minutes remaining on this machine, one run after "
            f"the other, without the time to save{' and to attack' if column else ''}"
        )
    return "\n".join(lines)
