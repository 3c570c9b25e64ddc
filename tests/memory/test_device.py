"""The device is the one asked for or a stated fallback, and its peak is counted to the byte."""

from __future__ import annotations

import pytest
import torch

from lowmem_brats.errors import InputError
from lowmem_brats.memory.device import PeakMeter, choose_device, storage_bytes, unsupported_card

CPU = torch.device("cpu")
MIB = 2**20
FLOATS_PER_MIB = MIB // 4
# What `torch.cuda.get_arch_list()` answers: torch 2.7.1 and 2.13 for CUDA 12 and later.
TORCH_2_7 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
TORCH_2_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    built: bool = True,
    available: bool = True,
    cards: int = 1,
    capability: tuple[int, int] = (8, 6),
    architectures: tuple[str, ...] = tuple(TORCH_2_13),
) -> None:
    """Make torch answer as on another machine."""
    monkeypatch.setattr(torch.version, "cuda", "13.0" if built else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(architectures))


@pytest.mark.parametrize(
    ("requested", "machine", "device", "note"),
    [
        ("cpu", {}, "cpu", None),
        ("auto", {}, "cuda:0", None),
        ("cuda", {}, "cuda:0", None),
        ("cuda:1", {"cards": 2}, "cuda:1", None),
        ("auto", {"built": False}, "cpu", None),  # nobody expects a GPU from a build for the CPU
        ("auto", {"available": False, "cards": 0}, "cpu", "no CUDA device or driver was found"),
        ("auto", {"capability": (6, 1)}, "cpu", "torch==2.7.1"),
        ("auto", {"capability": (6, 1), "architectures": TORCH_2_7}, "cuda:0", None),
    ],
)
def test_chosen_device(
    requested: str, machine: dict[str, object], device: str, note: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **machine)  # type: ignore[arg-type]
    chosen, notes = choose_device(requested)
    assert chosen == torch.device(device)
    assert len(notes) == (note is not None)
    assert note is None or (notes[0].startswith("running on the CPU: ") and note in notes[0])


@pytest.mark.parametrize(
    ("requested", "machine", "found"),
    [
        ("cuda", {"built": False}, "this torch was built without CUDA"),
        ("cuda", {"available": False, "cards": 0}, "no CUDA device or driver was found"),
        ("cuda:1", {}, r"only 1 CUDA device\(s\) found"),
        ("cuda", {"capability": (5, 2)}, r"no code for a card \(sm_52\).*torch==2\.7\.1"),
    ],
)
def test_a_named_device_is_never_replaced(
    requested: str, machine: dict[str, object], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **machine)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=found) as caught:
        choose_device(requested)
    assert caught.value.where == f"--device {requested}"


@pytest.mark.parametrize(
    ("requested", "named"), [("mps", "an Apple GPU"), ("mps:0", "an Apple"), ("xpu", "an Intel GPU")]
)
def test_the_cards_of_other_makers_are_refused_by_name(requested: str, named: str) -> None:
    with pytest.raises(InputError, match=rf"^--device {requested}: {named}.*cannot use.*Use --device cpu\."):
        choose_device(requested)


@pytest.mark.parametrize(
    "requested",
    [
        "gpu",
        "",
        "CUDA",
        "cudaX",
        "cuda:x",
        "cuda:-1",
        "cuda:99999999999999999999",
        "cuda:\u0661",
    ],
)
def test_no_such_device(requested: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(InputError, match="expected auto, cpu, cuda or cuda:N") as caught:
        choose_device(requested)
    assert caught.value.found == repr(requested)


@pytest.mark.parametrize("capability", [(5, 0), (5, 2), (6, 0), (6, 1), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0)])
def test_torch_2_7_runs_on_every_card_up_to_hopper(capability: tuple[int, int]) -> None:
    assert unsupported_card("a card", capability, TORCH_2_7) is None


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_todays_torch_runs_on_todays_cards(capability: tuple[int, int]) -> None:
    assert unsupported_card("a card", capability, TORCH_2_13) is None


@pytest.mark.parametrize("capability", [(5, 0), (5, 2), (6, 1), (7, 0)])
def test_todays_torch_does_not_run_on_old_cards(capability: tuple[int, int]) -> None:
    problem = unsupported_card("NVIDIA GeForce GTX 1060", capability, TORCH_2_13)
    assert problem is not None
    assert f"NVIDIA GeForce GTX 1060 (sm_{capability[0]}{capability[1]})" in problem
    assert "pip install torch==2.7.1" in problem


