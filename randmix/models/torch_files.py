"""Read PyTorch state dicts from files, training checkpoints and wrapped modules.

Files come from anywhere, so what they claim is checked before memory is allocated for it.
"""

import argparse
import math
import re
import reprlib
import stat
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (JAX depends on it; registers bfloat16 with NumPy)
import numpy as np

from randmix.errors import UserError

try:
    import safetensors.numpy
except ImportError:  # the extra "convert"
    safetensors = None

# Prefixes that wrappers add to every key: DataParallel, a model as an attribute, torch.compile.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_WRAPPINGS = ("state_dict", "model")  # where a training checkpoint stores its state dict
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
SUFFIXES = (".safetensors", *_TORCH_SUFFIXES)  # of the files that can be read
_MAX_WRAPPINGS = 8  # mappings, or prefixes, around a state dict; real ones have at most three
_STATE_DICT = "arrays by name; give model.state_dict()"
_FLOATS = ("float32", "float16", "bfloat16")  # the dtypes that float32 represents exactly
_SAFETENSORS_DTYPES = {"BF": "bfloat", "F": "float", "C": "complex", "I": "int", "U": "uint"}


class Described(NamedTuple):
    """An array in a file that hasn't been read yet."""

    dtype: str
    shape: tuple[int, ...]


def read(path: Path, check: Callable[[Any], object]) -> Any:
    """Reads a file of weights without running any code in it.

    Args:
        path: a .safetensors file, or a .pth, .pt, .bin or .tar file that ``torch.save`` wrote.
        check: called with what the file contains before its values are read: ``Described`` arrays
            or memory-mapped tensors. It raises an error if the values aren't worth reading.

    Returns:
        Arrays by name, or whatever object ``torch.save`` was given.

    Raises:
        UserError: the file doesn't exist, has another type or is damaged, or the package that reads
            it is missing.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); give another file") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise UserError(f"{path}: got {kind}, allowed a file of weights; give its path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, check)
    if path.suffix in _TORCH_SUFFIXES:
        return _read_torch(path, check)
    allowed = ", ".join(SUFFIXES)
    raise UserError(f"{path}: got a file name ending in {path.suffix!r}, allowed {allowed}")


def _read_safetensors(path: Path, check: Callable[[Any], object]) -> dict[str, Any]:
    if safetensors is None:
        raise UserError(f"{path}: reading it requires safetensors; run `pip install safetensors`")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            check(
                {
                    name: Described(_dtype_name(one.get_dtype()), tuple(one.get_shape()))
                    for name, one in stored.items()
                }
            )
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: can't be read ({reason}); download it again") from error


def _dtype_name(code: str) -> str:
    """NumPy's name of a safetensors dtype: ``float8_e4m3`` for F8_E4M3."""
    letters = re.split("[0-9]", code)[0]
    return _SAFETENSORS_DTYPES.get(letters, letters.lower()) + code[len(letters) :].lower()


def _read_torch(path: Path, check: Callable[[Any], object]) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports] (optional)
    except ImportError as error:
        raise UserError(
            f"{path}: reading it requires PyTorch; run `pip install torch`, or give a .safetensors "
            "file"
        ) from error

    def load(mmap: bool) -> Any:
        # Runs no code from the file. timm's training checkpoints store their flags in a Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        if zipfile.is_zipfile(path):  # not the format before PyTorch 1.6
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise UserError(
                        f"{path}: got a compressed archive, allowed one as torch.save writes it; "
                        "save its contents with torch.save again"
                    )
            check(load(mmap=True))
        return load(mmap=False)
    except UserError:
        raise
    except Exception as error:  # damaged files raise half a dozen types
        raise UserError(
            f"{path}: torch.load(weights_only=True) can't read it ({type(error).__name__}): it is "
            "damaged or contains more than tensors; save model.state_dict() and give that"
        ) from error


def check_stored(what: str, value: Any) -> None:
    """Raises a UserError unless an array is of floats and stores every one of them.

    Args:
        what: name of the array, for error messages.
        value: an array, a tensor, or one that is ``Described``.
    """
    dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    if dtype not in _FLOATS:
        raise UserError(
            f"{what}: got {dtype}, allowed {', '.join(_FLOATS)}; give model.float().state_dict()"
        )
    strides = getattr(value, "strides", ())  # NumPy's, in bytes
    if hasattr(value, "untyped_storage"):  # a PyTorch tensor
        layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        if layout != "strided":
            raise UserError(f"{what}: got a {layout} tensor, allowed a dense one; save it as one")
        if value.is_meta:
            raise UserError(
                f"{what}: got a tensor on the meta device, which has no values, allowed one on "
                "the CPU; load the weights before saving the model"
            )
        strides = tuple(step * value.element_size() for step in value.stride())
    shape = tuple(value.shape)
    if not strides or 0 in shape:
        return
    # The bytes from the first element to the end of the last: fewer if elements share memory.
    size = getattr(value, "itemsize", 0)
    extent = size + sum((n - 1) * abs(step) for n, step in zip(shape, strides, strict=True))
    if extent < size * math.prod(shape):
        raise UserError(
            f"{what}: got shape {shape} in {extent:,} bytes, an expanded tensor, allowed one that "
            "stores each value; save it after .contiguous()"
        )


def float32(what: str, value: Any) -> np.ndarray:
    """The values of an array or tensor that `check_stored` accepts.

    Args:
        what: name of the array, for error messages.
        value: a float32, float16 or bfloat16 array or tensor of any shape.

    Returns:
        A float32 array of the same shape with exactly these values.

    Raises:
        UserError: a value is NaN or infinite.
    """
    if hasattr(value, "detach"):  # a PyTorch tensor; NumPy has neither its bfloat16 nor its signs
        value = value.detach().cpu().float().resolve_neg().numpy()
    value = np.asarray(value, np.float32)
    if unusable := int(np.sum(~np.isfinite(value))):
        raise UserError(
            f"{what}: got {unusable:,} of {value.size:,} values NaN or infinite, allowed finite "
            "ones; give a checkpoint from before they arose"
        )
    return value


def named(key: str) -> str:
    """A key as it is, or if it is long or can't be printed, its shortened repr."""
    return key if key.isprintable() and len(key) <= 80 else _shortened.repr(key)


_shortened = reprlib.Repr()
_shortened.maxstring = 80


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
    for _ in range(_MAX_WRAPPINGS):
        inner = [found[name] for name in _WRAPPINGS if isinstance(found, Mapping) and name in found]
        inner = [one for one in inner if isinstance(one, Mapping)]
        if not inner:
            break
        found = inner[0]
    else:  # perhaps one that contains itself
        raise UserError(
            f"{what}: got {_MAX_WRAPPINGS} or more mappings inside each other, expected "
            f"{_STATE_DICT}"
        )
    if not isinstance(found, Mapping):
        raise UserError(f"{what}: got {type(found).__name__}, expected {_STATE_DICT}")
    if not found or not all(isinstance(key, str) for key in found):
        got = "keys that aren't names" if found else "an empty mapping"
        raise UserError(f"{what}: got {got}, expected {_STATE_DICT}")
    arrays = dict(found)
    for _ in range(_MAX_WRAPPINGS):
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in arrays):
                arrays = {key.removeprefix(prefix): value for key, value in arrays.items()}
    return arrays
