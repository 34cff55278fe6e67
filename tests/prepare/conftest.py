"""Small data sets on their way: a folder of generated photos, and the same prepared."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2ikit.prepare.captions.captions import prepare_captions
from t2ikit.prepare.cutmix import prepare_cutmix
from t2ikit.prepare.encode.encode import prepare_encode
from t2ikit.prepare.images import prepare_images

CLASSES = {
    "train": ["n02012849", "n03126707", "n01440764", "n03710637"],  # crane (134), crane (517), tench (0), maillot (638)
    "val": ["n03710721", "n01440764"],  # maillot (639), tench (0)
}
PER_CLASS = 3


def photo(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    """A smooth random image, width x height."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 4 classes of 3 photos, val/ with 2 classes of 3."""
    root = tmp_path_factory.mktemp("photos")
    for split, classes in CLASSES.items():
        for number, wnid in enumerate(classes):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for k in range(PER_CLASS):
                photo(100 * number + k + (split == "val") * 50).save(folder / f"{wnid}_{k}.JPEG", quality=95)
    return root


@pytest.fixture(scope="session")
def prepared_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every step, 16 x 16 pixels with a small T5. Not to be changed."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare_images(str(photos), out, 16)
    prepare_captions(out)
    prepare_cutmix(out, "cmall")
    prepare_encode(out, autoencoder="pixels", text_encoder="small", text_dim=32)
    return out


@pytest.fixture
def prepared(prepared_once: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data set, to be changed."""
    return Path(shutil.copytree(prepared_once, tmp_path / "data"))


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-NeXT of the real classes with seeded random weights, as a folder: 28 x 28 pixels a view, 16 tokens."""
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
    folder = tmp_path_factory.mktemp("models") / "tiny-llava-next"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
