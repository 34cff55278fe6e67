"""Learned rewards of images and prompts: PickScore, LAION aesthetic, HPSv2, ImageReward.

Shape legend::

    N  images with their prompts    D  embedding width

Every reward is the mean over the images of a set. The networks are the published ones; HPSv2 needs ``open_clip``, an
optional package (``pip install "t2ikit[rewards]"``).
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from t2ikit.metrics.alignment.clip_score import mean_error, pair_cosines
from t2ikit.metrics.alignment.image_reward import image_reward, linear_head, load_image_reward, tokenize
from t2ikit.metrics.base import Metric, Result, Rows, SampleBatch, Samples
from t2ikit.metrics.features.clip import CLIPEncoder
from t2ikit.metrics.features.pixels import describe_pipeline, preprocess_batch
from t2ikit.pretrained import state_sha256

__all__ = ["AestheticHead", "AestheticScore", "HPSv2", "ImageReward", "PickScore", "image_reward", "pick_scores"]


def pick_scores(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: float) -> Tensor:
    """PickScore [N] float64 (Kirstain et al. 2023): ``exp(logit_scale) cos`` of each image and its prompt.

    Args:
        image_embeddings: [N, D].
        text_embeddings: [N, D].
        logit_scale: the model's parameter, the logarithm of the factor.
    """
    return pair_cosines(image_embeddings, text_embeddings) * torch.tensor(logit_scale, dtype=torch.float64).exp()


class AestheticHead(nn.Module):
    """LAION's aesthetic predictor: five linear layers in a row, nothing between them, on CLIP embeddings of length one.

    Layer names are those of ``sac+logos+ava1-l14-linearMSE.pth`` (places left for its dropouts).
    """

    def __init__(self, width: int = 768) -> None:
        """A head for embeddings of ``width`` values."""
        super().__init__()
        self.layers = linear_head(width)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores [N] (about 1 to 10) of embeddings [N, D] of any length."""
        return self.layers(normalize(embeddings.float(), dim=1))[:, 0]


@dataclass(eq=False)
class _Reward(Metric):
    """The mean over the images of one number an image; weights are loaded at the first use.

    Attributes:
        batch_size: images a pass.
        name: put before the score's name, where a snapshot has two of these.
        score_name: the score's name.
    """

    batch_size: int = field(default=32, kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    score_name = ""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")

    @abstractmethod
    def _values(self, images: Tensor, prompts: list[str]) -> Tensor:
        """[B] of images [B, 3, H, W] uint8 and their prompts."""

    def check(self, samples: Samples) -> None:
        """Refuses samples without images or prompts."""
        if len(samples) == 0 or not samples.prompts:
            raise ValueError(f"{self.score_name} needs images and their prompts")

    def observe(self, batch: SampleBatch) -> Rows:
        """Rewards [B] float64; ValueError where one is not finite."""
        values = self._values(batch.images, batch.prompts).double().cpu()
        broken = (~values.isfinite()).nonzero()
        if len(broken):
            raise ValueError(f"{self.score_name} of image {batch.first + int(broken[0])} is not finite")
        return values

    def score(self, samples: Samples, rows: Rows) -> Result:
        """The mean, as ``score_name``; its error has prompts as clusters and is missing for a single prompt."""
        rewards = torch.as_tensor(rows)
        errors = mean_error(self.score_name, rewards, samples.prompts)
        return Result({self.score_name: float(rewards.mean())}, errors)


@dataclass(eq=False)
class PickScore(_Reward):
    """PickScore, about 20 to 23.

    Attributes:
        model: the CLIP model of PickScore: repository or local folder.
        tokenizer: where its tokenizer comes from: repository or local folder.
        revision: commit, branch or tag of the model.
    """

    model: str = "yuvalkirstain/PickScore_v1"
    tokenizer: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    revision: str | None = None
    score_name = "pick_score"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.encoder = CLIPEncoder(self.model, self.revision, "clip_224", tokenizer=self.tokenizer)

    def _values(self, images: Tensor, prompts: list[str]) -> Tensor:
        network: Any = self.encoder.network
        embedded = self.encoder.images(images), self.encoder.texts(prompts, images.device)
        return pick_scores(*embedded, float(network.logit_scale))

    def fingerprint(self) -> dict[str, Any]:
        """Model, hash of its weights, pixel pipeline."""
        return {**self.encoder.fingerprint(), "metric": self.score_name}


@dataclass(eq=False)
class AestheticScore(_Reward):
    """LAION's aesthetic score of the images; the prompts are not read.

    Attributes:
        weights: local file of the head, ``sac+logos+ava1-l14-linearMSE.pth``.
        model: CLIP ViT-L/14 of OpenAI: repository or local folder.
        revision: commit, branch or tag of the model.
    """

    weights: str
    model: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    score_name = "aesthetic"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.encoder = CLIPEncoder(self.model, self.revision, "open_clip_224")
        self._head: AestheticHead | None = None

    def head(self) -> AestheticHead:
        """The head; FileNotFoundError or ValueError naming the option when its file is missing or another."""
        if self._head is None:
            path = Path(self.weights).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"no weights of the aesthetic head at {path}: correct init_args.weights")
            state = torch.load(path, map_location="cpu", weights_only=True)
            if "layers.0.weight" not in state:
                raise ValueError(f"{path} holds no aesthetic head (no layers.0.weight): correct init_args.weights")
            head = AestheticHead(state["layers.0.weight"].shape[1])
            head.load_state_dict(state)
            self._head = head.eval().requires_grad_(False)
        return self._head

    def _values(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.head().to(images.device)(self.encoder.images(images))

    def fingerprint(self) -> dict[str, Any]:
        """CLIP and head with the hashes of their weights, pixel pipeline."""
        head = state_sha256(self.head().state_dict())
        return {**self.encoder.fingerprint(), "metric": self.score_name, "head_sha256": head}


@dataclass(eq=False)
class HPSv2(_Reward):
    """Human Preference Score v2.1: the cosine of image and prompt under a tuned open_clip ViT-H-14.

    Attributes:
        weights: local file ``HPS_v2.1_compressed.pt`` of ``xswu/HPSv2`` (v2.0 is another file).
        architecture: open_clip's name of the network.
        antialias: how the float image is resized; False is what torchvision before 0.17 did.
    """

    weights: str
    architecture: str = "ViT-H-14"
    antialias: bool = True
    score_name = "hps_v2"
    unit = "cos"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pipeline = "hpsv2" if self.antialias else "hpsv2_no_antialias"
        self._loaded: tuple[Any, Any, str] | None = None

    def _load(self) -> tuple[Any, Any, str]:
        if self._loaded is None:
            try:
                import open_clip
            except ImportError as error:
                raise ImportError('HPSv2 needs open_clip: pip install "t2ikit[rewards]"') from error
            path = Path(self.weights).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"no HPSv2 weights at {path}: correct init_args.weights")
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                network = open_clip.create_model(self.architecture)
                network.load_state_dict(state.get("state_dict", state))
            except (RuntimeError, AttributeError, UnpicklingError) as error:
                raise ValueError(
                    f"{path} does not hold the weights of open_clip's {self.architecture} ({error}): correct "
                    "init_args.weights or init_args.architecture"
                ) from error
            network = network.float().eval().requires_grad_(False)
            tokenizer = open_clip.get_tokenizer(self.architecture)
            self._loaded = (network, tokenizer, state_sha256(network.state_dict()))
        return self._loaded

    @torch.no_grad()
    def _values(self, images: Tensor, prompts: list[str]) -> Tensor:
        network, tokenizer, _ = self._load()
        network = network.to(images.device)
        pixels = preprocess_batch(self.pipeline, images)
        tokens = tokenizer(prompts).to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            return pair_cosines(network.encode_image(pixels), network.encode_text(tokens))

    def fingerprint(self) -> dict[str, Any]:
        """Network, hash of its weights, pixel pipeline."""
        described = {"features": f"hpsv2:{self.architecture}", "features_sha256": self._load()[2]}
        return {**described, "metric": self.score_name, **describe_pipeline(self.pipeline)}