@pytest.mark.parametrize(
    ("capability", "architectures", "advice"),
    [
        ((3, 5), TORCH_2_13, "use the CPU"),
        ((3, 5), TORCH_2_7, "use the CPU"),
        ((5, 0), TORCH_2_13, "torch==2.7.1"),
        ((6, 1), TORCH_2_13, "torch==2.7.1"),
        ((12, 0), TORCH_2_7, "newest torch"),
        ((7, 5), ["sm_80"], "newest torch"),
    ],
)
def test_the_advice_fits_the_card(capability: tuple[int, int], architectures: list[str], advice: str) -> None:
    problem = unsupported_card("a card", capability, architectures) or ""
    assert [text for text in ("use the CPU", "torch==2.7.1", "newest torch") if text in problem] == [advice]


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["sm_86"], (8, 0), False),  # machine code runs upwards only,
        (["sm_80"], (8, 6), True),
        (["sm_80"], (9, 0), False),  # and within a major version only;
        (["compute_80"], (9, 0), True),  # intermediate code on everything newer,
        (["compute_80"], (8, 0), True),
        (["compute_80"], (8, 6), True),
        (["compute_80"], (7, 5), False),  # and nothing older
        (["compute_86"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_90", "compute_120"], (12, 0), True),
        ([], (8, 0), False),
    ],
)
def test_machine_and_intermediate_code(architectures: list[str], capability: tuple[int, int], runs: bool) -> None:
    assert (unsupported_card("a card", capability, architectures) is None) == runs


def mebibyte() -> torch.Tensor:
    """Return a new tensor of 1 MiB."""
    return torch.ones(FLOATS_PER_MIB)


def test_peak_is_what_was_alive_at_once() -> None:
    with PeakMeter(CPU) as meter:
        one = mebibyte()
        two = one + 1  # 2 MiB
        del one
        three = two + 1  # still 2 MiB
        del two, three
        for _ in range(5):
            mebibyte()  # never more than 1
    assert meter.peak_bytes == 2 * MIB


def test_three_at_once() -> None:
    with PeakMeter(CPU) as meter:
        one = mebibyte()
        two = one * 2
        three = torch.cat([one, two])  # 1 + 1 + 2
    assert meter.peak_bytes == 4 * MIB
    assert three.numel() == 2 * FLOATS_PER_MIB


def test_views_and_in_place_operations_cost_nothing() -> None:
    with PeakMeter(CPU) as meter:
        one = mebibyte()
        view = one.view(-1, 2)[::2].T
        view.mul_(3).add_(1)
        one.relu_()
        del one
        same = view.detach()
    assert meter.peak_bytes == MIB
    assert same.numel() == FLOATS_PER_MIB // 2


@pytest.mark.parametrize(("count", "size"), [(1, 512), (128, 512), (129, 1024), (0, 0)])
def test_sizes_are_rounded_up_to_512(count: int, size: int) -> None:
    assert storage_bytes(torch.zeros(count)) == size
    with PeakMeter(CPU) as meter:
        kept = torch.zeros(count)
    assert meter.peak_bytes == size == storage_bytes(kept)


def test_residents_count_once_and_until_they_are_freed() -> None:
    weight = mebibyte()
    meter = PeakMeter(CPU, weight, weight, weight.view(2, -1))
    assert meter.peak_bytes == MIB
    with meter:
        two = weight + 1
        del weight
        three = two + 1
    assert meter.peak_bytes == 2 * MIB
    assert three.numel() == FLOATS_PER_MIB


def test_what_happens_outside_the_block_does_not_count() -> None:
    with PeakMeter(CPU) as meter:
        mebibyte()
    torch.cat([mebibyte(), mebibyte()])
    assert meter.peak_bytes == MIB


def test_the_block_ends_on_errors_too() -> None:
    meter = PeakMeter(CPU)
    with pytest.raises(ZeroDivisionError), meter:
        raise ZeroDivisionError
    mebibyte()
    assert meter.peak_bytes == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_peak_is_the_allocators() -> None:
    device = torch.device("cuda:0")
    before = torch.cuda.memory_allocated(device)
    with PeakMeter(device) as meter:
        one = torch.ones(FLOATS_PER_MIB, device=device)
        two = one + 1
        del one, two
    assert meter.peak_bytes - before == 2 * MIB
