"""Records of cases, and the table and the page that are made of them."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pages import Read

from lowmem_brats.cohort.records import Records
from lowmem_brats.cohort.tables import Tables
from lowmem_brats.segment.result_path import Outputs

VOLUMES = {"wt": 30.5, "tc": 12.25, "et": 0.1 + 0.2, "necrotic core": 11.95, "oedema": 18.25}
FACTS: dict[str, Any] = {
    "measurements": {"volumes_ml": VOLUMES},
    "doubtful_millilitres": {"wt": 0.5, "et": 0.25},
    "expected_dice": {"wt": {"dice": 0.9123, "low": 0.8, "high": 0.95}, "et": {"dice": 0.65, "low": 0.3, "high": 0.8}},
    "warnings": ["odd", "1 < 2 & 3"],
    "seconds": {"load": 1.25, "wt": 2.5},
    "peak_bytes": 3 * 2**19,
}
ORIGIN = "0011223344556677"


def add_done(records: Records, name: str, **facts: Any) -> Path:
    """Results of a case and their record; returns the case's path."""
    outputs = Outputs.beside(records.out / f"{name}_seg.nii.gz", name, preview=True, page=True)
    for path in outputs.paths:
        path.touch()
    records.write_done(Path("cases", name), outputs, ORIGIN, FACTS | {"case_id": name} | facts)
    return Path("cases", name)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    out = tmp_path / "out"
    (out / "records").mkdir(parents=True)
    return Records(out)


def rows(records: Records) -> dict[str, dict[str, str]]:
    with (records.out / "cohort.csv").open(newline="") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def test_a_record_holds_what_was_made(records: Records) -> None:
    case = add_done(records, "a")
    record = dict(records.read(case))
    assert record.pop("host")
    assert record.pop("finished").startswith("20")
    assert record == {
        "case": "cases/a",
        "case_id": "a",
        "status": "done",
        "output": "a_seg.nii.gz",
        "preview": "a_preview.png",
        "page": "a.html",
        "origin": ORIGIN,
        "volumes_ml": VOLUMES | {"et": 0.3},
        "expected_dice": {"wt": 0.912, "et": 0.65},
        "doubtful_ml": 0.75,
        "warnings": ["odd", "1 < 2 & 3"],
        "seconds": 3.75,
        "peak_bytes": 1572864,
    }
    assert records.is_done(case, ORIGIN)
    assert not records.is_done(case, "another")
    assert not records.is_done(Path("other", "a"), ORIGIN), "a case of the same name elsewhere is another"


def test_an_error_replaces_no_record_of_a_result_that_is_there(records: Records) -> None:
    case = add_done(records, "a")
    records.write_failed(case, "a", "odd", "")
    assert records.is_done(case, ORIGIN)
    (records.out / "a_seg.nii.gz").unlink()
    records.write_failed(case, "a", "odd", "Traceback")
    assert records.read(case)["status"] == "failed"
    assert records.read(case)["traceback"] == "Traceback"


def test_what_is_no_record_counts_for_nothing(records: Records) -> None:
    case = add_done(records, "a")
    records.path(case).write_text('{"case": "cases/a"')
    (records.out / "records" / ".partial-00-b.json").write_text(json.dumps({"case": "b", "case_id": "b", "status": 1}))
    (records.out / "records" / "c.json").write_text("[]")
    assert records.all() == []
    assert not records.is_done(case, ORIGIN)


def test_the_table(records: Records) -> None:
    add_done(records, "b", peak_bytes=None, seconds=None)
    add_done(records, "a")
    records.write_failed(Path("cases", "c"), "c", 'c: bad, "quoted"\nand more', "")
    Tables(records).refresh(last=True)
    found = rows(records)
    assert list(found) == ["a", "b", "c"]
    columns = [f"{key}_ml" for key in ("wt", "tc", "et", "necrotic_core", "oedema", "doubtful")]
    assert [found["a"][each] for each in columns] == ["30.5", "12.25", "0.3", "11.95", "18.25", "0.75"]
    assert [found["a"][f"{key}_expected_dice"] for key in ("wt", "tc", "et")] == ["0.912", "", "0.65"]
    assert [found["a"][each] for each in ("seconds", "peak_mib", "warnings")] == ["3.75", "1.5", "odd | 1 < 2 & 3"]
    assert [found["b"][each] for each in ("seconds", "peak_mib", "wt_ml")] == ["", "", "30.5"]
    assert [found["c"][each] for each in ("status", "output", "wt_ml")] == ["failed", "", ""]
    assert found["c"]["error"] == 'c: bad, "quoted"\nand more'


def test_a_record_that_comes_meanwhile_is_in_the_table(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another part may write its last record, and its table, between reading and writing here."""
    add_done(records, "a")
    read_all, calls = Records.all, []

    def slow(self: Records) -> Any:
        found = read_all(self)
        if not calls:
            add_done(records, "b")
        calls.append(len(found))
        return found

    monkeypatch.setattr(Records, "all", slow)
    Tables(records).refresh(last=True)
    assert calls == [1, 2]
    assert list(rows(records)) == ["a", "b"]


def test_tables_are_not_written_all_the_time(records: Records) -> None:
    tables = Tables(records)
    add_done(records, "a")
    tables.refresh(last=False)
    assert list(rows(records)) == ["a"]
    tables._next = float("inf")
    add_done(records, "b")
    tables.refresh(last=False)
    assert list(rows(records)) == ["a"]
    tables.refresh(last=True)
    assert list(rows(records)) == ["a", "b"]


def test_the_page_escapes_every_text_and_links_every_file(records: Records) -> None:
    name = "a<b>&\"'"
    add_done(records, name, warnings=["</script><script>alert(1)</script>"])
    records.write_failed(Path("cases", "c"), "c", "<i>bad</i>", "")
    Tables(records).refresh(last=True)
    page = Read((records.out / "index.html").read_text())
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    address = "a%3Cb%3E%26%22%27"
    assert links == [f"{address}_preview.png", f"{address}.html", "records/", "cohort.csv"]
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"] == [f"{address}_preview.png"]
    assert [tag for tag, _ in page.tags if tag in ("i", "b")] == []
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    texts = "".join(text for _, text in page.texts)
    assert "2 cases, 1 failed, 1 with warnings" in texts
    assert "0.65" in texts, "the least of the expected Dice"
    assert name in texts
    assert "<i>bad</i>" in texts


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes")
def test_names_of_any_bytes(records: Records) -> None:
    add_done(records, os.fsdecode(b"caf\xe9"))
    Tables(records).refresh(last=True)
    assert "caf%E9.html" in (records.out / "index.html").read_text()
    assert list(rows(records)) == [r"caf\udce9"]


def test_a_failure_replaces_a_record_that_names_no_result(records: Records) -> None:
    case = add_done(records, "d")
    path = records.path(case)
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "output"}))
    records.write_failed(case, "d", "odd", "")
    assert records.read(case)["status"] == "failed"
