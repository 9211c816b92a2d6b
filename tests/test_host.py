"""Process settings: made before JAX starts on a CPU, unchanged everywhere else."""

import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from randmix.commands import shared
from randmix.runtime import host

LEFT = "left as they are: "


@pytest.fixture
def fresh(monkeypatch):
    """A process on a machine with only a CPU that, to the module, has not imported JAX."""
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(host.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: FakeLibc)
    monkeypatch.setattr(host, "_tuned", False)
    FakeLibc.calls, FakeLibc.answer = [], 1


class FakeLibc:
    @classmethod
    def mallopt(cls, option, value):
        cls.calls.append((option, value))
        return cls.answer

    malloc = staticmethod(lambda size: None)
    free = madvise = staticmethod(lambda *arguments: pytest.fail("of no block"))


def test_on_a_cpu_with_glibc(fresh):
    assert host.tune() == "malloc keeps its memory, 512-bit vectors preferred"
    assert FakeLibc.calls == [(-8, 1), (-4, 0), (-1, 2**31 - 1)]
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_prefer_vector_width=512"


def test_a_program_that_needs_much_memory_gives_large_blocks_back(fresh):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert not host.keeps_memory()
    assert not host.give_back(memory)
    host.tune()
    assert host.keeps_memory()
    FakeLibc.calls = []
    assert not host.give_back(memory // 17)
    assert FakeLibc.calls == []
    assert host.give_back(memory // 15)
    assert FakeLibc.calls == [(-3, 32 * 2**20), (-4, 65536)]


@pytest.mark.parametrize("limit", ["max\n", "1073741824\n"])
def test_a_container_s_memory_is_its_own(fresh, monkeypatch, tmp_path, limit):
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(host, "_LIMITS", (tmp_path / "memory.max", tmp_path / "none"))
    host.tune()
    assert host.give_back(2**30 // 15) == (limit != "max\n")


def test_no_thread_precedes_the_settings():
    # It would keep an arena of its own, whose memory glibc returns.
    program = (
        "import os, sys\n"
        "from randmix import commands\n"
        "from randmix.runtime import cli, host\n"
        "host.tune = lambda: sys.exit(str(len(os.listdir('/proc/self/task'))))\n"
        "cli.run(lambda: commands.run('train'))\n"
    )
    words = ["-c", program, "--config=configs/digits.py:tiny"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.stderr == "1\n"


def test_the_users_own_xla_flags_win(fresh, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256 --xla_dump_to=x")
    host.tune()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_prefer_vector_width=256 --xla_dump_to=x"


def test_quick_compilation_adds_to_the_flags_on_a_cpu_and_the_users_win(fresh, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert host.compile_quickly()
    assert not host.compiles_quickly()
    flags = "--xla_backend_optimization_level=2 --xla_llvm_disable_expensive_passes=true"
    assert os.environ["XLA_FLAGS"] == flags
    monkeypatch.delenv("XLA_FLAGS")
    assert host.compile_quickly()
    assert host.compiles_quickly()
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert not host.compile_quickly()
    assert os.environ["XLA_FLAGS"] == flags


@pytest.mark.parametrize(
    ("platforms", "devices"), [("cuda", []), ("tpu,cpu", []), ("", ["/dev/nvidia0"])]
)
def test_an_accelerator_leaves_everything_alone(platforms, devices, fresh, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(host.glob, "glob", lambda pattern: devices)
    assert host.tune() == f"{LEFT}not a CPU run"
    assert FakeLibc.calls == []
    assert "XLA_FLAGS" not in os.environ


def test_another_c_library_leaves_everything_alone(fresh, monkeypatch):
    monkeypatch.setattr(host.platform, "libc_ver", lambda: ("", ""))
    assert host.tune() == f"{LEFT}the C library isn't glibc"
    assert FakeLibc.calls == []


def test_after_jax_it_is_too_late():
    assert host.tune() == f"{LEFT}JAX is imported already"


@pytest.mark.parametrize("flags", ["", "--xla_dump_to=x"])
def test_deterministic_operations_are_asked_for_once(flags, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    for _ in range(2):
        host.make_deterministic()
    assert os.environ["XLA_FLAGS"].split() == [*flags.split(), "--xla_gpu_deterministic_ops=true"]


@pytest.mark.parametrize(
    ("platforms", "before", "asked", "kept"),
    [
        ("cpu", None, "here", "here"),
        ("cpu", "theirs", None, "theirs"),
        ("cpu", "theirs", "off", None),
        ("cuda", None, None, "runs/.compiled"),
        ("cuda", "theirs", None, "theirs"),
        ("cuda", "theirs", "here", "here"),
        ("cuda", "theirs", "off", None),
    ],
)
def test_where_compiled_programs_are_kept(platforms, before, asked, kept, cache, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    if before:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", before)
    assert host.keep_compiled(asked, default="runs/.compiled") == (
        None if kept == "theirs" else kept
    )
    assert os.environ.get("JAX_COMPILATION_CACHE_DIR") == kept
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
    assert not [*cache.iterdir()]


@pytest.mark.parametrize(
    ("workdir", "kept"),
    [
        (None, "runs/.compiled"),
        ("runs/mine", "runs/.compiled"),
        ("gs://bucket/runs/mine/", "gs://bucket/runs/.compiled"),
        ("mine", ".compiled"),
    ],
)
def test_an_accelerator_keeps_programs_beside_the_runs(workdir, kept, cache, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    options = types.SimpleNamespace(workdir=workdir, compiled=None)
    shared.keep_compiled(options)
    assert (options.compiled, os.environ["JAX_COMPILATION_CACHE_DIR"]) == (kept, kept)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache, empty, in an environment that names no folder for compiled programs."""
    for name in ("DIR", "MAX_SIZE"):
        monkeypatch.setenv(f"JAX_COMPILATION_CACHE_{name}", "")  # so that it is restored
        monkeypatch.delenv(f"JAX_COMPILATION_CACHE_{name}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_cpu_keeps_its_programs_in_the_users_cache(cache, monkeypatch):
    kept = Path(host.keep_compiled(None, default="unused"))
    assert kept.parent == cache / "randmix"
    assert kept.name.startswith("compiled-")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(kept)
    assert int(os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"]) == 512 * 2**20

    def another(number, frequency):
        lines = [f"processor: {number}", f"model name: {number}", "flags: avx", "cpu MHz: "]
        return "\n".join(lines) + f"{frequency}\n\nprocessor: 1\n"

    folders = []
    for text in (another(1, 800), another(1, 3000), another(2, 800)):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setattr(Path, "read_text", lambda _, text=text: text)
        folders.append(host.keep_compiled(None, default="unused"))
    assert folders[0] == folders[1] != folders[2]


def test_what_a_power_loss_left_of_a_program_is_removed(cache):
    folder = Path(host.keep_compiled(None, default="unused"))
    files = {
        "whole": (b"program", bytes(8)),
        "empty": (b"", bytes(8)),
        "undated": (b"program", b""),
    }
    for name, (program, used) in files.items():
        (folder / f"{name}-cache").write_bytes(program)
        (folder / f"{name}-atime").write_bytes(used)
    (folder / "alone-cache").write_bytes(b"program")
    written = {file.name for file in folder.iterdir()}
    for age, kept in ((0, written), (3600, {"whole-cache", "whole-atime"})):
        for file in folder.iterdir():  # a young one may still be written by another process
            os.utime(file, 2 * (time.time() - age,))
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
        assert host.keep_compiled(None, default="unused") == str(folder)
        assert {file.name for file in folder.iterdir()} == kept


def test_programs_without_times_of_use_are_kept_where_the_user_set_no_bound(cache, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
    folder = Path(host.keep_compiled(None, default="unused"))
    for name, content in (("whole-cache", b"program"), ("empty-cache", b"")):
        (folder / name).write_bytes(content)
        os.utime(folder / name, 2 * (time.time() - 3600,))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    host.keep_compiled(None, default="unused")
    assert os.listdir(folder) == ["whole-cache"]


def test_without_a_place_for_them_programs_are_not_kept(cache, monkeypatch):
    (cache / "randmix").write_text("a file where the folder should be")
    assert host.keep_compiled(None, default="unused") is None
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.slow
def test_a_second_run_compiles_nothing(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    words = [sys.executable, "-m", "randmix.main", "--config=configs/digits.py:tiny"]
    kept = []
    for name in ("one", "two"):
        done = subprocess.run(
            [*words, f"--workdir={tmp_path / name}"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
            env=environment,
            check=True,
        )
        (folder,) = (tmp_path / "cache" / "randmix").iterdir()
        assert f"compiled programs: kept in {folder} (--compiled)" in done.stdout
        assert done.stderr == ""
        kept.append({file.name: file.stat().st_mtime_ns for file in folder.glob("*-cache")})
    assert any("train_step" in name for name in kept[0])
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_the_settings_reach_a_real_process():
    """A tuned process keeps freed memory: touching 256 MiB again faults no new pages."""
    code = """
import ctypes, resource, sys
from randmix.runtime import host
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, whose faults are few
if sys.argv[1] == "tuned": print(host.tune())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(2**28); del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    counts = {}
    for name in ("plain", "tuned"):
        done = subprocess.run(
            [sys.executable, "-c", code, name],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        counts[name] = int(done.stdout.split()[-1])
    assert counts["plain"] > 10_000
    assert counts["tuned"] < 1_000


def test_the_first_memory_has_huge_pages_where_the_kernel_has_them():
    code = """
from randmix.runtime import host
host.tune()
block = bytearray(2**28)
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if "AnonHuge" in line))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    there = setting.exists() and "[never]" not in setting.read_text()
    # In KiB. All of the block, unless memory is in pieces; without the request, none.
    assert (int(done.stdout) > 2**13) == there


@pytest.fixture
def laptop(monkeypatch):
    """A process before JAX, with libtpu installed and no sign of an accelerator."""
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    for name in [*os.environ]:
        if name.startswith(("TPU_", "JAX_PLATFORM")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "")  # so that what is set here is undone
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setattr(host.importlib.metadata, "entry_points", lambda group: ())
    monkeypatch.setattr(host, "accelerators", list)
    monkeypatch.setattr(host, "_pci_vendors", lambda: {"0x8086"})


def test_without_a_tpu_libtpu_is_not_asked(laptop):
    host.leave_libtpu_alone()
    assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_an_imported_jax_does_not_ask_libtpu_either(laptop, monkeypatch):
    set_to = []
    config = types.SimpleNamespace(update=lambda *setting: set_to.append(setting))
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # as importing JAX does where there is no TPU
    host.leave_libtpu_alone()
    assert set_to == [("jax_platforms", "cpu")]


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(host, "accelerators", lambda: ["/dev/vfio/0"]),
        lambda patch: patch.setattr(host, "_pci_vendors", lambda: {"0x8086", "0x1ae0"}),
        lambda patch: patch.setenv("JAX_FORCE_TPU_INIT", "1"),
        lambda patch: patch.setattr(
            host.importlib.util, "find_spec", lambda name: name in ("libtpu", "jax_plugins") or None
        ),
        lambda patch: patch.setattr(
            host.importlib.metadata, "entry_points", lambda group: ("metal",)
        ),
        lambda patch: patch.setattr(host.importlib.util, "find_spec", lambda name: None),
    ],
)
def test_any_sign_of_an_accelerator_changes_nothing(laptop, monkeypatch, change):
    change(monkeypatch)
    host.leave_libtpu_alone()
    assert os.environ["JAX_PLATFORMS"] == ""


def test_the_users_platform_wins(laptop, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    host.leave_libtpu_alone()
    assert os.environ["JAX_PLATFORMS"] == "cuda"
