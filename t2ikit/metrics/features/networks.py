"""The published feature networks behind one contract: Inception v3, DINOv2 and CLIP.

Shape legend::

    B  images    H, W  pixels    D  features    P  patches    G  patches a side

Each is shown what its protocol shows it (``pixels.py``), in float32 without autocast. Weights come from a
local folder or the Hub by revision; their hash is part of every fingerprint.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from t2ikit.metrics.features.features import FeatureExtractor, check_images
from t2ikit.metrics.features.inception import DIM, load_inception
from t2ikit.metrics.features.pixels import describe_pipeline, preprocess_batch
from t2ikit.pretrained import load_pretrained, state_sha256

INCEPTION_VARIANTS = ("clean", "legacy_pytorch", "torch_fidelity", "torchmetrics")


class _NetworkFeatures(FeatureExtractor):
    """A network behind a pixel pipeline; on the device of the images, weights loaded at the first use."""

    def __init__(self, name: str, dim: int, pipeline: str) -> None:
        self.name = name
        self.dim = dim
        self.pipeline = pipeline
        self._settings = describe_pipeline(pipeline)
        self._loaded: tuple[nn.Module, str] | None = None

    @abstractmethod
    def _load(self) -> tuple[nn.Module, str]:
        """The network and the hash of its weights."""

    def _features(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """[B, D] of prepared pixels."""
        return network(pixels)

    @property
    def network(self) -> nn.Module:
        """The network; loaded when first asked for."""
        return self._network_and_hash()[0]

    def _network_and_hash(self) -> tuple[nn.Module, str]:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, dim] float32 of images [B, 3, H, W] uint8, on the device of the images."""
        check_images(images)
        pixels = preprocess_batch(self.pipeline, images)
        network = self.network.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            return self._features(network, pixels).to(torch.float32)

    def fingerprint(self) -> dict[str, Any]:
        """Name, hash of the weights, pixel pipeline."""
        return {"features": self.name, "features_sha256": self._network_and_hash()[1], **self._settings}


@dataclass(eq=False)
class InceptionFeatures(_NetworkFeatures):
    """Inception v3 pool3, 2048 features, for FID and KID. The variants give other numbers and never mix.

    Attributes:
        variant: "clean" (clean-fid), "legacy_pytorch" (pytorch-fid), "torch_fidelity" (the ImageNet papers' own metric
            code) or "torchmetrics": how images reach 299 x 299.
        weights: local file ``pt_inception-2015-12-05-6726825d.pth``; None downloads it through torch's hub.
    """

    variant: str = "clean"
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.variant not in INCEPTION_VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(INCEPTION_VARIANTS)}; got {self.variant!r}")
        super().__init__(f"inception_{self.variant}", DIM, f"inception_{self.variant}")

    def _load(self) -> tuple[nn.Module, str]:
        network = load_inception(self.weights)
        return network, state_sha256(network.state_dict())


@dataclass(eq=False)
class DINOv2Features(_NetworkFeatures):
    """DINOv2, the class token after the final norm, as dgm-eval and the ImageNet papers compute FD-DINOv2.

    The position table is resized from its training size to 224 pixels by the rule of the original code (a bicubic
    resize by the factor (patches + 0.1) / table side); transformers' own rule gives slightly other features.

    Attributes:
        model: a Dinov2 model of transformers: repository or local folder.
        revision: commit, branch or tag of the repository.
        dim: width of the class token, 1024 for ViT-L.
    """

    model: str = "facebook/dinov2-large"
    revision: str | None = None
    dim: int = 1024

    def __post_init__(self) -> None:
        super().__init__(f"dinov2:{self.model}", self.dim, "dinov2")

    def _load(self) -> tuple[nn.Module, str]:
        from transformers import Dinov2Model

        network, folder = load_pretrained(Dinov2Model, self.model, self.revision, "features.init_args.model")
        _check_width(network.config.hidden_size, self.dim, self.model)
        embeddings = network.embeddings
        patches = 224 // network.config.patch_size
        embeddings.position_embeddings = nn.Parameter(
            position_table(embeddings.position_embeddings, patches), requires_grad=False
        )
        return network, folder.reference.sha256

    def _features(self, network: nn.Module, pixels: Tensor) -> Tensor:
        return network(pixels).last_hidden_state[:, 0]


def position_table(table: Tensor, patches: int, offset: float = 0.1) -> Tensor:
    """DINOv2's position table for another image size, as the original code resizes it.

    Args:
        table: [1, 1 + P, D], the class token's row first; P = G x G.
        patches: patches a side of the image.
        offset: added to ``patches`` before the factor is taken, 0.1 in the released models.

    Returns:
        [1, 1 + patches^2, D].
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if side == patches:
        return table.detach().clone()
    grid = table[:, 1:].detach().to(torch.float32).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    factor = (patches + offset) / side
    resized = nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1].detach(), resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


@dataclass(eq=False)
class CLIPFeatures(_NetworkFeatures):
    """CLIP image embeddings, projected, by default of length one. CMMD takes ViT-L/14 at 336 pixels.

    Attributes:
        model: a CLIP model of transformers: repository or local folder.
        revision: commit, branch or tag of the repository.
        dim: width of the projection, 768 for ViT-L.
        pipeline: pixel pipeline, such as "cmmd_336", "cmmd_224" (with a 224 pixel model) or "clip_224".
        unit_length: divide each embedding by its length.
    """

    model: str = "openai/clip-vit-large-patch14-336"
    revision: str | None = None
    dim: int = 768
    pipeline: str = "cmmd_336"
    unit_length: bool = True

    def __post_init__(self) -> None:
        super().__init__(f"clip:{self.model}", self.dim, self.pipeline)

    @property
    def file_name(self) -> str:
        """With the pipeline, of which one model may have several, and with embeddings of any length."""
        return f"{self.name}_{self.pipeline}{'' if self.unit_length else '_any_length'}"

    def _load(self) -> tuple[nn.Module, str]:
        from transformers import CLIPVisionModelWithProjection

        network, folder = load_pretrained(
            CLIPVisionModelWithProjection, self.model, self.revision, "features.init_args.model"
        )
        _check_width(network.config.projection_dim, self.dim, self.model)
        return network, folder.reference.sha256

    def _features(self, network: nn.Module, pixels: Tensor) -> Tensor:
        embeddings = network(pixel_values=pixels).image_embeds
        return nn.functional.normalize(embeddings, dim=1) if self.unit_length else embeddings

    def fingerprint(self) -> dict[str, Any]:
        """Name, hash of the weights, pixel pipeline, and whether embeddings are of length one."""
        return {**super().fingerprint(), "unit_length": self.unit_length}


def _check_width(width: int, dim: int, model: str) -> None:
    if width != dim:
        raise ValueError(f"{model} gives {width} features, dim says {dim}: set features.init_args.dim to {width}")
