"""Process settings to apply before JAX starts; on a CPU they are worth a factor of 1.4 to 2.

XLA:CPU allocates its temporary buffers with malloc and frees them at every step. By default, glibc
returns such large blocks to the kernel, which then hands out zeroed pages again, with one page
fault per 4 KiB: 152,000 faults per step for a ConvMixer-128/4 at 32 x 32, batch 32. Told to keep
them, the process is faster and stays at its peak size. Measured, the setting has no effect once JAX
has started. It must precede the first thread, too: a thread that exists keeps its own arena, which
others then share, and whose blocks glibc still returns.
"""

import contextlib
import ctypes
import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from pathlib import Path

# From glibc's malloc.h: one arena for all threads, no separate mappings, no heap trimming.
_MALLOPT = {-8: 1, -4: 0, -1: 2**31 - 1}
# Linux's madvise(MADV_HUGEPAGE), the size of a huge page, and how much memory gets them: a share of
# the machine's, and less than malloc trims.
_HUGE, _HUGE_PAGE, _HUGE_SHARE, _MOST_HUGE = 14, 2 * 2**20, 1 / 8, 1792 * 2**20
# Separate mappings again, of blocks of 32 MiB, the largest threshold there is, and more.
_GIVE_BACK = {-3: 32 * 2**20, -4: 65536}
_KEPT_SHARE = 1 / 16  # of the machine's memory
# The limits of a container's control group, of either version.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_VECTOR_WIDTH = "--xla_cpu_prefer_vector_width"
# libtpu asks the machine for its type and takes a lock file. These settings answer in its place and
# let several processes compile at once. The type doesn't matter: the requested topology decides.
_COMPILE_ONLY = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_QUICK = {
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
_DETERMINISTIC = "--xla_gpu_deterministic_ops"
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_WORTH_KEEPING = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
_LIMIT = {"JAX_COMPILATION_CACHE_MAX_SIZE": str(512 * 2**20)}  # JAX drops what was unused longest
# Google's PCI vendor number, by which JAX recognizes a TPU. A TPU without a device file, as when
# its driver is missing, must fail with libtpu's own message, not train on the CPU unnoticed.
_GOOGLE = "0x1ae0"
_WRITTEN_WITHIN = 60  # seconds that JAX takes at most to write a compiled program
_tuned = False
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


def tune() -> str:
    """Makes malloc keep its memory and XLA prefer 512-bit vectors, for a CPU run before JAX starts.

    Returns:
        What was done, or why nothing was, as a phrase for the log.
    """
    global _tuned
    if "jax" in sys.modules:
        return "left as they are: JAX is imported already"
    if not _will_use_cpu():
        return "left as they are: not a CPU run"
    if platform.libc_ver()[0] != "glibc":
        return "left as they are: the C library isn't glibc"
    if not _mallopt(_MALLOPT):
        return "left as they are: mallopt refused"
    _tuned = True
    _use_huge_pages()
    flags = os.environ.get("XLA_FLAGS", "")
    if _VECTOR_WIDTH not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_VECTOR_WIDTH}=512".strip()
    return "malloc keeps its memory, 512-bit vectors preferred"


def keeps_memory() -> bool:
    """Whether ``tune`` made malloc keep its memory in this process."""
    return _tuned


def give_back(needed: int) -> bool:
    """Makes malloc return large blocks after all, if a program needs much of the machine's memory.

    Kept blocks of gigabytes leave gaps that smaller ones fill, so the next step needs new memory: a
    step of 3 GiB grew the process to 16 GiB. Where ``tune`` did nothing, this doesn't either.

    Args:
        needed: bytes of the program.

    Returns:
        Whether it does.
    """
    return _tuned and needed > _KEPT_SHARE * _memory() and _mallopt(_GIVE_BACK)


def _memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            size = min(size, int(Path(file).read_text()))
    return size


def _use_huge_pages() -> None:
    """Asks the kernel for huge pages in what malloc will hand out first, which isn't used yet.

    A step goes through a gigabyte of buffers; with pages of 4 KiB, the processor waits for their
    addresses. Where the kernel has no such pages, nothing changes.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = min(int(_HUGE_SHARE * _memory()), _MOST_HUGE)
    if block := libc.malloc(size):
        start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(start, (block + size - start) // _HUGE_PAGE * _HUGE_PAGE, _HUGE)
        libc.free(block)  # malloc keeps it


def _mallopt(options: dict[int, int]) -> bool:
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(option, value) for option, value in options.items())


def make_deterministic() -> None:
    """Makes XLA use the same operations in the same order every time, also on a GPU.

    Call this before JAX starts. By default, a GPU computes some sums with atomic additions and uses
    the convolution algorithm that was fastest when the process started. CPUs and TPUs are
    deterministic without this setting.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC}=true".strip()


