"""Small pretrained models in their ordinary format, shared by the tests of the metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t2ikit.metrics.geneval.detector import COLORS

START, END = 98, 99


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 77 tokens and 224 pixels with a vocabulary of 98 words, GenEval's ten colours last."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    words = [f"w{number}" for number in range(98 - len(COLORS))] + list(COLORS)
    vocabulary = {word: number for number, word in enumerate([*words, "<start>", "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>"
    )
    fast.save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 100, "eos_token_id": END, "bos_token_id": START, "pad_token_id": END},
        vision_config={**tower, "image_size": 224, "patch_size": 56},
        projection_dim=24,
    )
    CLIPModel(config).eval().save_pretrained(folder)
    return folder
