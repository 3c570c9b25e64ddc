"""The house rules that a machine can check: imports go down, each library has its door, files stay short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import lowmem_brats

PACKAGE = Path(lowmem_brats.__file__).parent
ROOMS = (
    "errors",
    "config",
    "files",
    "data",
    "networks",
    "engine",
    "memory",
    "weights",
    "evaluate",
    "measure",
    "segment",
    "train",
    "prepare",
    "pictures",
    "cohort",
    "doctor",
    "bench",
    "api",
    "cli",
    "__main__",
)
"""The folders and files of the package: a room imports only from rooms that stand before it."""
DOORS = {
    "nibabel": {"data.nifti"},
    "click": {"cli"},
    "rich": {"cli"},
    "PIL": {"pictures"},
    "safetensors": {"weights"},
    "dask": {"cohort.engine"},
    "distributed": {"cohort.engine"},
    "SimpleITK": set(),  # prepare.extra imports it by name, when it is used; so too:
    "dcm2niix": set(),
    "deepbet": set(),
    "pydicom": set(),
    "highdicom": set(),
    "monai": set(),  # networks.segresnet and networks.nnunet import them by name, when they build a network
    "dynamic_network_architectures": set(),
    "panoptica": {"evaluate.lesion_wise"},
    "scipy": {
        "data.brain",
        "data.exchanged",
        "data.phantom",
        "data.whole",
        "evaluate.metrics",
        "measure",
        "pictures",
        "prepare",
        "segment.boxes",
        "segment.cleanup",
        "segment.native",
    },
}
"""Library → the only rooms or modules that import it."""
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 300, 60, 8
FILES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path: Path) -> str:
    """`data.nifti`; for the file that introduces a room, the room."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    return name.split(".")[0]


def imports(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def own_imports() -> dict[str, set[str]]:
    """Module → the modules of the package that it imports."""
    names = {name_of(path) for path in FILES}
    found: dict[str, set[str]] = {}
    for path, module in FILES.items():
        written = [each.removeprefix("lowmem_brats.") for each in imports(module) if each.startswith("lowmem_brats.")]
        found[name_of(path)] = {each if each in names else each.rpartition(".")[0] for each in written} - {""}
    return found


def test_rooms_import_only_from_rooms_before_them() -> None:
    order = {room: place for place, room in enumerate((*ROOMS, "__init__"))}
    assert {room_of(name) for name in own_imports()} == order.keys()
    wrong = [
        f"{name} imports {other}"
        for name, others in own_imports().items()
        for other in others & own_imports().keys()
        if room_of(other) != room_of(name) and order[room_of(other)] >= order[room_of(name)]
    ]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others() -> None:
    left = {name: others & own_imports().keys() - {name} for name, others in own_imports().items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, "a circle, and what imports it"


def test_a_training_draws_nothing_and_reads_top_down() -> None:
    found = own_imports()
    assert not [
        f"{name} imports {other}"
        for name, others in found.items()
        if room_of(name) == "train"
        for other in others
        if room_of(other) == "pictures"
    ]
    assert len(found["train.run"] & found.keys()) < 12


def test_the_rooms_are_in_the_documents() -> None:
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    rooms = [row.strip("`/ ") for row in re.findall(r"^\| (`[a-z_]+/?`) \|", text, re.MULTILINE)]
    assert rooms == list(ROOMS)


def test_third_party_libraries_keep_to_their_doors() -> None:
    used = {(name_of(path), each.split(".")[0]) for path, module in FILES.items() for each in imports(module)}
    assert not [row for row in used if row[1] in DOORS and not {row[0], room_of(row[0])} & DOORS[row[1]]]


def test_files_and_functions_stay_short() -> None:
    found = []
    for path, module in FILES.items():
        lines = len(path.read_text().splitlines())
        found += [f"{path.name} has {lines} lines"] if lines > LONGEST_FILE else []
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                found += [f"{path.name}: {node.name} has {lines} lines"] if lines > LONGEST_FUNCTION else []
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                arguments = len([a for a in given if a.arg not in ("self", "cls")])
                found += [f"{path.name}: {node.name} has {arguments} parameters"] if arguments > MOST_PARAMETERS else []
    assert not found


def test_no_command_hides_parameters_behind_two_stars() -> None:
    """Its settings arrive as one configuration, which `options.gather` makes."""
    commands = [
        node
        for path, module in FILES.items()
        if room_of(name_of(path)) == "cli"
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and "click.command" in "".join(map(ast.unparse, node.decorator_list))
    ]
    assert len(commands) >= 8
    assert [node.name for node in commands if node.args.kwarg] == []


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
    help_of = "c.main([*words, '--help'], standalone_mode=False)"
    code = f"import sys, lowmem_brats.cli as c\nfor words in ([], ['train']): {help_of}\nprint(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "nibabel", "scipy", "PIL"} & set(shown.split())
