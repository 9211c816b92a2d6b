"""Know before you pay: what the steps of a run need on a Cloud TPU slice, told by compiling them for it.

`libtpu` holds the TPU's compiler and needs no TPU to run it (`pip install "jax[tpu]"`). The programs are
those that training jits, lowered for the slice's devices from shapes alone: no data
set is read and no array is made. Settings of ``host.only_compile_for_tpu`` must precede JAX.
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
from ml_collections import ConfigDict

from randmix import artifacts, compiled, progress, runs, sharding
from randmix.errors import UserError
from randmix.tpu import Slice

FILE = "compile.json"
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# An instruction of the compiled text, not a use of its result; an asynchronous one counts at its start.
_COLLECTIVE = re.compile(rf"^.* = .* ({'|'.join(_COLLECTIVES)})(?:-start)?\(", re.MULTILINE)
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED: .*?\D([\d.]+)([KMG])\b")
_GIB = 2**30
_UNITS = {"K": 2**10, "M": 2**20, "G": _GIB}
_TRIALS = 3


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one step needs of every chip of a slice.

    Attributes:
        memory_bytes: state, data, results, temporaries and the program itself, what is donated counted once; of
            a step that doesn't fit what the compiler says it would take.
        limit_bytes: what a chip has for them.
        compile_seconds: on this machine.
        temporary_bytes: of memory_bytes, what only lives while the step runs. This and what follows is None if
            the step doesn't fit.
        flops: floating-point operations, as XLA counts them.
        bytes_accessed: what all instructions read and write, as XLA counts it: also what they find in the chip's
            own VMEM, and the copies there.
        collectives: how many exchanges between chips there are, by kind.
        seconds: flops or bytes_accessed at the chip's peak, whichever takes longer: about as fast as the step
            can be, and no promise.
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
        """Whether the compiler made a program of it."""
        return self.flops is not None


def report(config: ConfigDict, where: Slice, workdir: epath.PathLike) -> str:
    """Compiles a run's steps for a slice, writes what they need into the workdir and returns it as a table.

    The workdir gets ``compile.json`` and, for each step, ``compiled_NAME.txt``, XLA's text of the program.

    Args:
        config: of the run.
        where: the slice.
        workdir: the folder; it is made where it doesn't exist.

    Raises:
        UserError: a mistake in the config or the workdir, libtpu is missing, or a step needs more memory than a
            chip has (the file is written, and the message says which batch would fit).
    """
    mesh = make_mesh(where)
    needs, texts = measure(config, mesh, where)
    content = {
        "topology": str(where),
        "chips": mesh.size,
        "batch_size": config.batch_size,
        **{name: dataclasses.asdict(step) for name, step in needs.items()},
        **artifacts.provenance(list(mesh.devices.flat)),
        "libtpu": importlib.metadata.version("libtpu"),
    }
    if too_large := [name for name, step in needs.items() if not step.fits]:
        content["batch_size_that_fits"] = batch_size_that_fits(config, mesh, where, needs)
    texts = {f"compiled_{name}.txt": text for name, text in texts.items()}
    _write(epath.Path(workdir), {**texts, FILE: json.dumps(content, indent=2) + "\n"})
    if too_large:
        raise UserError(_does_not_fit(config, where, needs[too_large[0]], too_large[0], content))
    return table(needs, where, mesh.size)


def make_mesh(where: Slice) -> jax.sharding.Mesh:
    """The mesh that a run on this slice would have, of devices that are described and not there."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            '--compile_for needs libtpu, which isn\'t installed; run `pip install "jax[tpu]"`'
        )
    options = {"chips_per_host_bounds": (1, 1, 1)} if where.layout == "1x1" else {}
    if where.chip.name == "v4":
        options["chip_config_name"] = (
            "megacore"  # a chip's two cores as one device, as on Cloud TPU
        )
    topology = topologies.get_topology_desc(str(where), "tpu", **options)
    return sharding.make_mesh(topology.devices)


