"""Settings of all tests: eight CPU devices, strict promotion, quick compilation, a data folder."""

import importlib.util
import os
import tempfile

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
    }

import jax
import pytest

# Not an environment variable: programs that tests start get one device.
jax.config.update("jax_num_cpu_devices", 8)

# Tests that need a missing optional package aren't collected; .ci/run everything installs them all.
_NEEDS = {"torch": ["parity"], "libtpu": ["test_tpu.py"]}
_MISSING = [package for package in _NEEDS if not importlib.util.find_spec(package)]
collect_ignore = [path for package in _MISSING for path in _NEEDS[package]]


def pytest_report_header():
    """Names the tests that aren't collected."""
    return [
        f"{package} isn't installed: tests/{path} isn't collected"
        for package in _MISSING
        for path in _NEEDS[package]
    ]


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """An empty TFDS folder for this process; the digits are prepared into it on first use."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    os.environ["TFDS_DATA_DIR"] = str(folder)
    return folder
