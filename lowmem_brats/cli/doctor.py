"""`lowmem-brats doctor`."""

from __future__ import annotations

import click

from lowmem_brats.cli import console


@click.command()
def doctor() -> None:
    """Check torch, CUDA, driver, card, processor and weights on this machine, and say what to change. Needs no GPU."""
    from lowmem_brats.doctor import diagnose

    findings = diagnose()
    for finding in findings:
        console.out.print(f"{finding.name:<14}{finding.value}", soft_wrap=True, markup=False)
    for finding in findings:
        if finding.advice:
            console.warn(f"{finding.name}: {finding.advice}")
