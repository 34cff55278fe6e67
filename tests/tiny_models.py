"""Small pretrained models of the real classes, with random weights, as folders in their ordinary format."""

from __future__ import annotations

from pathlib import Path

import torch

from t2ikit.metrics.geneval.detector import COLORS

START, END = 98, 99


def tiny_llava(folder: Path) -> None:
    """A LLaVA-NeXT of the real classes with seeded random weights: 28 x 28 pixels a view, 16 tokens."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        PreTrainedTokenizerFast,
    )

    from t2ikit.prepare.captions.captioner import CUTMIX_PROMPT, PROMPT

    special = ["<pad>", "<unk>", "<begin>", "<end>", "<image>", "<head>", "</head>"]
    words = sorted({*f"{PROMPT} {CUTMIX_PROMPT}".replace(".", " .").replace(",", " ,").split(), "user", "assistant"})
    colours = ["red", "green", "blue", "grey"]
    things = ["dog", "fish", "crane", "ship", "tree", "lake", "sky", "stone"]
    vocabulary = {word: index for index, word in enumerate([*special, *words, *colours, *things])}
    base = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    base.pre_tokenizer = Whitespace()
    base.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    base.post_processor = TemplateProcessing(
        single="<begin> $A", pair="<begin> $A $B", special_tokens=[("<begin>", vocabulary["<begin>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, bos_token="<begin>", eos_token="<end>", unk_token="<unk>", pad_token="<pad>"
    )
    pinpoints = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    side = {"height": 28, "width": 28}
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size=side, image_grid_pinpoints=pinpoints),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        # As that of llama3-llava-next: images first, no token of the beginning.
        chat_template="{% for message in messages %}<head>{{ message['role'] }}</head>\n"
        "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}\n{{ part['text'] }}<end>{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}<head>assistant</head>\n{% endif %}",
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=7,
        initializer_range=0.5, initializer_factor=4.0,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.4, bos_token_id=2, eos_token_id=3, pad_token_id=0,
        max_position_embeddings=512,
    )  # fmt: skip
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=vocabulary["<image>"], image_grid_pinpoints=pinpoints
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = LlavaNextForConditionalGeneration(config)
        for weight in model.model.multi_modal_projector.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def small_clip(folder: Path) -> None:
    """A CLIP of 77 tokens and 224 pixels with a vocabulary of 98 words, GenEval's ten colours last."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
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
