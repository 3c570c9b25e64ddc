"""How the images of a case are found: the options of commands that read one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lowmem_brats.cli import options
from lowmem_brats.config import MODALITIES, TrainConfig
from lowmem_brats.config.shared import INPUT
from lowmem_brats.data.case_files import CaseFiles, find_case


@dataclass(frozen=True)
class Search:
    """How the images of a case are found."""

    explicit: dict[str, Path]
    """Modality → file, for those that the user named."""
    allow_missing: tuple[str, ...]

    @classmethod
    def by(cls, allow_missing: tuple[str, ...], **images: Path | None) -> Search:
        """As the options say."""
        return cls({modality: path for modality, path in images.items() if path}, allow_missing)

    def case(self, path: Path) -> CaseFiles:
        """As `find_case`."""
        return find_case(path, self.explicit, self.allow_missing)


def image_options(command: options.Command) -> options.Command:
    """Options that name a case's images, and those that may be missing; `gathered` makes a Search of them."""
    for add in reversed(
        (
            _image("t1", "T1 image, if its name is not understood; likewise:"),
            _image("t1ce", "T1 with contrast agent."),
            _image("t2", "T2 image."),
            _image("flair", "FLAIR image."),
            options.of(TrainConfig, "allow_missing", section=INPUT),
        )
    ):
        command = add(command)
    return command


gathered = options.gather("search", (*MODALITIES, "allow_missing"), Search.by)
"""Give a command the parameters of `image_options` as one Search."""


def _image(modality: str, text: str) -> Callable[[options.Command], options.Command]:
    return options.option(f"--{modality}", type=options.FILE, help=text, section=INPUT)
