"""Inception v3 as the Frechet Inception distance uses it: the TensorFlow graph of 2015-12-05, up to pool3.

Shape legend::

    B  images    (299 x 299 pixels in, 2048 features out)

Three things differ from torchvision's network: average pooling leaves the padding out of its mean, the last block
pools by maximum, and there are 1008 classes. Weights are the published port, named as torchvision names them.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import inception as blocks

WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d"  # the first digits, which the published file carries in its name
DIM = 2048

Step = str | tuple[str, ...]


class _Branches:
    """Runs a block's layers by name: every branch in order, a tuple side by side, all outputs joined by channel."""

    BRANCHES: tuple[tuple[Step, ...], ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        return torch.cat([self._run(branch, x) for branch in self.BRANCHES], dim=1)

    def _run(self, branch: tuple[Step, ...], x: Tensor) -> Tensor:
        for step in branch:
            names = (step,) if isinstance(step, str) else step
            x = torch.cat([getattr(self, name)(x) for name in names], dim=1)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """3 x 3 average of what lies inside the image."""
        return functional.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)

    def maximum(self, x: Tensor) -> Tensor:
        """3 x 3 maximum."""
        return functional.max_pool2d(x, kernel_size=3, stride=1, padding=1)


class _BlockA(_Branches, blocks.InceptionA):
    BRANCHES = (
        ("branch1x1",),
        ("branch5x5_1", "branch5x5_2"),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        ("mean", "branch_pool"),
    )


class _BlockC(_Branches, blocks.InceptionC):
    BRANCHES = (
        ("branch1x1",),
        ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
        ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
        ("mean", "branch_pool"),
    )


class _BlockE(_Branches, blocks.InceptionE):
    BRANCHES = (
        ("branch1x1",),
        ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
        ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
        ("mean", "branch_pool"),
    )


class _LastBlock(_BlockE):
    BRANCHES = (*_BlockE.BRANCHES[:-1], ("maximum", "branch_pool"))


def build_inception() -> nn.Module:
    """The network without its classifier, random weights: [B, 3, 299, 299] float32 -> [B, 2048]."""
    parts: list[Any] = [
        blocks.BasicConv2d,
        _BlockA,
        blocks.InceptionB,
        _BlockC,
        blocks.InceptionD,
        _BlockE,
        blocks.InceptionAux,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = blocks.Inception3(num_classes=1008, aux_logits=False, inception_blocks=parts, init_weights=False)
    network.Mixed_7c = _LastBlock(2048)
    network.fc = cast(Any, nn.Identity())
    return network.eval().requires_grad_(False)


def load_inception(weights: str | None = None) -> nn.Module:
    """The network with the published weights.

    Args:
        weights: local file of a state dict named as torchvision's (``pt_inception-2015-12-05-6726825d.pth``), or None
            to take it from torch's hub cache, downloading it the first time and checking its hash.

    Raises:
        FileNotFoundError: no such file, or no way to download; names the option.
        ValueError: the file holds other weights.
    """
    if weights is None:
        try:
            state = torch.hub.load_state_dict_from_url(
                WEIGHTS_URL, progress=True, check_hash=True, map_location="cpu", weights_only=True
            )
        except OSError as error:
            raise FileNotFoundError(
                f"the Inception weights cannot be had from {WEIGHTS_URL} ({error}). Download the file elsewhere and "
                "name it with features.init_args.weights"
            ) from error
    else:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no Inception weights at {path}: correct features.init_args.weights")
        state = torch.load(path, map_location="cpu", weights_only=True)
    network = build_inception()
    wanted = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    found = {name: value for name, value in state.items() if not name.startswith(("fc.", "AuxLogits."))}
    lacking = sorted(wanted - set(found))
    if lacking:
        raise ValueError(
            f"{weights or WEIGHTS_URL} is no Inception v3: {len(lacking)} weights lack, first {lacking[0]}"
        )
    network.load_state_dict(found, strict=False)
    return network
