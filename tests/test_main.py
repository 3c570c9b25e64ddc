"""Signals end a real process in order: the exit code of the signal, and no half-written file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lowmem_brats.cli import main

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
SLOW_WRITE = """
import nibabel, time
def save(image, path):
    path.write_bytes(b"half a file")
    print("ready", flush=True)
    time.sleep(60)
nibabel.save = save
"""
ENDLESS_NETWORK = """
import lowmem_brats.segment.regions as segment
def predict(network, slices_ZCHW, *others):
    import torch
    network, parts = network(0), torch.from_numpy(slices_ZCHW[10:12]).float()
    print("ready", flush=True)
    while True:
        network(parts)
segment.predict_stack = predict
"""
DROPPING_LIBRARY = """
import lowmem_brats.cli, signal, time, weakref
class Freed: pass
def command():
    freed = Freed()
    weakref.finalize(freed, signal.raise_signal, signal.SIGTERM)
    del freed  # Python drops what the handler raises in here
    try:
        signal.raise_signal(signal.SIGTERM)
    except SystemExit:
        pass  # as a library that turns it into an error of its own
    print("ready", flush=True)
    time.sleep(60)
lowmem_brats.cli.main = command
"""
AS_USUAL = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""Tests that run in the background inherit that Ctrl-C is ignored."""
RUN = "from lowmem_brats.__main__ import main; main()"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(change, *arguments)`: the program in a process of its own, changed, when it has said that it is ready."""
    started = []

    def begin(change: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", AS_USUAL + change + RUN, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        for line in process.stdout:
            if line == "ready\n":
                return process
        raise AssertionError(process.communicate()[1])

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("change", "number", "code"),
    [
        pytest.param(SLOW_WRITE, signal.SIGTERM, 143, id="writing"),
        pytest.param(ENDLESS_NETWORK, signal.SIGINT, 1, id="network"),
    ],
)
def test_a_signal_leaves_no_partial_file(
    tmp_path: Path, start: Start, pristine: Path, tiny: Path, change: str, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    process = start(change, "segment", pristine, "-o", out, "--weights", tiny, "--device", "cpu", "-q")
    process.send_signal(number)
    output = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "Traceback" not in output[1]
    assert not list(out.iterdir())


def test_a_signal_that_is_dropped_comes_again(start: Start) -> None:
    process = start(DROPPING_LIBRARY)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 143


def test_under_torchrun_a_signal_ends_the_process_at_once() -> None:
    change = """
import lowmem_brats.cli, signal
from lowmem_brats.cli import signals
def command():
    signals.end_at_once_under_torchrun()
    signal.raise_signal(signal.SIGTERM)
lowmem_brats.cli.main = command
"""
    run = [sys.executable, "-c", change + RUN]
    assert subprocess.run(run, check=False).returncode == 143
    under_torchrun = os.environ | {"TORCHELASTIC_RUN_ID": "1"}
    assert subprocess.run(run, check=False, env=under_torchrun).returncode == -signal.SIGTERM


def test_a_signal_that_the_parent_ignores_is_ignored() -> None:
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{RUN}"
    change = "import lowmem_brats.cli, signal; lowmem_brats.cli.main = lambda: signal.raise_signal(signal.SIGHUP)\n"
    assert subprocess.run([sys.executable, "-c", change + code], check=False).returncode == 0


def test_the_commands_alone_handle_no_signal(capsys: pytest.CaptureFixture[str]) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    main(["--version"], standalone_mode=False)
    assert {number: signal.getsignal(number) for number in before} == before
