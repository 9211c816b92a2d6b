"""Memory, time and communication of a run's steps on a Cloud TPU slice, by compiling ahead of time.

`libtpu` contains the TPU compiler and runs without a TPU (`pip install "jax[tpu]"`). The programs
are the ones that training jits, lowered for the slice's devices from shapes alone: no data set is
read and no array is created. Call ``host.only_compile_for_tpu`` before importing JAX.
"""

import collections
import dataclasses
import importlib.metadata
import importlib.util
import json
import re
import time
from typing import Any

import jax
from etils import epath
from jax.experimental import topologies

from randmix.errors import UserError, writing
from randmix.runtime import durable, progress, sharding
from randmix.training import compiled, runs
from randmix.training.tpu import Slice
from randmix.workdir import artifacts

FILE = "compile.json"
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Matches an instruction, not a use of its result; an asynchronous one counts where it starts.
_COLLECTIVE = re.compile(rf"^.* = .* ({'|'.join(_COLLECTIVES)})(?:-start)?\(", re.MULTILINE)
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED: .*?\D([\d.]+)([KMG])\b")
_GIB = 2**30
_UNITS = {"K": 2**10, "M": 2**20, "G": _GIB}
_TRIALS = 3


@dataclasses.dataclass(frozen=True)
class Needs:
    """Requirements of one step on each chip of a slice.

    Attributes:
        memory_bytes: state, data, results, temporaries and the program itself; donated buffers
            count once. For a step that doesn't fit, the compiler's estimate.
        limit_bytes: memory available to a program on one chip.
        compile_seconds: compile time on this machine.
        temporary_bytes: the part of memory_bytes that is only live while the step runs. This
            and the following attributes are None if the step doesn't fit.
        flops: floating-point operations, as counted by XLA, which counts the body of a loop once.
        bytes_accessed: bytes that all instructions read and write, as counted by XLA; this
            includes accesses to the chip's own VMEM and copies into it.
        collectives: number of exchanges between chips, by kind.
        seconds: the time for flops or bytes_accessed at the chip's peak, whichever is longer:
            roughly a lower bound on the step time, not a prediction.
    """

    memory_bytes: int
    limit_bytes: int
    compile_seconds: float
    temporary_bytes: int | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    collectives: dict[str, int] | None = None
    seconds: float | None = None

    @property
    def fits(self) -> bool:
        """Whether the step compiled within the chip's memory."""
        return self.flops is not None


def report(parts: runs.Parts, where: Slice, workdir: epath.PathLike) -> str:
    """Compiles a run's steps for a slice, writes their requirements and returns them as a table.

    Writes ``compile.json`` to the workdir and, for each step, ``compiled_NAME.txt``, XLA's text of
    the program.

    Args:
        parts: the run's parts.
        where: the slice to compile for.
        workdir: the folder to write to; created if it doesn't exist.

    Raises:
        UserError: a mistake in the workdir, libtpu is missing, or a step needs more
            memory than a chip has (``compile.json`` is written, and the message says which batch
            size would fit).
    """
    mesh = make_mesh(where)
    needs, texts = measure(parts, mesh, where)
    content = {
        "topology": str(where),
        "chips": mesh.size,
        "batch_size": parts.step.batch_size,
        **{name: dataclasses.asdict(step) for name, step in needs.items()},
        **artifacts.provenance(list(mesh.devices.flat)),
        "libtpu": importlib.metadata.version("libtpu"),
    }
    if too_large := [name for name, step in needs.items() if not step.fits]:
        content["batch_size_that_fits"] = batch_size_that_fits(parts, mesh, where, needs)
    texts = {f"compiled_{name}.txt": text for name, text in texts.items()}
    _write(epath.Path(workdir), {**texts, FILE: json.dumps(content, indent=2) + "\n"})
    if too_large:
        raise UserError(
            _does_not_fit(parts.step.batch_size, where, needs[too_large[0]], too_large[0], content)
        )
    return table(needs, where, mesh.size)


