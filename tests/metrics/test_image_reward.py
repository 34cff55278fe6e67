"""ImageReward: released names one to one, the forward pass by hand, its length of text, wrong files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, softmax

from t2ikit.metrics import Samples
from t2ikit.metrics.alignment.image_reward import (
    ImageRewardNetwork,
    convert,
    image_reward,
    load_image_reward,
    sizes,
    tokenize,
)
from t2ikit.metrics.alignment.rewards import ImageReward
from t2ikit.metrics.features.pixels import preprocess_batch

WIDTH, TEXT, DEPTH, LAYERS, HEADS, WORDS = 128, 48, 2, 2, 2, 40
MED_CONFIG = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_size": TEXT, "initializer_range": 0.02, "intermediate_size": 80, "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64, "model_type": "bert", "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": WORDS, "encoder_width": 768, "add_cross_attention": True,
}  # fmt: skip


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of ``ImageReward.pt``, small: BLIP's ViT with patches of 16 at 224 pixels, BERT, heads."""

    def pair(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    shapes: dict[str, tuple[int, ...]] = {f"{eye}.cls_token": (1, 1, WIDTH), f"{eye}.pos_embed": (1, 197, WIDTH)}
    shapes |= {f"{eye}.patch_embed.proj.weight": (WIDTH, 3, 16, 16), f"{eye}.patch_embed.proj.bias": (WIDTH,)}
    for block in (f"{eye}.blocks.{number}" for number in range(DEPTH)):
        shapes |= norm(f"{block}.norm1", WIDTH) | norm(f"{block}.norm2", WIDTH)
        shapes |= pair(f"{block}.attn.qkv", 3 * WIDTH, WIDTH) | pair(f"{block}.attn.proj", WIDTH, WIDTH)
        shapes |= pair(f"{block}.mlp.fc1", 2 * WIDTH, WIDTH) | pair(f"{block}.mlp.fc2", WIDTH, 2 * WIDTH)
    shapes |= norm(f"{eye}.norm", WIDTH)
    shapes |= {f"{text}.embeddings.position_ids": (1, 64), f"{text}.embeddings.word_embeddings.weight": (WORDS, TEXT)}
    shapes |= {f"{text}.embeddings.position_embeddings.weight": (64, TEXT)} | norm(f"{text}.embeddings.LayerNorm", TEXT)
    for layer in (f"{text}.encoder.layer.{number}" for number in range(LAYERS)):
        for kind, source in (("attention", TEXT), ("crossattention", WIDTH)):
            shapes |= pair(f"{layer}.{kind}.self.query", TEXT, TEXT)
            shapes |= pair(f"{layer}.{kind}.self.key", TEXT, source) | pair(f"{layer}.{kind}.self.value", TEXT, source)
            shapes |= pair(f"{layer}.{kind}.output.dense", TEXT, TEXT) | norm(f"{layer}.{kind}.output.LayerNorm", TEXT)
        shapes |= pair(f"{layer}.intermediate.dense", 80, TEXT) | pair(f"{layer}.output.dense", TEXT, 80)
        shapes |= norm(f"{layer}.output.LayerNorm", TEXT)
    shapes |= pair("blip.vision_proj", 256, WIDTH) | pair("blip.text_proj", 256, TEXT)
    widths = (TEXT, 1024, 128, 64, 16, 1)
    for place, into, out in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        shapes |= pair(f"mlp.layers.{place}", out, into)
    return shapes


def released_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in released_shapes().items():
        scale = 0.02 if len(shape) == 1 or "pos" in name else 1.5 * torch.tensor(shape[1:]).prod() ** -0.5
        state[name] = torch.randn(shape, generator=generator) * scale
        if re.search(r"[nN]orm\d?\.weight$", name):
            state[name] = 1 + state[name]
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    return state


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """[B, Lq, D] of [B, Lq, D], [B, Lk, D], [B, Lk, D]; mask [B, Lk], 1 = token."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    weights = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        weights = weights.masked_fill(mask[:, None, None] == 0, -10000.0)
    return (softmax(weights, dim=-1) @ value).transpose(1, 2).flatten(2)


def by_hand(state: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Raw outputs [B] in float64, step by step from the released names."""
    weights = {name: value.double() for name, value in state.items()}

    def apply(name: str, x: Tensor) -> Tensor:
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    kernel, bias = weights[f"{eye}.patch_embed.proj.weight"], weights[f"{eye}.patch_embed.proj.bias"]
    x = torch.nn.functional.conv2d(pixels.double(), kernel, bias, stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([weights[f"{eye}.cls_token"].expand(len(x), -1, -1), x], dim=1) + weights[f"{eye}.pos_embed"]
    for number in range(DEPTH):
        block = f"{eye}.blocks.{number}"
        query, key, value = apply(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + apply(f"{block}.attn.proj", attend(query, key, value, WIDTH // 64))
        x = x + apply(f"{block}.mlp.fc2", gelu(apply(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6))))
    seen = norm(f"{eye}.norm", x, 1e-6)
    places = weights[f"{text}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    h = norm(f"{text}.embeddings.LayerNorm", weights[f"{text}.embeddings.word_embeddings.weight"][ids] + places, 1e-12)
    for number in range(LAYERS):
        layer = f"{text}.encoder.layer.{number}"
        for kind, source, shown in (("attention", None, mask), ("crossattention", seen, None)):
            own = f"{layer}.{kind}"
            read = h if source is None else source
            parts = (apply(f"{own}.self.query", h), apply(f"{own}.self.key", read), apply(f"{own}.self.value", read))
            h = norm(f"{own}.output.LayerNorm", apply(f"{own}.output.dense", attend(*parts, HEADS, shown)) + h, 1e-12)
        wide = gelu(apply(f"{layer}.intermediate.dense", h))
        h = norm(f"{layer}.output.LayerNorm", apply(f"{layer}.output.dense", wide) + h, 1e-12)
    y = h[:, 0]
    for place in (0, 2, 4, 6, 7):
        y = apply(f"mlp.layers.{place}", y)
    return y[:, 0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageReward.pt, med_config.json and a BERT tokenizer, small."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("image_reward")
    torch.save(released_state(), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(WORDS - 5))]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder / "bert")
    return folder


def test_every_released_name_has_its_place() -> None:
    state = released_state()
    converted = convert(state)
    network = ImageRewardNetwork(*sizes(state, MED_CONFIG))
    # One to one: all that is used has a place of its own, every place is filled, and the shapes fit.
    left_out = {name for name in state if "_proj." in name or name.endswith("position_ids")}
    assert len(left_out) == 5
    assert len(converted) == len(state) - len(left_out)
    assert {name: value.shape for name, value in converted.items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    assert {value.data_ptr() for value in converted.values()} == {
        value.data_ptr() for name, value in state.items() if name not in left_out
    }
    with pytest.raises(ValueError, match=r"blip.text_decoder.x is no weight of ImageReward-v1.0"):
        convert({"blip.text_decoder.x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"blip.visual_encoder.blocks.0.ls1 is no weight"):
        convert({"blip.visual_encoder.blocks.0.ls1": torch.zeros(1)})


def test_sizes_of_the_released_network() -> None:
    name = "blip.visual_encoder"
    state = {f"{name}.patch_embed.proj.weight": torch.empty(1024, 3, 16, 16, device="meta")}
    state[f"{name}.pos_embed"] = torch.empty(1, 197, 1024, device="meta")
    state |= {f"{name}.blocks.{block}.mlp.fc1.weight": torch.empty(4096, 1024, device="meta") for block in range(24)}
    vision, text = sizes(state, MED_CONFIG)
    assert (vision["num_hidden_layers"], vision["num_attention_heads"], vision["image_size"]) == (24, 16, 224)
    assert (vision["intermediate_size"], vision["layer_norm_eps"]) == (4096, 1e-6)
    # The width of the image tower is the network's, not the 768 of the file.
    assert (text["encoder_hidden_size"], text["vocab_size"]) == (1024, WORDS)
    with pytest.raises(ValueError, match=r"lack vocab_size: correct init_args\.med_config"):
        sizes(state, {name: value for name, value in MED_CONFIG.items() if name != "vocab_size"})


def test_the_network_computes_what_the_released_one_does(files: Path) -> None:
    network, sha256 = load_image_reward(files / "ImageReward.pt", files / "med_config.json")
    assert len(sha256) == 64
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 224, 224, generator=generator)
    ids = torch.randint(5, WORDS, (3, 35), generator=generator)
    mask = (torch.arange(35) < torch.tensor([[35], [9], [2]])).long()
    expected = image_reward(by_hand(released_state(), pixels, ids * mask, mask))
    assert expected.std() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(network(pixels, ids * mask, mask).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_metric(files: Path) -> None:
    from transformers import AutoTokenizer

    images = torch.randint(0, 256, (3, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    prompts = ["w1 w2", "w3", " ".join(f"w{number % 30}" for number in range(90))]
    options: dict[str, Any] = {"med_config": str(files / "med_config.json"), "tokenizer": str(files / "bert")}
    metric = ImageReward(str(files / "ImageReward.pt"), **options, batch_size=2)
    ids, mask = tokenize(AutoTokenizer.from_pretrained(files / "bert"), prompts)
    assert ids.shape == (3, 35)
    assert mask.sum(dim=1).tolist() == [4, 3, 35]
    assert ids[2, -1] == 3  # the end token of the cut prompt
    values = image_reward(by_hand(released_state(), preprocess_batch("open_clip_224", images), ids, mask))
    result = metric.compute(Samples(images, prompts))
    assert result.values == {"image_reward": pytest.approx(float(values.mean()), rel=1e-4, abs=1e-5)}
    error = result.errors["image_reward"]
    assert error == pytest.approx(float(values.std() / 3**0.5), rel=1e-3)
    described = metric.fingerprint()
    assert (described["features"], described["resize"]) == ("image_reward_v1.0", "open_clip_224")
    assert len(described["vocabulary_sha256"]) == 64


def test_wrong_files(files: Path, tmp_path: Path) -> None:
    good = str(files / "med_config.json")
    with pytest.raises(FileNotFoundError, match=r"init_args\.weights"):
        load_image_reward(tmp_path / "none.pt", good)
    with pytest.raises(FileNotFoundError, match=r"init_args\.med_config"):
        load_image_reward(files / "ImageReward.pt", tmp_path / "none.json")
    lacking = released_state()
    del lacking["mlp.layers.7.bias"]
    torch.save(lacking, tmp_path / "lacking.pt")
    with pytest.raises(ValueError, match=r"(?s)head\.7\.bias.*init_args\.weights"):
        load_image_reward(tmp_path / "lacking.pt", good)
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"init_args\.weights"):
        load_image_reward(tmp_path / "broken.pt", good)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"init_args\.med_config"):
        load_image_reward(files / "ImageReward.pt", tmp_path / "broken.json")
    with pytest.raises(FileNotFoundError, match=r"init_args\.tokenizer"):
        ImageReward(str(files / "ImageReward.pt"), good, tokenizer=str(tmp_path / "none")).fingerprint()
