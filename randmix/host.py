"""Settings of the process that must precede JAX, worth a factor of 1.4 to 2 where a CPU does the computing.

XLA:CPU takes its temporary buffers from malloc and gives them back at every step. glibc by default returns
such large blocks to the kernel, which then hands out zeroed pages again, one fault for every 4 KiB: 152,000
faults a step for a ConvMixer-128/4 at 32 x 32, batch 32. Told to keep them, the process is faster and stays
as large as it once was. Setting it once JAX has started is too late: measured, it then does nothing.
"""

import ctypes
import glob
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

# From glibc's malloc.h: one arena for all threads, no block of its own mapping, no trimming of the heap.
_MALLOPT = {-8: 1, -4: 0, -1: 2**31 - 1}
_VECTOR_WIDTH = "--xla_cpu_prefer_vector_width"
# libtpu asks the machine what it is, and takes a lock file. These answer in the machine's place and let several
# processes compile at once. Which type is named doesn't matter: the topology that is asked for decides.
_COMPILE_ONLY = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_DETERMINISTIC = "--xla_gpu_deterministic_ops"
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_GOOGLE = "0x1ae0"  # the PCI vendor by which JAX, too, knows a TPU
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


def tune() -> str:
    """Makes malloc keep its memory and XLA prefer 512-bit vectors, if JAX hasn't started and will use a CPU.

    Returns:
        What was done, or why nothing was, as a phrase for the log.
    """
    if "jax" in sys.modules:
        return "left as they are: JAX is imported already"
    if not _will_use_cpu():
        return "left as they are: not a CPU run"
    if platform.libc_ver()[0] != "glibc":
        return "left as they are: the C library isn't glibc"
    libc = ctypes.CDLL(None)
    if not all(libc.mallopt(option, value) for option, value in _MALLOPT.items()):
        return "left as they are: mallopt refused"
    flags = os.environ.get("XLA_FLAGS", "")
    if _VECTOR_WIDTH not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_VECTOR_WIDTH}=512".strip()
    return "malloc keeps its memory, 512-bit vectors preferred"


def make_deterministic() -> None:
    """Has XLA use the same operations in the same order every time, also on a GPU; JAX mustn't have started.

    There some sums are by default made by atomic additions, and the algorithm of a convolution is the one that was
    quickest when the process started. CPUs and TPUs are deterministic as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC}=true".strip()


def keep_compiled(folder: str | None, *, default: str) -> str | None:
    """Has JAX keep compiled programs in a folder, for the next process to read; JAX mustn't have started.

    Args:
        folder: where, a path or gs://, or "off". None: ``default`` for a GPU or TPU, and nowhere for a CPU, whose
            programs another machine may be unable to run.
        default: used where an accelerator is.

    Returns:
        The folder that was chosen here. None: nothing is kept, or where JAX_COMPILATION_CACHE_DIR says.
    """
    if folder == "off":
        os.environ.pop(_CACHE, None)
        return None
    if folder is None and (_will_use_cpu() or _CACHE in os.environ):
        return None
    os.environ[_CACHE] = folder or default
    return os.environ[_CACHE]


def leave_libtpu_alone() -> None:
    """Has JAX not ask an installed libtpu for TPUs where there are none: it complains in half a page.

    Does nothing where JAX_PLATFORMS is set, where anything speaks for an accelerator (a device file, a PCI device of
    Google's, a variable TPU_..., a plugin for another one).
    """
    if os.environ.get("JAX_PLATFORMS") or not importlib.util.find_spec("libtpu"):
        return
    plugins = importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(
        group="jax_plugins"
    )
    announced = any(name.startswith("TPU_") for name in os.environ)
    if not (plugins or announced or accelerators() or _GOOGLE in _pci_vendors()):
        os.environ["JAX_PLATFORMS"] = "cpu"
        if (
            "jax" in sys.modules
        ):  # it reads the variable when it's imported, and looks for devices later
            sys.modules["jax"].config.update("jax_platforms", "cpu")


def _pci_vendors() -> set[str]:
    return {Path(file).read_text().strip() for file in glob.glob("/sys/bus/pci/devices/*/vendor")}


def only_compile_for_tpu() -> None:
    """Lets libtpu compile on a machine without a TPU; on one that has some, leaves them to other processes."""
    os.environ.update(_COMPILE_ONLY)


def _will_use_cpu() -> bool:
    # JAX itself can't be asked before it has started.
    platforms = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not accelerators()


def accelerators() -> list[str]:
    """The device files of GPUs and TPUs on this machine."""
    return [path for pattern in _ACCELERATORS for path in glob.glob(pattern)]
