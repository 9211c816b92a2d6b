"""Settings of all tests: eight CPU devices, strict promotion, quick compilation, a data folder."""

import importlib.util
import os
import tempfile
from pathlib import Path

# The cache shares compiled programs between tests and processes: the workers of pytest-xdist and
# the programs that tests start inherit these variables. LLVM's optimisations take most of a
# compilation and save nothing in programs that run a few times.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="randmix-tests-")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        # The size of XLA's thread pools. By default they have one thread for each device; if seven
        # devices wait for the eighth in an all-reduce, the eighth waits for ever for a thread that
        # does its share of a convolution.
        "NPROC": "16",
    }

import hypothesis
import jax
import pytest

# Not an environment variable: programs that tests start get one device.
jax.config.update("jax_num_cpu_devices", 8)

# An example that compiles, or a busy machine, may take longer than any deadline.
hypothesis.settings.register_profile("tests", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("tests")

# What isn't here isn't collected, rather than skipped; .ci/run everything installs it all.
_NEEDED = {
    "parity": ("PyTorch", importlib.util.find_spec("torch")),
    "test_tpu.py": ("libtpu", importlib.util.find_spec("libtpu")),
    "test_fashion_mnist.py": (
        "Debian's package dataset-fashion-mnist",
        Path("/usr/share/datasets/fashion-mnist").is_dir(),
    ),
}
collect_ignore = [path for path, (_, found) in _NEEDED.items() if not found]


def pytest_report_header():
    """Names the tests that aren't collected."""
    return [
        f"without {name}, tests/{path} isn't collected"
        for path, (name, found) in _NEEDED.items()
        if not found
    ]


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """An empty TFDS folder for this process."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    os.environ["TFDS_DATA_DIR"] = str(folder)
    return folder
