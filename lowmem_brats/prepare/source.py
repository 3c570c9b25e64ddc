"""Where the images of a study come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowmem_brats.errors import InputError
from lowmem_brats.files import add_to_checksum

ANCHOR = "t1ce"
"""The others are laid on it, and it gives the grid."""


@dataclass(frozen=True)
class Source:
    """Where one modality comes from."""

    image: Path
    """A NIfTI file: the user's, or made of DICOM files."""
    files: tuple[Path, ...]
    """The user's files."""
    named: str
    """What to call it on the screen; may name the patient, so it is not written into outputs."""
    reason: str
    """Why it is taken for this modality; holds nothing that could name a patient."""

    def checksum(self) -> str:
        """As `checksum_of` the user's files."""
        return checksum_of(self.files)


@dataclass(frozen=True)
class Study:
    """The images of one patient as they came from the scanner."""

    sources: Mapping[str, Source]
    """Modality → where it comes from."""
    kind: str
    """`NIfTI` or `DICOM`."""
    notes: tuple[str, ...]
    """What was not used, and why."""


def checksum_of(files: Sequence[Path]) -> str:
    """Of the files' bytes, in order. Raises InputError for one that cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        add_to_checksum(digest, path)
    return digest.hexdigest()


def check_anchor(path: Path, sources: Mapping[str, Source]) -> None:
    """Raise InputError for a study without T1ce."""
    if ANCHOR not in sources:
        advice = "Name it with --t1ce; a case without T1ce cannot be prepared."
        raise InputError(path, "no T1ce", "T1ce, on which the other images are laid", advice)
