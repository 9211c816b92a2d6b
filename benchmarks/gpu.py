"""Everything that this project claims about a GPU, measured by one command.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --minutes=30

Needs a GPU that JAX and PyTorch both see. Parts run one after the other, each as the program of its
name in this folder, within its share of the minutes:

    equality      steps equal the CPU's; if they don't, nothing is measured
    step          training steps in bfloat16, then float32, against PyTorch, eager and compiled
    depthwise     depthwise convolutions by cuDNN, shift-sum, Pallas and PyTorch
    ensemble      eight seeds together
    augment       augmentation as a share of a step
    input         the stream of photographs that feeds it
    resume        a run stopped and resumed, bit by bit

The cases of a part are in order of importance; those that its time doesn't allow are named. Each
result is a JSON file in --out as soon as it is there, and `summary.json` holds the last table: what
the targets are, and if they are met. --small shows on any machine that all parts run.

Exit status: 0 if nothing failed, 1 if something did or the steps aren't equal, 2 without a GPU or
PyTorch. Missed targets and cases without time don't count.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import targets
import timing
from absl import app, flags

flags.DEFINE_string("out", "results/benchmarks/gpu", "Folder for the results.")
flags.DEFINE_float("minutes", 10.0, "Time for all parts.", lower_bound=0.1)
flags.DEFINE_bool("small", False, "Run all parts on any machine, at sizes that say nothing.")

STEPS = ("convmixer_256_8", "convmixer_512_8", "resnet_2", "convmixer_128_4")
TRANSFORMERS = ("vit_tiny", "mixer_s16", "poolformer_s12")  # of timm
_SEES_GPU = {
    "JAX": "import jax; raise SystemExit(jax.default_backend() != 'gpu')",
    "PyTorch": "import torch; raise SystemExit(not torch.cuda.is_available())",
}
# In programs of their own, so that neither library's memory or crash is the other's.
JAX_METHODS, TORCH_METHODS = "grouped,shift_sum,pallas", "torch,torch.compile"


class Part(NamedTuple):
    """A part: its share of the time, and its commands by the name of their results."""

    share: float
    commands: Mapping[str, str]


def main(argv):
    options = flags.FLAGS
    # Each JAX process would take most of a GPU's memory at its start, and PyTorch needs some too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `run` ends its program, too
    if not options.small:
        require_gpu()
    out, failed = Path(options.out), False
    for part in (*parts().values(), *small_parts().values()):
        for result in part.commands:  # an earlier one would pass for this one's
            (out / f"{result}.json").unlink(missing_ok=True)
    for name, part in (small_parts() if options.small else parts()).items():
        seconds = part.share * options.minutes * 60
        print(f"== {name}, at most {seconds:.0f} s, from {time.strftime('%H:%M:%S')}", flush=True)
        until, late = time.monotonic() + seconds, []
        for result, command in part.commands.items():
            file = out / f"{result}.json"
            status = run(f"{command} --out={file}", until - time.monotonic())
            if status is None:
                late.append(result)
            elif status:
                failed = True
                print(f"gpu: {result} failed, status {status}", file=sys.stderr, flush=True)
        if late:
            print(f"gpu: {name} was out of time for {', '.join(late)}", file=sys.stderr, flush=True)
        if name == "equality" and (failed or late):
            sys.exit("gpu: steps were not shown to equal the CPU's, so nothing was measured")
    timing.report(targets.summary(out), str(out / "summary.json"))
    sys.exit(failed)


def require_gpu() -> None:
    """Exits with status 2 unless JAX and PyTorch both see a GPU."""
    for library, check in _SEES_GPU.items():
        # In a process of its own, since a process that looks takes some of the GPU's memory.
        if subprocess.run([sys.executable, "-c", check], stderr=subprocess.DEVNULL).returncode:
            print(f"gpu: {library} is missing or sees no GPU; --small runs anyway", file=sys.stderr)
            sys.exit(2)


def parts() -> dict[str, Part]:
    """All parts, in the order in which they run."""
    cases = (STEPS[:2], STEPS[2:], TRANSFORMERS)
    return {
        "equality": Part(0.1, {"equality": "equality.py"}),
        "step": Part(
            0.4,
            {
                f"step_{precision}_{case}": f"step.py --cases={case} --precision={precision} "
                "--compile --rounds=5 --calls=5"
                for some in cases
                for precision in ("bfloat16", "float32")
                for case in some
            },
        ),
        "depthwise": Part(0.12, {"depthwise": f"depthwise.py --methods={JAX_METHODS}"}),
        "depthwise in PyTorch": Part(
            0.08, {"depthwise_torch": f"depthwise.py --methods={TORCH_METHODS}"}
        ),
        "ensemble": Part(
            0.1, {"ensemble": "ensemble.py --seeds=8 --cases=cifar_256_8,cifar_64_4 --calls=5"}
        ),
        "augment": Part(
            0.08, {"augment": "augment.py --cifar_batch_size=512 --imagenet_batch_size=128"}
        ),
        "input": Part(0.06, {"input": "input.py --rounds=3 --epochs=0"}),
        "resume": Part(0.06, {"resume": "resume.py"}),
    }


def small_parts() -> dict[str, Part]:
    """The same, as small as they can be."""
    quick = "--rounds=1 --calls=1"
    steps = {
        "step_bfloat16_tiny": f"step.py --cases=tiny --precision=bfloat16 {quick}",
        "step_float32_tiny": f"step.py --cases=tiny --precision=float32 --compile {quick}",
    }
    depthwise = f"depthwise.py --shapes=5x3x4 --batch_size=2 {quick}"
    commands = {
        "equality": {"equality": "equality.py"},
        "step": steps,
        "depthwise": {"depthwise": f"{depthwise} --methods={JAX_METHODS}"},
        "depthwise in PyTorch": {"depthwise_torch": f"{depthwise} --methods={TORCH_METHODS}"},
        "ensemble": {"ensemble": f"ensemble.py --seeds=2 --cases=digits_64_4 {quick}"},
        "augment": {"augment": "augment.py --cases=cifar --cifar_batch_size=2 --rounds=1"},
        "input": {"input": "input.py --images=64 --rounds=1 --epochs=0"},
        "resume": {"resume": "resume.py --steps=60 --checkpoint_every=5"},
    }
    return {name: Part(1.0, given) for name, given in commands.items()}


def run(command: str, seconds: float) -> int | None:
    """Runs a program of this folder; returns its exit status, or None if it was out of time."""
    script, *words = command.split(" ")
    if seconds < 1:
        return None
    print("$", command, flush=True)
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(script)), *words], start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.wait()


if __name__ == "__main__":
    app.run(main)
