"""t2ikit: small text-to-image diffusion models on ImageNet, from a photo on disk to a score beside the paper's.

Importing the package loads nothing heavy; each room is imported where it is used (``t2ikit.denoisers``, ...), and
``load`` and ``train`` when they are asked for.

Example:
    >>> import t2ikit
    >>> model = t2ikit.train("quickstart", {"trainer.max_steps": 200})  # doctest: +SKIP
    >>> t2ikit.load("runs/quickstart").sample("a large red circle")     # doctest: +SKIP
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_LAZY = {"load": "t2ikit.run.trained", "train": "t2ikit.run.python"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 't2ikit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
