"""Options of ``t2ikit prepare reencode``. The command line shows these texts, so nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

Format = Literal["png", "jpeg"]
NO_AUTOENCODER = "none"


@dataclass(frozen=True, kw_only=True)
class Reencoding:
    """How pictures are made again.

    Attributes:
        autoencoder: folder in the format of diffusers, or repository; "none" leaves the pixels as they are.
        revision: commit, tag or branch of the repository.
        size: side in pixels; the centre of a photo is cropped and resized, as by `images`.
        sample: sample the posterior instead of taking its mean; the noise is keyed by the name of the file.
        format: of the files: png keeps every pixel, jpeg is the control of the compression.
        quality: of jpeg.
    """

    autoencoder: Annotated[str, "NAME|FOLDER|none"]
    revision: Annotated[str | None, "REVISION"] = None
    size: int = 256
    sample: bool = False
    format: Format = "png"
    quality: int = 75

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise ValueError(f"--format is png or jpeg, got {self.format}")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"--quality is 1 to 95, got {self.quality}")
        if self.autoencoder == NO_AUTOENCODER and (self.sample or self.revision):
            raise ValueError("--sample and --revision are for an --autoencoder")

    @property
    def suffix(self) -> str:
        """Of the files."""
        return ".png" if self.format == "png" else ".jpg"
