"""ImageReward-v1.0: BLIP's image and text towers with a linear head, from the released weights.

Shape legend::

    B  images with their prompts    P  image tokens    L  text tokens (35)    D  text width

Paper: Xu et al., "ImageReward: learning and evaluating human preferences for text-to-image generation", 2023. The image
tower is a ViT-L/16 at 224 pixels; the text tower is a BERT that looks at the image in every layer; the head reads the
state of the first token. The towers are transformers' BLIP classes; ``convert`` renames the released weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from t2ikit.files import parse_json
from t2ikit.pretrained import state_sha256

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35
HEAD_WIDTHS = (1024, 128, 64, 16, 1)
VISION_HEADS_OF = 64  # values of an attention head, in BLIP's large tower as in its base one

_IGNORED = re.compile(r"blip\.(vision_proj|text_proj)\.(weight|bias)|blip\.text_encoder\.embeddings\.position_ids")
"""In the released file and not part of the score: BLIP's contrastive projections, and a table of 0, 1, 2, ..."""

_VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


def image_reward(raw: Tensor) -> Tensor:
    """ImageReward-v1.0's scale from the head's raw output, any shape."""
    return (raw - MEAN) / DEVIATION


def linear_head(width: int) -> nn.Sequential:
    """Five linear layers in a row with places for dropouts and no activations, as ImageReward's and LAION's heads."""
    widths = (width, *HEAD_WIDTHS)
    linear = [nn.Linear(before, after) for before, after in zip(widths[:-1], widths[1:], strict=True)]
    return nn.Sequential(
        linear[0], nn.Dropout(0.2), linear[1], nn.Dropout(0.2), linear[2], nn.Dropout(0.1), linear[3], linear[4]
    )


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released weights under the names of ``ImageRewardNetwork``; what is not part of the score is left out.

    Args:
        state: of ``ImageReward.pt``.

    Raises:
        ValueError: a name that ImageReward does not have, or two that become one.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if _IGNORED.fullmatch(name):
            continue
        new = _converted(name)
        if new in converted:
            raise ValueError(f"{name} would be a second {new}")
        converted[new] = value
    return converted


def _converted(name: str) -> str:
    if name.startswith("mlp.layers."):
        return "head." + name.removeprefix("mlp.layers.")
    if name.startswith("blip.text_encoder."):  # BLIP's BERT has the same names in both
        return "text." + name.removeprefix("blip.text_encoder.")
    if name.startswith("blip.visual_encoder."):
        rest = name.removeprefix("blip.visual_encoder.")
        for pattern, replacement in _VISION:
            if re.match(pattern, rest):
                return "vision." + re.sub(pattern, replacement, rest)
    raise ValueError(f"{name} is no weight of ImageReward-v1.0")


class ImageRewardNetwork(nn.Module):
    """Image tower, text tower, head."""

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        """Builds the towers with random weights.

        Args:
            vision: of ``BlipVisionConfig``.
            text: of ``BlipTextConfig``.
        """
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        # BLIP's classes build the layers that look at the image for a decoder; it runs as an encoder all the same.
        self.text = BlipTextModel(BlipTextConfig(**text, is_decoder=True), add_pooling_layer=False)
        self.head = linear_head(self.text.config.hidden_size)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Rewards [B] of pixels [B, 3, H, W], token ids [B, L] and their mask [B, L] (1 = token)."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        output = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False)
        return image_reward(self.head(output.last_hidden_state[:, 0].float())[:, 0])


def sizes(state: Mapping[str, Tensor], med_config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of both towers from the released weights and their ``med_config.json``.

    Args:
        state: of ``ImageReward.pt``.
        med_config: BLIP's settings of the text tower.

    Returns:
        For ``BlipVisionConfig`` and for ``BlipTextConfig``.
    """
    patches = state["blip.visual_encoder.patch_embed.proj.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    side = round((state["blip.visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
    depth = len({name.split(".")[3] for name in state if name.startswith("blip.visual_encoder.blocks.")})
    vision = {
        "hidden_size": width,
        "intermediate_size": state["blip.visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": depth,
        "num_attention_heads": max(1, width // VISION_HEADS_OF),
        "image_size": side * patch,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,  # of the released tower; transformers' default is 1e-5
        "hidden_act": "gelu",
    }
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id",
    )  # fmt: skip
    missing = [name for name in names if name not in med_config]
    if missing:
        raise ValueError(f"the settings of the text tower lack {', '.join(missing)}: correct init_args.med_config")
    return vision, {**{name: med_config[name] for name in names}, "encoder_hidden_size": width}


def load_image_reward(weights: str | Path, med_config: str | Path) -> tuple[ImageRewardNetwork, str]:
    """The network with the released weights, all of them and no others, and the hash of what it uses.

    Args:
        weights: local file ``ImageReward.pt`` of ``THUDM/ImageReward``.
        med_config: local file ``med_config.json`` of the same place.

    Raises:
        FileNotFoundError, ValueError: a file that is missing or is something else; names the option.
    """
    paths = {"weights": Path(weights).expanduser(), "med_config": Path(med_config).expanduser()}
    for option, path in paths.items():
        if not path.is_file():
            raise FileNotFoundError(f"ImageReward: no file {path}; correct init_args.{option}")
    try:
        settings = parse_json(paths["med_config"].read_text())
    except ValueError as error:
        raise ValueError(f"{paths['med_config']} is no JSON file ({error}): correct init_args.med_config") from error
    try:
        state = torch.load(paths["weights"], map_location="cpu", weights_only=True)
        network = ImageRewardNetwork(*sizes(state, settings))
        network.load_state_dict(convert(state), strict=True)
    except (KeyError, ValueError, TypeError, RuntimeError, UnpicklingError) as error:
        raise ValueError(
            f"{paths['weights']} does not hold the weights of ImageReward-v1.0 with {paths['med_config']} ({error}): "
            "correct init_args.weights"
        ) from error
    network = network.float().eval().requires_grad_(False)
    return network, state_sha256(network.state_dict())


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, 35] of prompts: cut and padded to ImageReward's length."""
    tokens = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]
