"""`python -m lowmem_brats`, and the console script."""

from __future__ import annotations

from lowmem_brats import cli
from lowmem_brats.cli.signals import ending_in_order


def main() -> None:
    """Run the command that this process was started with."""
    with ending_in_order():
        cli.main()


if __name__ == "__main__":
    main()
