"""Choose the device, open its budget, and measure the peak bytes of tensors on it."""

from __future__ import annotations

import os
import re
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lowmem_brats.errors import BudgetError, InputError
from lowmem_brats.memory import cuda
from lowmem_brats.memory.budget import MemoryBudget, format_budget, format_bytes, parse_budget

UNSUPPORTED = {"mps": "an Apple GPU", "xpu": "an Intel GPU"}
"""Devices that torch knows and this program does not."""


def choose_device(requested: str) -> tuple[torch.device, list[str]]:
    """Choose the device that computes; `requested`: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns the device, and a note if `auto` fell back to the CPU although this torch is built for CUDA. Raises
    InputError for a named CUDA device that cannot be used.
    """
    if requested == "cpu":
        return torch.device("cpu"), []
    if requested.partition(":")[0] in UNSUPPORTED:
        found, advice = (
            f"{UNSUPPORTED[requested.partition(':')[0]]}, which this program cannot use",
            "Use --device cpu.",
        )
        raise InputError(f"--device {requested}", found, "auto, cpu, cuda or cuda:N", advice)
    if requested != "auto" and not re.fullmatch(r"cuda(:[0-9]{1,2})?", requested):
        raise InputError("--device", repr(requested), "auto, cpu, cuda or cuda:N", "Use auto.")
    device = torch.device("cuda", int(requested.partition(":")[2] or 0))
    problem = _cuda_problem(device)
    if problem is None:
        return device, []
    if requested != "auto":
        raise InputError(f"--device {requested}", problem, "a usable CUDA device", "Use --device auto or cpu.")
    return torch.device("cpu"), [f"running on the CPU: {problem}"] if torch.version.cuda else []


def _cuda_problem(device: torch.device) -> str | None:
    """The reason why the device cannot be used, in words, or None."""
    if not torch.version.cuda:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device or driver was found"
    if (device.index or 0) >= torch.cuda.device_count():
        return f"only {torch.cuda.device_count()} CUDA device(s) found"
    major, minor = torch.cuda.get_device_capability(device)
    return unsupported_card(torch.cuda.get_device_name(device), (major, minor), torch.cuda.get_arch_list())


def unsupported_card(name: str, capability: tuple[int, int], architectures: list[str]) -> str | None:
    """The reason why a torch build for `architectures` (such as `sm_75`) cannot run on a card, or None if it can.

    `name`, `capability`: of the card, (major, minor). Machine code for sm_XY runs on every card of major version X and
    minor version Y or higher; intermediate code (`compute_XY`) runs on every newer card.
    """
    major, minor = capability
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        digits = "".join(c for c in number if c.isdigit())
        built = (int(digits[:-1]), int(digits[-1]))
        if (kind == "compute" and built <= capability) or (kind == "sm" and built[0] == major and built[1] <= minor):
            return None
    return f"torch {torch.__version__} has no code for {name} (sm_{major}{minor}). {_card_advice(capability)}"


def _card_advice(capability: tuple[int, int]) -> str:
    """Advice on the torch to install for a card that the installed one has no code for."""
    if capability < (5, 0):
        return "No current torch supports so old a card: use the CPU."
    if capability < (7, 5):
        return (
            "Install a build for it: pip install torch==2.7.1 (Linux; GTX 9xx/10xx and MX cards), see README, Install."
        )
    return "Install the newest torch that is supported: pip install --upgrade 'torch<2.14'."


def open_budget(vram: str, device: torch.device) -> MemoryBudget:
    """Read `--vram` for a device; on CUDA also measure the context, keep room for it and cap the allocator.

    On the CPU a share is of the host's memory, and `max` is no limit. Raises InputError for a text that is no budget,
    and BudgetError if CUDA itself leaves nothing for tensors.
    """
    if device.type == "cpu":
        return parse_budget(vram, "cpu", None if vram.strip().lower() == "max" else host_bytes())
    with out_of_memory_told(str(device)):
        context = cuda.measure_context(device)
        cuda.other_programs(device)
    reserve = context + cuda.WORKSPACE
    budget = parse_budget(vram, "cuda", cuda.available_bytes(device) + context, reserve)
    if budget.tensor_bytes == 0:
        parts = f"{format_bytes(context)} for its context and {format_bytes(cuda.WORKSPACE)} for work space"
        raise BudgetError(
            "--vram",
            f"{format_bytes(budget.total_bytes or 0)}, which CUDA itself would fill",
            f"more than {format_budget(reserve)}",
            f"CUDA needs {parts} before any tensor. Give more, or use --device cpu.",
        )
    if budget.total_bytes is not None:
        # Only the context is outside the allocator: cuDNN takes its work space from it too.
        cuda.cap_allocator(device, budget.total_bytes - context - cuda.GROWTH)
    return budget


