"""The house rules that a machine can check: imports go down, each library has its door, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lowmem_brats

PACKAGE = Path(lowmem_brats.__file__).parent
FLOORS = (
    ("errors",),
    (
        "config",
        "geometry",
        "labels",
        "files",
        "metrics",
        "naming",
        "parallel",
        "patients",
        "read_ahead",
        "readable",
        "routing",
        "run_lock",
    ),
    (
        "brain",
        "case_files",
        "nifti",
        "slices",
        "augment",
        "loss",
        "postprocess",
        "optimisation",
        "phantom",
        "networks",
        "precision",
        "checkpoint",
        "figures",
    ),
    ("case", "memory", "case_list", "result_path"),
    ("weights", "slice_cache"),
    ("predict", "dataset"),
    ("batches", "validate"),
    ("fit",),
    ("segment", "evaluate", "preview", "bench", "doctor", "train_report"),
    ("held_out", "run_folder", "training_data"),
    ("train_networks",),
    ("train",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
DOORS = {
    "nibabel": {"nifti"},
    "click": {"cli"},
    "rich": {"cli"},
    "PIL": {"preview", "figures", "run_folder"},
    "safetensors": {"weights", "checkpoint"},
    "scipy": {"brain", "metrics", "postprocess", "phantom", "preview", "figures"},
}
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 300, 60, 8
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The top-level module or sub-package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "lowmem_brats":
                yield from (f"lowmem_brats.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_strictly_down(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert not list(imports(path))
        return
    here = unit(path)
    assert here in FLOOR_OF, f"{here} has no floor: give it one in FLOORS and in docs/architecture.md"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "lowmem_brats" and len(parts) > 1 and not parts[1].startswith("__") and parts[1] != here:
            assert FLOOR_OF[parts[1]] < FLOOR_OF[here], f"{here} imports {parts[1]} upwards or sideways"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_third_party_libraries_keep_to_their_doors(path: Path) -> None:
    for name in imports(path):
        allowed = DOORS.get(name.split(".")[0])
        assert allowed is None or unit(path) in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines"
            arguments = [a for a in [*node.args.args, *node.args.kwonlyargs] if a.arg != "self"]
            assert len(arguments) <= MOST_PARAMETERS, f"{node.name} has {len(arguments)} parameters"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_only_the_commands_print_and_nothing_reads_the_environment(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv"), f"{path.name}:{node.lineno}"
        assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno}: users never meet assert"


def test_public_functions_and_classes_have_docstrings() -> None:
    for path in FILES:
        module = ast.parse(path.read_text())
        classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
        for node in [*module.body, *(member for each in classes for member in each.body)]:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node) or node.name == "invoke", f"{path.name}: {node.name}"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, lowmem_brats.cli as c; c.main(['--help'], standalone_mode=False); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "nibabel", "scipy", "PIL"} & set(shown.split())
