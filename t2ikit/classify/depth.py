"""The structure of a picture: its depth map by Depth Anything, which is made once and kept as a PNG.

Source: Yang et al., "Depth Anything V2", 2024; the steps around the network are those of the released code of SynthReal
(arXiv 2602.19946).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit import ranks
from t2ikit.classify.pictures import Pictures
from t2ikit.files import write_whole
from t2ikit.photos import compress, decompress
from t2ikit.pretrained import PretrainedFolder, cache_folder, find_pretrained, load_pretrained

_OPTION = "data.depth_model"


@dataclass
class DepthMaps:
    """Depth maps of pictures, in a folder of the user's cache that belongs to the weights of the network.

    Attributes:
        model: Depth Anything of transformers, with its processor: a local folder or a repository of the Hub.
        revision: of the repository.
    """

    model: str = "depth-anything/Depth-Anything-V2-Large-hf"
    revision: str | None = None

    @cached_property
    def source(self) -> PretrainedFolder:
        """The files of the network.

        Raises:
            FileNotFoundError, ValueError: there are none; names ``data.depth_model``.
        """
        return find_pretrained(self.model, self.revision, _OPTION, ("preprocessor_config.json",))

    def path(self, sha256: str) -> Path:
        """Where the map of a picture is kept."""
        return cache_folder() / "depth" / self.source.reference.sha256[:32] / sha256[:2] / f"{sha256}.png"

    def read(self, sha256: str) -> np.ndarray:
        """The map of a picture, [3, h, w] uint8, three equal channels; see :meth:`make`."""
        return decompress(self.path(sha256).read_bytes())

    def make(self, pictures: Pictures, device: torch.device | str, option: str) -> None:
        """Makes the maps that are missing; what a killed process has made stays.

        Args:
            pictures: checked ones.
            device: where the network runs.
            option: what names them, for the progress bar.

        Raises:
            ValueError: the folder holds another kind of network.
        """
        missing = [row for row, fact in enumerate(pictures.facts) if not self.path(fact.sha256).is_file()]
        if not missing:
            return
        network, process = self._load(device)
        for row in tqdm(missing, desc=f"depth of {option}", unit="img", leave=False, disable=None):
            ranks.stop_if_asked()
            depth = network(**process(centre_square(pictures.read(row)))).predicted_depth[0]
            picture = np.repeat(to_grey(depth, pictures.keys[row])[None], 3, axis=0)
            write_whole(self.path(pictures.facts[row].sha256), compress(picture, "png"))

    def _load(self, device: torch.device | str) -> tuple[Any, Any]:
        """The network, and what makes its input of a picture."""
        from transformers import AutoImageProcessor, DepthAnythingForDepthEstimation

        network, source = load_pretrained(DepthAnythingForDepthEstimation, self.model, self.revision, _OPTION)
        try:
            processor = AutoImageProcessor.from_pretrained(source.folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.model} has no image processor ({error}): give another with {_OPTION}") from error

        def process(picture: np.ndarray) -> dict[str, Tensor]:
            inputs = processor(images=picture, input_data_format="channels_first", return_tensors="pt")
            return {"pixel_values": inputs["pixel_values"].to(device)}

        return torch.inference_mode()(network.to(device)), process


def centre_square(picture: np.ndarray) -> np.ndarray:
    """The centre square of [3, H, W], as large as it can be; odd rests go to right and bottom."""
    height, width = picture.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[:, top : top + side, left : left + side]


def to_grey(depth: Tensor, name: str = "a picture") -> np.ndarray:
    """A map [h, w] from its least to its largest value as 0 .. 255, cut off, not rounded: [h, w] uint8.

    A constant map becomes 0, with a warning: the released program divides 0 by 0.
    """
    depth = depth.detach().float().cpu()
    low, high = depth.min(), depth.max()
    if low == high:
        warnings.warn(f"the depth map of {name} is constant: it becomes black", stacklevel=2)
        return np.zeros(tuple(depth.shape), np.uint8)
    return ((depth - low) / (high - low) * 255).to(torch.uint8).numpy()
