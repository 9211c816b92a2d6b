"""Eight CPU devices, and for the whole session one prepared copy of the digits and one cache of compiled programs."""

import os
import tempfile

# What one test has compiled the next one reads, in processes of their own too: the suite takes half the time. The
# workers of pytest-xdist inherit it from the process that starts them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="randmix-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest

# Before anything starts a backend. Processes that tests start inherit the variable: with libtpu installed JAX would
# first look for a TPU.
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """An empty TFDS folder of the session's own; the digits are prepared into it on first use."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    os.environ["TFDS_DATA_DIR"] = str(folder)
    return folder
