"""Inception v3 as the Frechet Inception distance uses it: the TensorFlow graph of 2015-12-05, up to pool3.

Shape legend::

    B  images    (299 x 299 pixels in, 2048 features out)

Three things differ from torchvision's network: average pooling leaves the padding out of its mean, the last block
pools by maximum, and there are 1008 classes. The blocks are clean-fid's own. Its class ``InceptionV3`` downloads the
weights while it is built and renames them, so the network here is torchvision's with these blocks: the names of the
published weights, and with them their hash in a fingerprint, stay.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from cleanfid.inception_pytorch import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
from torch import nn
from torchvision.models import inception

WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
DIM = 2048


def build_inception() -> nn.Module:
    """The network without its classifier, random weights: [B, 3, 299, 299] float32 -> [B, 2048]."""
    blocks: list[Any] = [
        inception.BasicConv2d,
        FIDInceptionA,
        inception.InceptionB,
        FIDInceptionC,
        inception.InceptionD,
        FIDInceptionE_1,
        inception.InceptionAux,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = inception.Inception3(num_classes=1008, aux_logits=False, inception_blocks=blocks, init_weights=False)
    network.Mixed_7c = FIDInceptionE_2(2048)
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
                f"the Inception weights cannot be downloaded from {WEIGHTS_URL} ({error}). Download the file "
                "elsewhere and name it with features.init_args.weights"
            ) from error
    else:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no Inception weights at {path}: correct features.init_args.weights")
        state = torch.load(path, map_location="cpu", weights_only=True)
    network = build_inception()
    wanted = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    kept = {name: value for name, value in state.items() if not name.startswith(("fc.", "AuxLogits."))}
    missing = sorted(wanted - set(kept))
    if missing:
        raise ValueError(
            f"{weights or WEIGHTS_URL} is no Inception v3: it lacks {len(missing)} weights, first {missing[0]}"
        )
    network.load_state_dict(kept, strict=False)
    return network
