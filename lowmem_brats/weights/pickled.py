"""Read a checkpoint that torch pickled, which is untrusted: nothing in it is ever run or imported.

torch's restricted reader knows tensors and plain containers. nnU-Net's checkpoints hold numpy's numbers beside them,
the history of the training; these are read by the functions here, not by numpy. Whatever else is named is refused.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from lowmem_brats.errors import WeightsError
from lowmem_brats.networks.base import in_memory

ADVICE = "Import checkpoints only as MONAI and nnU-Net write them."


_NUMBERS = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64}


class _Kind:
    """Stands for numpy's dtype: its name, such as `f8`."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Nothing but the byte order is in it, which `_number` takes to be little."""


def _number(kind: _Kind, data: Any = b"") -> float:
    """The number in the bytes of a numpy scalar. Raises UnpicklingError for any other object."""
    formats = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}
    data = data.encode("latin1") if isinstance(data, str) else data
    if not (isinstance(kind, _Kind) and kind.name in formats and isinstance(data, bytes)):
        raise pickle.UnpicklingError("a numpy object that is no number")
    return float(struct.unpack(formats[kind.name], data)[0])


def _encoded(text: str, coding: str = "latin1") -> bytes:
    """How old pickles write bytes."""
    return text.encode("latin1")


_ALLOWED: list[Any] = [
    _Kind,
    (_Kind, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    (_encoded, "_codecs.encode"),
]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The table in a checkpoint, its tensors on the CPU. Raises WeightsError for anything that may not be read."""
    if not path.is_file():
        raise WeightsError(path, "missing", "a checkpoint", "Check the path; copy the whole folder.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise WeightsError(path, "TorchScript, a program", "weights: model.pt of the bundle", ADVICE)
        with safe_globals(_ALLOWED):
            # Mapped into memory: what is not asked for, such as the optimizer's state, is not read.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except WeightsError:
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, OSError, ValueError, EOFError) as error:
        reason = str(error).replace("\n", " ")
        named = reason.partition("GLOBAL ")[2].split(" ")[0]
        found_text = f"it names {named}, which may run code" if named else f"not read ({reason[:120]})"
        raise WeightsError(path, found_text, "tensors and plain values only", ADVICE) from None
    except (TypeError, KeyError, AttributeError, IndexError, AssertionError, UnicodeError, struct.error) as error:
        raise WeightsError(path, f"damaged ({type(error).__name__})", "a checkpoint", "Copy it again.") from None
    if not isinstance(found, dict):
        raise WeightsError(path, f"a {type(found).__name__}", "a table of tensors", ADVICE)
    return found


def tensors_in(found: Any, path: Path) -> dict[str, Tensor]:
    """A state dict, checked to be nothing else: name → tensor. Raises WeightsError."""
    if not (isinstance(found, dict) and found and all(isinstance(key, str) and _plain(found[key]) for key in found)):
        raise WeightsError(path, "no table of tensors", "the weights of a network", ADVICE)
    return {key: value.detach() for key, value in found.items()}


def _plain(value: Any) -> bool:
    """Whether a value is a tensor whose numbers all lie in memory, and are of a kind that networks have."""
    return type(value) in (Tensor, torch.nn.Parameter) and in_memory(value) and value.dtype in _NUMBERS