def out_of_memory(device: str) -> BudgetError:
    """The error for a device that ran out of memory with the plan that needs least."""
    advice = "Close other programs that use the card, or pass --device cpu."
    return BudgetError(device, "out of memory with the smallest plan", "what the plan predicted", advice)


@contextmanager
def out_of_memory_told(device: str) -> Iterator[None]:
    """Turn torch.OutOfMemoryError inside the block into a BudgetError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(device) from error


def host_bytes() -> int | None:
    """Bytes of the host's memory; None if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def process_peak_bytes() -> int | None:
    """Most bytes of host memory that this process has held so far; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource  # does not exist on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def storage_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's storage, rounded up to 512 as the CUDA allocator does."""
    return _in_blocks(tensor.untyped_storage())


def _in_blocks(storage: torch.UntypedStorage) -> int:
    return -(-storage.nbytes() // 512) * 512


@dataclass
class _Counted:
    """A storage that is counted as alive."""

    size: int
    kind: str = "activations"


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensor storages that are alive at once while the mode is on, for real and fake tensors.

    A storage is counted from the operation that first returned it, or from `track`, until it is freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        """Live bytes by kind when `peak` was reached; their sum is `peak`."""
        self._by_kind = {"activations": 0}
        self._seen = dict[int, _Counted]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in WithoutData

    def track(self, *tensors: Tensor) -> None:
        """Count the storages of tensors that already exist."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                self._follow(storage, _in_blocks(storage))

    def leave_out(self, *tensors: Tensor) -> None:
        """Do not count tensors, not counted so far, that lie in host memory also where the CPU is the device."""
        for tensor in tensors:
            self._follow(tensor.untyped_storage(), 0)

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        self._seen[storage._cdata] = counted = _Counted(size)
        weakref.finalize(storage, self._forget, storage._cdata)
        self._change(counted, +1)

    def name(self, kind: str, *tensors: Tensor) -> None:
        """Count tensors as a kind, such as `parameters`; all others are `activations`."""
        self.track(*tensors)
        for tensor in tensors:
            counted = self._seen[tensor.untyped_storage()._cdata]
            self._by_kind[counted.kind] -= counted.size
            counted.kind = kind
            self._by_kind[kind] = self._by_kind.get(kind, 0) + counted.size

    def _forget(self, storage: int) -> None:
        self._change(self._seen.pop(storage), -1)

    def _change(self, counted: _Counted, sign: int) -> None:
        self.live += sign * counted.size
        self._by_kind[counted.kind] += sign * counted.size
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, dict(self._by_kind)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = (result,) if isinstance(result, Tensor) else tree_flatten(result)[0]
        self.track(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))
        return result


class PeakMeter:
    """Measures peak bytes while the `with` block runs: the allocator's figure on CUDA, live tensors on the CPU.

    `resident`: tensors that exist before the block and are counted too; `on_host`: tensors that are not counted,
    because on a card they would lie in host memory (both for the CPU only; CUDA's allocator knows them).
    """

    def __init__(self, device: torch.device, *resident: Tensor, on_host: Sequence[Tensor] = ()) -> None:
        self._device = device
        self._counter = LiveBytes()
        if device.type == "cpu":
            self._counter.track(*resident)
            self._counter.leave_out(*on_host)

    def __enter__(self) -> PeakMeter:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._counter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type != "cuda":
            self._counter.__exit__(kind, value, trace)

    @property
    def peak_bytes(self) -> int:
        """The peak so far, in bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return self._counter.peak
