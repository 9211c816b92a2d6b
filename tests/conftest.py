"""Eight CPU devices, and one prepared copy of the digits for the whole session."""

import os

import jax
import pytest

# Before anything starts a backend.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """An empty TFDS folder of the session's own; the digits are prepared into it on first use."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    os.environ["TFDS_DATA_DIR"] = str(folder)
    return folder
