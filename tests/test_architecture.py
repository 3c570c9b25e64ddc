"""The house rules that a machine can check: imports go down, each library has its door, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
FILES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def unit(path: Path) -> str:
    """The top-level module or sub-package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "lowmem_brats":
                yield from (f"lowmem_brats.{alias.name}" for alias in node.names)


def test_imports_go_strictly_down() -> None:
    assert not list(imports(FILES[PACKAGE / "__init__.py"]))
    wrong = []
    for path in FILES.keys() - {PACKAGE / "__init__.py"}:
        here = unit(path)
        assert here in FLOOR_OF, f"{here} has no floor: give it one in FLOORS and in docs/architecture.md"
        for name in imports(FILES[path]):
            parts = name.split(".")
            if parts[0] == "lowmem_brats" and len(parts) > 1 and not parts[1].startswith("__") and parts[1] != here:
                wrong += [] if FLOOR_OF[parts[1]] < FLOOR_OF[here] else [f"{here} imports {parts[1]}"]
    assert not wrong, "upwards or sideways"


def test_third_party_libraries_keep_to_their_doors() -> None:
    used = {(unit(path), name.split(".")[0]) for path, module in FILES.items() for name in imports(module)}
    assert not [(here, name) for here, name in used if name in DOORS and here not in DOORS[name]]


def test_files_and_functions_stay_short() -> None:
    found = []
    for path, module in FILES.items():
        lines = len(path.read_text().splitlines())
        found += [f"{path.name} has {lines} lines"] if lines > LONGEST_FILE else []
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                found += [f"{path.name}: {node.name} has {lines} lines"] if lines > LONGEST_FUNCTION else []
                arguments = len([a for a in [*node.args.args, *node.args.kwonlyargs] if a.arg != "self"])
                found += [f"{path.name}: {node.name} has {arguments} parameters"] if arguments > MOST_PARAMETERS else []
    assert not found


def test_only_the_commands_print_and_nothing_reads_the_environment() -> None:
    found = []
    for path, module in FILES.items():
        for node in ast.walk(module):
            prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            reads = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
            if prints or reads or isinstance(node, ast.Assert):  # users never meet assert
                found.append(f"{path.name}:{node.lineno}")
    assert not found


def test_public_functions_and_classes_have_docstrings() -> None:
    for path, module in FILES.items():
        classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
        for node in [*module.body, *(member for each in classes for member in each.body)]:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node) or node.name == "invoke", f"{path.name}: {node.name}"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, lowmem_brats.cli as c; c.main(['--help'], standalone_mode=False); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "nibabel", "scipy", "PIL"} & set(shown.split())