def compile_quickly() -> bool:
    """Makes XLA:CPU skip most optimisations, for programs that run a few times; before JAX starts.

    Flags that are in XLA_FLAGS already win.

    Returns:
        Whether it does: only for a CPU run.
    """
    if not _will_use_cpu():
        return False
    flags = os.environ.get("XLA_FLAGS", "")
    more = [f"{name}={value}" for name, value in _QUICK.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *more]).strip()
    return True


def compiles_quickly() -> bool:
    """Whether XLA_FLAGS asks for what ``compile_quickly`` does."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return all(f"{name}={value}" in flags for name, value in _QUICK.items())


def keep_compiled(folder: str | None, *, default: str) -> str | None:
    """Makes JAX keep compiled programs in a folder for later processes; call before JAX starts.

    Args:
        folder: a path, a gs:// URL, or "off". None uses ``default`` on a GPU or TPU. On a CPU it
            uses a folder in the user's cache, of 512 MiB at most, for this kind of processor:
            another one may be unable to run the programs.
        default: the folder to use with an accelerator.

    Returns:
        The folder chosen here. None: nothing is kept, or JAX_COMPILATION_CACHE_DIR decides.
    """
    if folder == "off":
        os.environ.pop(_CACHE, None)
        return None
    if folder is None and _CACHE in os.environ:
        return None
    settings = _WORTH_KEEPING
    if folder is None and _will_use_cpu():
        folder, settings = _user_cache(), {**_WORTH_KEEPING, **_LIMIT}
        if folder is None:
            return None
    os.environ[_CACHE] = folder or default
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    return os.environ[_CACHE]


def _user_cache() -> str | None:
    """The user's folder of programs for this kind of processor, or None if there can't be one."""
    try:
        known = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        known = [platform.machine(), platform.processor()]
    # The model and what it can do; other lines, such as the clock's rate, change.
    lines = [line for line in known if line.startswith(("model", "flags", "Features"))] or known
    key = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "randmix" / f"compiled-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        _remove_incomplete(folder)
    except (OSError, RuntimeError):  # a home that is read-only, or none
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def _remove_incomplete(folder: Path) -> None:
    """Removes what a power loss left of programs: JAX would warn of them at every run."""
    # Without a bound, JAX keeps no times of use.
    bounded = os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE") != "-1"
    for program in folder.glob("*-cache"):
        used = program.with_name(program.name.removesuffix("cache") + "atime")
        with contextlib.suppress(FileNotFoundError):  # JAX has just removed it
            whole = program.stat().st_size
            if bounded:
                whole = whole and used.exists() and used.stat().st_size == 8
            # A younger one may be in the hands of another process.
            if not whole and time.time() - program.stat().st_mtime > _WRITTEN_WITHIN:
                program.unlink(missing_ok=True)
                used.unlink(missing_ok=True)


def leave_libtpu_alone() -> None:
    """Keeps JAX from asking an installed libtpu for TPUs on a machine without any.

    libtpu would print half a page of complaints. This does nothing if JAX_PLATFORMS or
    JAX_FORCE_TPU_INIT is set, or if there is any sign of an accelerator: a device file, a Google
    PCI device (JAX's own test), or a plugin for another accelerator. Variables named TPU_... are no
    sign: importing JAX and libtpu sets some on any machine.
    """
    if os.environ.get("JAX_PLATFORMS") or "JAX_FORCE_TPU_INIT" in os.environ:
        return
    if not importlib.util.find_spec("libtpu"):
        return
    plugins = importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(
        group="jax_plugins"
    )
    if not (plugins or accelerators() or _GOOGLE in _pci_vendors()):
        os.environ["JAX_PLATFORMS"] = "cpu"
        # JAX reads the variable on import and looks for devices later.
        if "jax" in sys.modules:
            sys.modules["jax"].config.update("jax_platforms", "cpu")


def _pci_vendors() -> set[str]:
    return {Path(file).read_text().strip() for file in glob.glob("/sys/bus/pci/devices/*/vendor")}


def only_compile_for_tpu() -> None:
    """Lets libtpu compile without a TPU; on a machine with TPUs, leaves them to other processes."""
    os.environ.update(_COMPILE_ONLY)


def _will_use_cpu() -> bool:
    # JAX itself can't be asked before it starts.
    platforms = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not accelerators()


def accelerators() -> list[str]:
    """Returns the device files of this machine's GPUs and TPUs."""
    return [path for pattern in _ACCELERATORS for path in glob.glob(pattern)]