@dataclass(eq=False)
class ImageReward(_Reward):
    """ImageReward-v1.0 (Xu et al. 2023), about 0 for an ordinary image and 1 a deviation above it.

    Attributes:
        weights: local file ``ImageReward.pt`` of ``THUDM/ImageReward``.
        med_config: local file ``med_config.json`` of the same place.
        tokenizer: BERT's uncased one: repository or local folder.
        revision: commit, branch or tag of the tokenizer.
    """

    weights: str
    med_config: str
    tokenizer: str = "google-bert/bert-base-uncased"
    revision: str | None = None
    score_name = "image_reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._loaded: tuple[Any, Any, str] | None = None

    def _load(self) -> tuple[Any, Any, str]:
        if self._loaded is None:
            from transformers import AutoTokenizer

            network, sha256 = load_image_reward(self.weights, self.med_config)
            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    self.tokenizer, revision=self.revision or "main", trust_remote_code=False
                )
            except (OSError, ValueError) as error:
                raise FileNotFoundError(
                    f"no tokenizer {self.tokenizer} ({error}): correct init_args.tokenizer"
                ) from error
            self._loaded = (network, tokenizer, sha256)
        return self._loaded

    @torch.no_grad()
    def _values(self, images: Tensor, prompts: list[str]) -> Tensor:
        network, tokenizer, _ = self._load()
        ids, mask = (tokens.to(images.device) for tokens in tokenize(tokenizer, prompts))
        with torch.autocast(images.device.type, enabled=False):
            return network.to(images.device)(preprocess_batch("open_clip_224", images), ids, mask)

    def fingerprint(self) -> dict[str, Any]:
        """Hash of the weights in use, vocabulary, pixel pipeline."""
        _, tokenizer, sha256 = self._load()
        words = "\n".join(word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]))
        described = {"features": "image_reward_v1.0", "features_sha256": sha256, "metric": self.score_name}
        described["vocabulary_sha256"] = hashlib.sha256(words.encode()).hexdigest()
        return {**described, **describe_pipeline("open_clip_224")}
