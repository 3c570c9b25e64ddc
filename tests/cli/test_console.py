"""Text is shown on streams of any encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from lowmem_brats.cli import console

OWN = "1 × 2 · 3 ÷ 4 – 5 − 6 mm³ … → ─"
SHOW = f"""
from lowmem_brats.cli import console
console.show_any_text()
table = console.table("case", "mm³")
table.add_row("病例-\\udce9-é", "1 × 2")
console.out.print(table)
console.out.print({OWN!r})
console.warn("病例-\\udce9-é")
"""


@pytest.mark.parametrize("encoding", ["cp932", "gbk", "cp1252", "ascii", "cp437", "utf-8", "latin-1"])
def test_every_text_is_shown_whatever_the_encoding(encoding: str) -> None:
    settings = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    result = subprocess.run([sys.executable, "-c", SHOW], env=settings, capture_output=True, check=True)
    out, err = (stream.decode(encoding) for stream in (result.stdout, result.stderr))
    assert out.count("\n") == 4  # headings, a rule, a row, a line
    assert r"\udce9" in err
    assert ("病例" in err) == (encoding in ("utf-8", "cp932", "gbk"))
    if encoding == "ascii":
        assert out.splitlines()[-1] == "1 x 2 | 3 / 4 - 5 - 6 mm3 ... -> -"
        assert err == "warning: \\u75c5\\u4f8b-\\udce9-\\xe9\n"
    if encoding == "utf-8":
        assert out.splitlines()[-1] == OWN


def test_only_text_that_cannot_be_encoded_is_replaced() -> None:
    assert "é 中 ·".encode("latin-1", "lowmem-brats") == b"\xe9 \\u4e2d \xb7"
    with pytest.raises(UnicodeDecodeError):
        b"\xe9".decode("utf-8", "lowmem-brats")


def test_streams_that_cannot_be_changed_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # closed before the start
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    console.show_any_text()
