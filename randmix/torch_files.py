"""Read PyTorch state dicts from files, training checkpoints and wrapped modules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from randmix.errors import UserError

# Prefixes that wrappers add to every key: DataParallel, a model as an attribute, torch.compile.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_WRAPPINGS = ("state_dict", "model")  # where a training checkpoint stores its state dict
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
_STATE_DICT = "arrays by name; give model.state_dict()"


def read(path: Path) -> Any:
    """Reads a file of weights without running any code in it.

    Args:
        path: a .safetensors file, or a .pth, .pt, .bin or .tar file that ``torch.save`` wrote.

    Returns:
        Arrays by name, or whatever object ``torch.save`` was given.

    Raises:
        UserError: the file doesn't exist, has another type or is damaged, or the package that reads
            it is missing.
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
            f"{path}: reading it requires safetensors; run `pip install safetensors`"
        ) from error
    import ml_dtypes  # noqa: F401 (JAX depends on it; registers bfloat16 with NumPy)

    try:
        return load_file(path)
    except (SafetensorError, OSError, TypeError) as error:
        raise UserError(f"{path}: can't be read ({error}); download it again") from error


def _read_torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports] (optional)
    except ImportError as error:
        raise UserError(
            f"{path}: reading it requires PyTorch; run `pip install torch`, or give a .safetensors "
            "file"
        ) from error
    import argparse

    try:
        # Runs no code from the file. timm's training checkpoints store their flags in a Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise half a dozen types
        raise UserError(
            f"{path}: torch.load(weights_only=True) can't read it ({type(error).__name__}): it is "
            "damaged or contains more than tensors; save model.state_dict() and give that"
        ) from error


def unwrap(what: str, found: Any) -> dict[str, Any]:
    """Extracts the state dict of a training checkpoint and removes the prefixes of wrappers.

    Args:
        what: name of the source, for error messages.
        found: a state dict, or a mapping that contains one under "state_dict" or "model".

    Returns:
        Arrays or tensors by name; their values aren't checked.

    Raises:
        UserError: the object isn't a mapping from names to values, or is empty.
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
