"""What installing this project and its peers brings along: packages and MiB, in all and beside torch.

    python benchmarks/bench_install.py OUT.json

Each product gets a fresh virtual environment in which torch comes first, the same for all, with what torch needs
itself. Sizes are those of all files in site-packages, byte code included. Needs a network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lowmem_brats.cli.bench import conditions

TORCH = f"torch=={torch.__version__.partition('+')[0]}"
PRODUCTS = {
    "lowmem-brats": str(Path(__file__).parent.parent),
    "MONAI bundle": "monai[fire,ignite,nibabel]",
    "nnU-Net": "nnunetv2",
}


def installed(python: Path) -> dict[str, str]:
    """Package → version."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True).stdout
    return {package["name"]: package["version"] for package in json.loads(listed)}


def mebibytes(folder: Path) -> float:
    """Of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def install(name: str, folder: Path) -> dict[str, object]:
    """A product's row, from its own environment in `folder`."""
    venv.create(folder, with_pip=True)
    python, site = folder / "bin" / "python", next(folder.glob("lib/python*/site-packages"))
    steps = [(installed(python), mebibytes(site))]
    for requirements in ([TORCH], [TORCH, PRODUCTS[name]]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *requirements], check=True)
        steps.append((installed(python), mebibytes(site)))
    (empty, empty_mib), (torch_alone, torch_mib), (packages, mib) = steps
    return {
        "product": name,
        "packages": len(packages) - len(empty),
        "packages_beside_torch": len(packages) - len(torch_alone),
        "mib": round(mib - empty_mib, 1),
        "mib_beside_torch": round(mib - torch_mib, 1),
        "versions": packages,
    }


def main() -> None:
    """Install every product and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    rows = []
    for name in PRODUCTS:
        with TemporaryDirectory() as folder:
            rows.append(install(name, Path(folder)))
        print({key: value for key, value in rows[-1].items() if key != "versions"}, flush=True)
    command = {"command": "python benchmarks/bench_install.py OUT.json"}
    stated = conditions("cpu") | command | {"repeats": 1, "statistic": "one installation each", "torch": TORCH}
    options.out.write_text(json.dumps(stated | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
