"""Jina-CLIP score: a small dual encoder in its place, code of its own only where that is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from t2ikit.config import secrets
from t2ikit.metrics import Samples
from t2ikit.metrics.alignment.jina_clip import JinaCLIPScore, code_of
from t2ikit.metrics.features.pixels import preprocess

IMAGES = torch.randint(0, 256, (4, 3, 30, 44), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["w1 w2", "w3", "w4 w5 w6 w7", "w3"]

CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class TinyConfig(PretrainedConfig):
    model_type = "tiny_dual"

    def __init__(self, width=6, **options):
        self.width = width
        super().__init__(**options)


class TinyDual(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(100, config.width)
        self.eye = torch.nn.Linear(3, config.width)
        self.post_init()

    def get_text_features(self, input_ids=None, attention_mask=None):
        states = self.words(input_ids) * attention_mask[:, :, None]
        return states.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True)

    def get_image_features(self, pixel_values=None):
        assert pixel_values.shape[1:] == (3, 512, 512), pixel_values.shape
        return self.eye(pixel_values.mean(dim=(2, 3)))
"""


@pytest.fixture(scope="module")
def tiny_dual(tmp_path_factory: pytest.TempPathFactory, small_clip: Path) -> Path:
    """A dual encoder whose class lies beside its weights, as Jina's does, with the tokenizer of the small CLIP."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("dual")
    (folder / "modeling_tiny.py").write_text(CODE)
    auto_map = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyDual"}
    settings = {"model_type": "tiny_dual", "width": 6, "architectures": ["TinyDual"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(0)
    shapes = {"words.weight": (100, 6), "eye.weight": (6, 3), "eye.bias": (6,)}
    save_file(
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    AutoTokenizer.from_pretrained(small_clip).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _trusts_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_trusted", set())


def test_score_of_a_model_that_brings_its_code(tiny_dual: Path) -> None:
    from safetensors.torch import load_file

    metric = JinaCLIPScore(str(tiny_dual), run_remote_code=True, batch_size=3)
    with pytest.raises(ValueError, match=f"--trust code:{tiny_dual}"):  # an experiment alone does not let it run
        metric.compute(Samples(IMAGES, PROMPTS))
    secrets.trust_names([f"code:{tiny_dual}"])
    result = metric.compute(Samples(IMAGES, PROMPTS))
    weights = load_file(tiny_dual / "model.safetensors")
    seen = torch.stack([preprocess("jina_clip_512", image).mean(dim=(1, 2)) for image in IMAGES])
    pictures = seen @ weights["eye.weight"].T + weights["eye.bias"]
    texts = torch.stack(
        [
            weights["words.weight"][[98, *(int(word[1:]) for word in prompt.split()), 99]].mean(dim=0)
            for prompt in PROMPTS
        ]
    )
    cosines = torch.nn.functional.cosine_similarity(pictures, texts)
    assert result.values == {"jina_clip_score": pytest.approx(100 * float(cosines.mean()), rel=1e-4)}
    # Two images share a prompt: three clusters.
    residuals = (cosines - cosines.mean()).double()
    clusters = torch.stack([residuals[0], residuals[1] + residuals[3], residuals[2]])
    expected = 100 * float((1.5 * (clusters**2).sum()).sqrt()) / 4
    assert result.errors["jina_clip_score"] == pytest.approx(expected, rel=1e-3)
    described = metric.fingerprint()
    assert (described["resize"], described["metric"]) == ("jina_clip_512", "jina_clip_score")
    assert len(described["features_sha256"]) == 64


def test_code_runs_only_where_it_is_allowed(tiny_dual: Path, tmp_path: Path) -> None:
    assert code_of(tiny_dual) == ["modeling_tiny.TinyConfig", "modeling_tiny.TinyDual"]
    with pytest.raises(ValueError, match=r"brings Python code of its own .*init_args\.run_remote_code"):
        JinaCLIPScore(str(tiny_dual)).compute(Samples(IMAGES, PROMPTS))
    for file in tiny_dual.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["auto_map"] = {"AutoModel": "jinaai/jina-clip-implementation--modeling_clip.JinaCLIPModel"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    secrets.trust_names([f"code:{tmp_path}"])
    for revision in (None, "main"):
        metric = JinaCLIPScore(str(tmp_path), run_remote_code=True, code_revision=revision)
        with pytest.raises(ValueError, match=r"lies in jinaai/jina-clip-implementation: .*init_args\.code_revision"):
            metric.compute(Samples(IMAGES, PROMPTS))


def test_a_model_of_transformers_needs_no_code(small_clip: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(small_clip).eval(), AutoTokenizer.from_pretrained(small_clip)
    tokens = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    pixels = torch.stack([preprocess("open_clip_224", image) for image in IMAGES])
    with torch.no_grad():
        output = model(**{name: tokens[name] for name in ("input_ids", "attention_mask")}, pixel_values=pixels)
    expected = 100 * float((output.image_embeds * output.text_embeds).sum(dim=1).mean())
    metric = JinaCLIPScore(str(small_clip), pipeline="open_clip_224")
    assert metric.compute(Samples(IMAGES, PROMPTS)).values["jina_clip_score"] == pytest.approx(expected, rel=1e-3)


def test_bright_pixels_do_not_wrap(tiny_dual: Path) -> None:
    """Common code multiplies whole grey levels by 255 once more, after which 200 is 56."""
    secrets.trust_names([f"code:{tiny_dual}"])
    metric = JinaCLIPScore(str(tiny_dual), run_remote_code=True)
    levels = torch.tensor([56, 200], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)
    dark, bright = metric.encoder.images(levels.contiguous())
    assert not torch.allclose(dark, bright, atol=0.1)


def test_wrong_use(tiny_dual: Path) -> None:
    with pytest.raises(ValueError, match="needs images and their prompts"):
        JinaCLIPScore(str(tiny_dual)).compute(Samples(IMAGES))
    with pytest.raises(ValueError, match="unknown pixel pipeline"):
        JinaCLIPScore(str(tiny_dual), pipeline="jina")
    with pytest.raises(ValueError, match="batch_size"):
        JinaCLIPScore(str(tiny_dual), batch_size=0)