def make_mesh(where: Slice) -> jax.sharding.Mesh:
    """Returns the mesh of a run on this slice; its devices are descriptions, not real ones.

    Raises:
        UserError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            '--compile_for needs libtpu, which isn\'t installed; run `pip install "jax[tpu]"`'
        )
    options: dict[str, Any] = {}
    if where.layout == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    if where.chip.name == "v4":
        # One device for a chip's two cores, as on Cloud TPU.
        options["chip_config_name"] = "megacore"
    topology = topologies.get_topology_desc(str(where), "tpu", **options)
    return sharding.make_mesh(topology.devices)


def measure(
    parts: runs.Parts, mesh: jax.sharding.Mesh, where: Slice
) -> tuple[dict[str, Needs], dict[str, str]]:
    """Compiles each step of a run for the devices of a mesh.

    Returns:
        The requirements of every step, and the compiled text of those that fit, both keyed by the
        names of ``compiled.lower_steps``.
    """
    sharding.check_batch_size(parts.step.batch_size, mesh, parts.step.accumulate)
    needs, texts = {}, {}
    for name, lowered in compiled.lower_steps(parts, mesh).items():
        needs[name], text = _compile(lowered, where)
        if text is not None:
            texts[name] = text
    return needs, texts


def _compile(lowered: jax.stages.Lowered, where: Slice) -> tuple[Needs, str | None]:
    began = time.monotonic()
    chip = where.chip
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not (needed := _OUT_OF_MEMORY.search(str(error))):
            raise
        memory = round(float(needed[1]) * _UNITS[needed[2]])
        return Needs(memory, chip.memory_bytes, round(time.monotonic() - began, 1)), None
    seconds = time.monotonic() - began
    cost, text = program.cost_analysis(), program.as_text()
    memory = program.memory_analysis()
    assert cost is not None
    assert text is not None
    assert memory is not None
    flops, moved = cost["flops"], cost["bytes accessed"]
    needs = Needs(
        memory_bytes=compiled.memory_bytes(program),
        limit_bytes=chip.memory_bytes,
        compile_seconds=round(seconds, 1),
        temporary_bytes=memory.temp_size_in_bytes,
        flops=flops,
        bytes_accessed=moved,
        collectives=collectives(text),
        seconds=max(flops / chip.flops_per_second, moved / chip.bytes_per_second),
    )
    return needs, text


def collectives(compiled_text: str) -> dict[str, int]:
    r"""Counts each kind of exchange between devices in the text of a compiled program.

    >>> collectives("%a = f32[] all-reduce(%x), to_apply=%add\n%b = f32[] copy(%all-reduce.1)")
    {'all-reduce': 1}
    """
    return dict(collections.Counter(_COLLECTIVE.findall(compiled_text)))


def batch_size_that_fits(
    parts: runs.Parts, mesh: jax.sharding.Mesh, where: Slice, needs: dict[str, Needs]
) -> int | None:
    """Returns a global batch size, close to the largest possible, for which every step fits.

    The memory of a step grows at most in proportion to the batch, so its excess says how far to
    shrink it. The result has been compiled; None if no batch size was found.
    """
    batch_size, multiple = parts.step.batch_size, mesh.size * parts.step.accumulate
    for _ in range(_TRIALS):
        excess = max(
            step.memory_bytes / step.limit_bytes for step in needs.values() if not step.fits
        )
        batch_size = int(batch_size / (1.05 * excess)) // multiple * multiple
        if not batch_size:
            return None
        step = dataclasses.replace(parts.step, batch_size=batch_size)
        lowered = compiled.lower_steps(dataclasses.replace(parts, step=step), mesh)
        needs = {
            name: _compile(lowered[name], where)[0] for name, step in needs.items() if not step.fits
        }
        if all(step.fits for step in needs.values()):
            return batch_size
    return None


def table(needs: dict[str, Needs], where: Slice, chips: int) -> str:
    """Returns the requirements of every step on one chip as a table, one column per step."""
    chip = where.chip
    kinds = dict.fromkeys(kind for step in needs.values() for kind in step.collectives or ())
    rows = {
        "memory, GiB": lambda step: f"{step.memory_bytes / _GIB:.2f}",
        "  of which temporary": lambda step: f"{step.temporary_bytes / _GIB:.2f}",
        "  available": lambda step: f"{step.limit_bytes / _GIB:.2f}",
        "bytes moved, GB": lambda step: f"{step.bytes_accessed / 1e9:.3f}",
        "GFLOP": lambda step: f"{step.flops / 1e9:,.1f}",
        **{kind: lambda step, kind=kind: step.collectives.get(kind, 0) for kind in kinds},
        "ms at the chip's peaks": lambda step: f"{1e3 * step.seconds:.2f}",
        "compile time, s": lambda step: step.compile_seconds,
    }
    steps = [
        {"per chip and step": row} | {name: value(step) for name, step in needs.items()}
        for row, value in rows.items()
    ]
    return (
        f"{progress.table(steps)}\n{where}: {chips} chips; peaks of a chip: "
        f"{chip.flops_per_second / 1e12:.0f} TFLOP/s in bfloat16, "
        f"{chip.bytes_per_second / 1e9:.0f} GB/s ({chip.source})"
    )


def _does_not_fit(
    batch_size: int, where: Slice, step: Needs, name: str, content: dict[str, Any]
) -> str:
    smaller = content["batch_size_that_fits"]
    advice = (
        f"{smaller} fits" if smaller else "no smaller batch was found that fits; use larger chips"
    )
    return (
        f"config.batch_size: got {batch_size}, whose step {name!r} needs "
        f"{step.memory_bytes / _GIB:.2f} GiB of each of the {content['chips']} chips of {where}, "
        f"allowed {step.limit_bytes / _GIB:.2f}; {advice}"
    )


def _write(workdir: epath.Path, files: dict[str, str]) -> None:
    with writing(workdir, "give a --workdir that you may write to"):
        workdir.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            durable.write(workdir / name, text)
