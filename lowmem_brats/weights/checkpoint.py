"""Checkpoints: everything that a training needs to go on where it was, in one file that is written whole or not at all.

safetensors, as the weights: tensors by name, and the rest as JSON in the header. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lowmem_brats.errors import InputError
from lowmem_brats.files import replace_when_complete

KIND = "lowmem-brats-checkpoint/"
FORMAT = f"{KIND}2"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a state that JSON can hold to `path`; an older file there stays until the new one is whole.

    Raises InputError when the disk is full or the folder cannot be written.
    """
    header = {"format": FORMAT, "state": json.dumps(state)}
    on_host = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with replace_when_complete(path) as partial:
        partial.write_bytes(save(on_host, header))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the host, and the state of a checkpoint. Raises InputError for a file that is none."""
    with _opened(path) as (file, state):
        return {key: file.get_tensor(key) for key in file.keys()}, state  # noqa: SIM118 (it is not a dict)


def load_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint alone. Raises InputError as `load_checkpoint`."""
    with _opened(path) as (_, state):
        return state


def of_another_version(path: Path) -> InputError:
    """The error for a checkpoint that holds other things than those of this version."""
    advice = "Train anew: --overwrite in place of --resume."
    return InputError(path, "written by another version", "a checkpoint of this version", advice)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file and its state."""
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            found = header.get("format", "none")
            if found != FORMAT and found.startswith(KIND):
                raise of_another_version(path)
            if found != FORMAT:
                raise ValueError(f"format {found!r} instead of {FORMAT!r}")
            yield file, dict(json.loads(header["state"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        advice = "Start again with --overwrite, or put an undamaged copy back."
        raise InputError(path, f"cannot be read ({error})", "a checkpoint of this version", advice) from error
