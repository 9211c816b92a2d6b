"""State dicts as PyTorch's users keep them: files, training checkpoints around them, wrappers' prefixes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from randmix.errors import UserError

# Prefixes that wrappers put before every key: DataParallel, a model held as an attribute, torch.compile.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_WRAPPINGS = ("state_dict", "model")  # where a training checkpoint keeps its state dict
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
_STATE_DICT = "arrays by name; give model.state_dict()"


def read(path: Path) -> Any:
    """What a file holds: arrays by name, or whatever PyTorch saved without code of its own.

    Args:
        path: a .safetensors file, or a .pth, .pt, .bin or .tar file that ``torch.save`` wrote.

    Raises:
        UserError: no such file, none of these types, a damaged one, or the package that reads it is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _read_torch(path)
    allowed = ", ".join((".safetensors", *_TORCH_SUFFIXES))
    raise UserError(f"{path}: got a file name ending in {path.suffix!r}, allowed {allowed}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise UserError(
            f"{path}: reading it takes safetensors; run `pip install safetensors`"
        ) from error
    import ml_dtypes  # noqa: F401 (JAX's own; gives NumPy the name bfloat16)

    try:
        return load_file(path)
    except (SafetensorError, OSError, TypeError) as error:
        raise UserError(f"{path}: can't be read ({error}); fetch it again") from error


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: reading it takes PyTorch; run `pip install torch`, or give a .safetensors file"
        ) from error
    import argparse

    try:
        # Nothing in the file is run. timm's training checkpoints hold their flags beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # it raises half a dozen types for damaged files
        raise UserError(
            f"{path}: torch.load(weights_only=True) can't read it ({type(error).__name__}): it is damaged, or "
            "holds more than tensors; save model.state_dict() and give that"
        ) from error


def unwrap(what: str, found: Any) -> dict[str, Any]:
    """The state dict inside a training checkpoint, without the prefixes of wrappers.

    Args:
        what: its name, for the message.
        found: a state dict, or a mapping that holds one under "state_dict" or "model".

    Raises:
        UserError: nothing that has names and arrays.
    """
    while isinstance(found, Mapping):
        inner = [found[name] for name in _WRAPPINGS if isinstance(found.get(name), Mapping)]
        if not inner:
            break
        found = inner[0]
    if not isinstance(found, Mapping):
        raise UserError(f"{what}: got {type(found).__name__}, expected {_STATE_DICT}")
    if not found or not all(isinstance(key, str) for key in found):
        got = "keys that aren't names" if found else "an empty mapping"
        raise UserError(f"{what}: got {got}, expected {_STATE_DICT}")
    arrays = dict(found)
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in arrays)), None):
        arrays = {key.removeprefix(prefix): value for key, value in arrays.items()}
    return arrays
