"""A program that captions with a tiny shard, notes what it captions, and kills itself where it is told to."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2ikit.prepare.captions import from_model as captions_model
from t2ikit.prepare.captions.captioner import Captioner, Decoding, Prompts
from t2ikit.prepare.captions.captions import prepare_captions
from t2ikit.prepare.engine.launch import Launch

captions_model.SHARD = 2


class Noting(Captioner):
    """Describes an image by its mean colour and its prompt; appends each key to a file."""

    kind = "llava"
    model = "noting"

    def __init__(self, notes: Path, deadly: int | None = None) -> None:
        super().__init__(Prompts(), Decoding())
        self.notes = notes
        self.deadly = deadly
        self.count = 0

    def setup(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def answers(self, images: list[np.ndarray], metadata: list[dict[str, Any]], attempt: int = 0) -> list[str]:
        answers = []
        for image, own in zip(images, metadata, strict=True):
            if self.count == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            with self.notes.open("a") as stream:
                stream.write(f"{own['key']}\n")
            answers.append(f"{self.prompts.of(own)} It is of colour {image.mean():.4f}. And")
        return answers


def main(root: str, notes: str, devices: str, deadly: str = "") -> None:
    captioner = Noting(Path(notes), int(deadly) if deadly else None)
    launch = Launch("cpu", devices, batch_size=2)
    print(*prepare_captions(root, captioner=captioner, launch=launch), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
