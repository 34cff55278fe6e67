"""What most parts import, once, in the server that their processes are forked from. CUDA is not touched here."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

torch.set_num_threads(1)  # a pool of threads would not survive the fork

import t2ikit  # noqa: E402

ROOT = Path(__file__).parents[2]
if not (Path(t2ikit.__file__).parent / "callbacks").exists():
    # A clone that is not installed: the top-level folders callbacks/ and experiments/ belong to the package.
    t2ikit.__path__.append(str(ROOT))

with contextlib.suppress(ImportError):  # a part that needs what is missing says so
    import lightning  # noqa: F401

    import t2ikit.callbacks
    import t2ikit.run.experiment
    import t2ikit.run.train
