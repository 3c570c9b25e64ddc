"""Find out what this machine can do and what to change, for `lowmem-brats doctor`. Works without a GPU."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

from lowmem_brats import __version__
from lowmem_brats.config import BRATS_SHAPE, NetworkConfig, TrainConfig
from lowmem_brats.engine.precision import choose_precision, cpu_has_bf16
from lowmem_brats.errors import LowmemError, WeightsError
from lowmem_brats.memory import cuda
from lowmem_brats.memory.budget import format_bytes
from lowmem_brats.memory.device import choose_device, open_budget, unsupported_card
from lowmem_brats.memory.planner import plan_inference, plan_train
from lowmem_brats.networks import title_of
from lowmem_brats.weights.store import open_set, shipped_names

BROKEN_ADVICE = "Check the driver with nvidia-smi, close other programs on the card, or use --device cpu."


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    value: str
    advice: str = ""
    """What to do about it; empty if all is well."""


def diagnose() -> list[Finding]:
    """Check Python, torch, the processor, every card and the shipped weights; a broken part is a finding, no error."""
    plans = _plans()  # first: it measures the CUDA context, which looking at the cards would already create
    return [
        Finding("lowmem-brats", __version__),
        Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("torch", torch.__version__),
        Finding("processor", _processor()),
        *_cuda(),
        *_weights(),
        *plans,
    ]


def _processor() -> str:
    cores = os.cpu_count() or 1
    half = "bf16 in hardware" if cpu_has_bf16() else "no bf16 in hardware: fp32 is used"
    return f"{cores} cores, {torch.get_num_threads()} threads, {half}"


def _cuda() -> list[Finding]:
    if not torch.version.cuda:
        advice = "" if platform.system() == "Darwin" else "If there is an NVIDIA card, install a CUDA build of torch."
        return [Finding("CUDA", "this torch was built without it: the CPU is used", advice)]
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    build = f"{torch.version.cuda}, cuDNN {cudnn}, for {' '.join(torch.cuda.get_arch_list())}"
    build += f", driver {cuda.driver_version()}"
    if not torch.cuda.is_available():
        return [Finding("CUDA", f"{build}; no device or no driver", "Check the driver with nvidia-smi.")]
    cards = [_working_card(index) for index in range(torch.cuda.device_count())]
    return [Finding("CUDA", build), *cards]


def _working_card(index: int) -> Finding:
    try:
        return _card(index)
    except RuntimeError as error:
        return Finding(f"cuda:{index}", f"fails: {_first_line(error)}", BROKEN_ADVICE)


def _first_line(error: RuntimeError) -> str:
    """The first line of an error: CUDA's go on about debugging for a whole screen."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _card(index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    capability = torch.cuda.get_device_capability(index)
    problem = unsupported_card(properties.name, capability, torch.cuda.get_arch_list())
    value = f"{properties.name}, compute capability {capability[0]}.{capability[1]}, "
    value += f"{properties.total_memory / 2**20:.0f} MiB"
    if problem:
        return Finding(f"cuda:{index}", value, problem)
    free, _ = torch.cuda.mem_get_info(index)
    half = "bf16" if capability[0] >= 8 else "fp16 (bf16 would be emulated)"
    return Finding(f"cuda:{index}", f"{value}, {free / 2**20:.0f} MiB free, half format {half}")


def _weights() -> list[Finding]:
    """Every set that comes with the program, the default first."""
    try:
        return [_shipped(name) for name in shipped_names()]
    except WeightsError as error:
        return [Finding("weights", str(error.found), error.advice)]


def _shipped(name: str) -> Finding:
    try:
        weights = open_set(name)
    except WeightsError as error:
        return Finding("weights", f"{name}: {error.found}", error.advice)
    size = sum(file.path.stat().st_size for file in weights.files)
    return Finding("weights", f"{weights.name}, {size / 2**20:.1f} MiB, checksums right")


def _plans() -> list[Finding]:
    """How this machine would segment and train if it used all its memory."""
    network = NetworkConfig()
    try:
        device, _ = choose_device("auto")
        precision = choose_precision("auto", device)
        arguments = BRATS_SHAPE[:2], open_budget("max", device), str(device), precision
        segment = plan_inference(network, *arguments)
        train = plan_train(network, arguments[0], TrainConfig.batch, *arguments[1:])
    except LowmemError as error:
        return [Finding("plan", error.found, error.advice)]
    except RuntimeError as error:
        return [Finding("plan", f"fails: {_first_line(error)}", BROKEN_ADVICE)]
    title = f"{title_of(network)}, {device}, {precision}"
    return [
        Finding("segment", f"{title}: {segment.batch} slices at once, {format_bytes(segment.predicted_bytes)}"),
        Finding("train", f"{title}: {train.conceded or 'all slices at once'}, {format_bytes(train.predicted_bytes)}"),
    ]