def measure(
    config: ConfigDict, mesh: jax.sharding.Mesh, where: Slice
) -> tuple[dict[str, Needs], dict[str, str]]:
    """Compiles each step of a run for the devices of a mesh.

    Returns:
        What each needs, and the compiled text of those that fit, by the names of ``compiled.lower_steps``.
    """
    sharding.check_batch_size(config.batch_size, mesh)
    needs, texts = {}, {}
    for name, lowered in compiled.lower_steps(config, runs.assemble(config), mesh).items():
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
    cost = program.cost_analysis()
    flops, moved, text = cost["flops"], cost["bytes accessed"], program.as_text()
    needs = Needs(
        memory_bytes=compiled.memory_bytes(program),
        limit_bytes=chip.memory_bytes,
        compile_seconds=round(seconds, 1),
        temporary_bytes=program.memory_analysis().temp_size_in_bytes,
        flops=flops,
        bytes_accessed=moved,
        collectives=collectives(text),
        seconds=max(flops / chip.flops_per_second, moved / chip.bytes_per_second),
    )
    return needs, text


def collectives(compiled_text: str) -> dict[str, int]:
    """How often each kind of exchange between devices stands in a compiled program.

    >>> collectives("%a = f32[8]{0} all-reduce(%x), to_apply=%add\\n%b = f32[8]{0} copy(%all-reduce.1)")
    {'all-reduce': 1}
    """
    return dict(collections.Counter(_COLLECTIVE.findall(compiled_text)))


def batch_size_that_fits(
    config: ConfigDict, mesh: jax.sharding.Mesh, where: Slice, needs: dict[str, Needs]
) -> int | None:
    """A global batch, near the largest, with which the steps that are too large fit; None if none was found.

    What a step needs grows at most in proportion to the batch, so its excess says by how much to shrink it. The
    answer was compiled.
    """
    batch_size = config.batch_size
    for _ in range(_TRIALS):
        excess = max(
            step.memory_bytes / step.limit_bytes for step in needs.values() if not step.fits
        )
        batch_size = int(batch_size / (1.05 * excess)) // mesh.size * mesh.size
        if not batch_size:
            return None
        smaller = config.copy_and_resolve_references()
        smaller.batch_size = batch_size
        lowered = compiled.lower_steps(smaller, runs.assemble(smaller), mesh)
        needs = {
            name: _compile(lowered[name], where)[0] for name, step in needs.items() if not step.fits
        }
        if all(step.fits for step in needs.values()):
            return batch_size
    return None


def table(needs: dict[str, Needs], where: Slice, chips: int) -> str:
    """What every step needs of a chip, a column each."""
    chip = where.chip
    kinds = dict.fromkeys(kind for step in needs.values() for kind in step.collectives)
    rows = {
        "memory, GiB": lambda step: f"{step.memory_bytes / _GIB:.2f}",
        "  of them temporary": lambda step: f"{step.temporary_bytes / _GIB:.2f}",
        "  there are": lambda step: f"{step.limit_bytes / _GIB:.2f}",
        "bytes moved, GB": lambda step: f"{step.bytes_accessed / 1e9:.3f}",
        "GFLOP": lambda step: f"{step.flops / 1e9:,.1f}",
        **{kind: lambda step, kind=kind: step.collectives.get(kind, 0) for kind in kinds},
        "ms at the chip's peaks": lambda step: f"{1e3 * step.seconds:.2f}",
        "compiled in, s": lambda step: step.compile_seconds,
    }
    steps = [
        {"a chip, a step": row} | {name: value(step) for name, step in needs.items()}
        for row, value in rows.items()
    ]
    return (
        f"{progress.table(steps)}\n{where}: {chips} chips; peaks of a chip: "
        f"{chip.flops_per_second / 1e12:.0f} TFLOP/s in bfloat16, {chip.bytes_per_second / 1e9:.0f} GB/s ({chip.source})"
    )


def _does_not_fit(
    config: ConfigDict, where: Slice, step: Needs, name: str, content: dict[str, Any]
) -> str:
    smaller = content["batch_size_that_fits"]
    advice = (
        f"{smaller} fits" if smaller else "no smaller batch was found that fits; take larger chips"
    )
    return (
        f"config.batch_size: got {config.batch_size}, whose step {name!r} needs {step.memory_bytes / _GIB:.2f} GiB of "
        f"each of the {content['chips']} chips of {where}, allowed {step.limit_bytes / _GIB:.2f}; {advice}"
    )


def _write(workdir: epath.Path, files: dict[str, str]) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            artifacts.write_atomically(workdir / name, text)
    except OSError as error:
        raise UserError(
            f"{workdir}: can't be written ({error.strerror}); give a --workdir that you may write to"
        ) from error
