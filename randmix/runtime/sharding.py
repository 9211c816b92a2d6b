"""Data parallelism: one mesh axis over all devices; batches are split, all else is replicated."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from randmix.errors import UserError

DATA_AXIS = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """One-dimensional mesh over ``devices``, by default the devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies host arrays, equal on all hosts, to every device."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises a UserError unless the devices share each part of the global batch evenly."""
    multiple = mesh.size * accumulate
    if batch_size % multiple:
        devices = f"{mesh.size} device{'s' if mesh.size > 1 else ''}"
        parts = f" in {accumulate} parts (config.accumulate)" if accumulate > 1 else ""
        raise UserError(
            f"config.batch_size: got {batch_size}, which {devices} can't share evenly{parts}; "
            f"allowed is a multiple of {multiple}"
        )
