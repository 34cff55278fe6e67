"""LLaVA-NeXT: what it reads, against the un-pruned model; which tile an insert is on; batches; what is refused."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from t2ikit.augment.cutmix import fits
from t2ikit.prepare.captions.captioner import CUTMIX_PROMPT, Decoding, Prompts
from t2ikit.prepare.captions.llava import LlavaNextCaptioner, _sampled, tile_of, tile_shown

SIDE, TOKENS = 32, 16  # of the images, and of one view of the tiny model: (28 / 7) ** 2


def picture(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).transpose(2, 0, 1).copy()


def mix(setting: str, rectangle: Sequence[int], key: str = "m") -> dict[str, Any]:
    return {"key": key, "setting": setting, "rectangle": list(rectangle)}


def load(folder: Path, **options: Any) -> LlavaNextCaptioner:
    captioner = LlavaNextCaptioner(str(folder), **options)
    captioner.setup(torch.device("cpu"))
    return captioner


@pytest.fixture(scope="module")
def captioner(tiny_llava: Path) -> LlavaNextCaptioner:
    return load(tiny_llava, decoding=Decoding(max_new_tokens=12))


MIXED = [
    {"key": "a"},
    mix("cm4", (16, 0, 32, 16), "b"),
    {"key": "c"},
    mix("cm2", (16, 0, 32, 32), "d"),
    mix("cm9", (0, 20, 10, 30), "e"),
    mix("cm16", (22, 22, 30, 30), "f"),
]


@pytest.mark.parametrize(
    ("rectangle", "tile"),
    [
        ((0, 0, 128, 128), 0),  # CM 1/4: the four corners
        ((128, 0, 256, 128), 1),
        ((0, 128, 128, 256), 2),
        ((128, 128, 256, 256), 3),
        ((85, 0, 170, 85), 0),  # CM 1/9 on the upper border: 43 columns left of the middle, 42 right of it
        ((86, 0, 171, 85), 1),  # 42 and 43
        ((0, 86, 85, 171), 2),
        ((171, 85, 256, 170), 1),
        ((171, 171, 256, 256), 3),
        ((96, 12, 160, 76), 0),  # CM 1/16: 32 columns on either side; the left tile
        ((97, 12, 161, 76), 1),
        ((12, 96, 76, 160), 0),  # 32 rows on either side; the upper tile
        ((180, 97, 244, 161), 3),
    ],
)
def test_the_tile_of_an_insert(rectangle: tuple[int, int, int, int], tile: int) -> None:
    assert tile_of(rectangle, 256) == tile


@pytest.mark.parametrize("setting", ["cm4", "cm9", "cm16"])
def test_the_tile_shares_most_pixels_with_the_insert(setting: str) -> None:
    size, side = 48, 48 // {"cm4": 2, "cm9": 3, "cm16": 4}[setting]
    places = [(x, y, x + side, y + side) for x in range(size - side + 1) for y in range(size - side + 1)]
    places = [place for place in places if fits(setting, size, place)]
    for place in places:
        shown = np.zeros((size, size), bool)
        shown[place[1] : place[3], place[0] : place[2]] = True
        shares = shown.reshape(2, size // 2, 2, size // 2).sum((1, 3)).reshape(-1)
        assert tile_of(place, size) == shares.argmax()  # the first of equals: upper, left
    assert len(places) >= 4


def test_only_small_inserts_have_a_tile() -> None:
    assert tile_shown({"key": "a"}, 256) is None
    assert tile_shown(mix("cm2", (128, 0, 256, 256)), 256) is None
    assert tile_shown(mix("cm16", (180, 12, 244, 76)), 256) == 1


def test_tokens_and_views_are_those_of_the_whole_picture(captioner: LlavaNextCaptioner) -> None:
    """The un-pruned model has 16 + 8 x (8 + 1) = 88 tokens and five views of each picture."""
    seen: list[int] = []
    tower = captioner._network.model.vision_tower
    hook = tower.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    embeddings, mask = captioner.inputs([picture(k) for k in range(6)], MIXED)
    hook.remove()
    assert seen == [6 + 3]  # a view of each picture, and three tiles
    words = {own["key"]: len(captioner._ids(captioner.prompts.of(own), 1)) - 1 for own in MIXED}
    views = {"a": 1, "b": 2, "c": 1, "d": 1, "e": 2, "f": 2}
    assert mask.sum(1).tolist() == [words[key] + TOKENS * count for key, count in views.items()]
    assert embeddings.shape[:2] == mask.shape and (mask.diff(dim=1) >= 0).all()  # padded on the left
    full = captioner._processor(
        images=[Image.fromarray(picture(0).transpose(1, 2, 0))], text=["<image>"], return_tensors="pt"
    )
    assert (full["input_ids"] == captioner._processor.image_token_id).sum() == 88 and full["pixel_values"].shape[1] == 5


def reference_features(folder: Path, image: np.ndarray, tile: int | None) -> Tensor:
    """Head of the packed features of the un-pruned model with 2 x 2 tiles, and the tokens of one of them."""
    model = LlavaNextForConditionalGeneration.from_pretrained(folder).eval()
    model.config.image_grid_pinpoints = [[56, 56]]
    processor = LlavaNextProcessor.from_pretrained(folder)
    inputs = processor.image_processor(
        images=[Image.fromarray(image.transpose(1, 2, 0))], image_grid_pinpoints=[[56, 56]], return_tensors="pt"
    )
    with torch.no_grad():
        packed = model.get_image_features(**inputs).pooler_output[0]
    assert len(packed) == TOKENS + 8 * 9  # rows of 2 x 4 tokens and a newline
    head, rows = packed[:TOKENS], packed[TOKENS:].reshape(8, 9, -1)[:, :8]
    if tile is None:
        return head
    top, left = 4 * (tile // 2), 4 * (tile % 2)
    return torch.cat([head, rows[top : top + 4, left : left + 4].flatten(0, 1)])


@pytest.mark.parametrize("tile", [None, 0, 1, 2, 3])
def test_answers_are_those_of_the_unpruned_model_without_the_other_tiles(
    captioner: LlavaNextCaptioner, tiny_llava: Path, tile: int | None
) -> None:
    corner = None if tile is None else (16 * (tile % 2), 16 * (tile // 2), 16 * (tile % 2 + 1), 16 * (tile // 2 + 1))
    own = {"key": "a"} if corner is None else mix("cm4", corner)
    image = picture(7)
    features = reference_features(tiny_llava, image, tile)
    model = LlavaNextForConditionalGeneration.from_pretrained(tiny_llava).eval()
    processor = LlavaNextProcessor.from_pretrained(tiny_llava)
    prompt = "Describe this image" if tile is None else CUTMIX_PROMPT
    text = f"<head>user</head>\n<image>\n{prompt}<end><head>assistant</head>\n"
    ids = processor.tokenizer(text.replace("<image>", "<image>" * len(features)), return_tensors="pt").input_ids
    assert ids[0, 0] == processor.tokenizer.bos_token_id
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
        embeddings[ids == processor.image_token_id] = features
        ours, mask = captioner.inputs([image], [own])
        torch.testing.assert_close(ours, embeddings, rtol=1e-4, atol=1e-4)
        assert mask.all()
        tokens = model.generate(inputs_embeds=embeddings, max_new_tokens=12, do_sample=False)
    expected = processor.tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert captioner.answers([image], [own]) == [expected] and len(expected.split()) >= 2


def test_views_are_those_of_the_processor(captioner: LlavaNextCaptioner) -> None:
    images = [picture(k) for k in range(3)]
    pixels = torch.from_numpy(np.stack(images))
    expected = captioner._processor.image_processor(
        images=[Image.fromarray(image.transpose(1, 2, 0)) for image in images],
        image_grid_pinpoints=[[56, 56]],
        return_tensors="pt",
    )["pixel_values"]
    ours = captioner.views(pixels, [2, None, 3])
    torch.testing.assert_close(ours, torch.cat([expected[:, 0], expected[0, 1 + 2][None], expected[2, 1 + 3][None]]))


def test_a_batch_answers_as_each_image_alone(captioner: LlavaNextCaptioner) -> None:
    images = [picture(k) for k in range(6)]
    together = captioner.answers(images, MIXED)
    assert together == [captioner.answers([image], [own])[0] for image, own in zip(images, MIXED, strict=True)]
    assert len(set(together)) >= 4  # they look at the images


def test_sampled_depend_on_image_and_seed_alone(tiny_llava: Path) -> None:
    images = [picture(k) for k in range(6)]
    answers = {}
    for seed in (0, 1):
        captioner = load(tiny_llava, decoding=Decoding(max_new_tokens=12, temperature=1.5, top_p=0.9, seed=seed))
        torch.manual_seed(seed)
        answers[seed] = captioner.answers(images, MIXED)
        state = torch.random.get_rng_state()
        assert captioner.answers(images[::-1], MIXED[::-1]) == answers[seed][::-1]
        assert captioner.answers(images[2:3], MIXED[2:3]) == answers[seed][2:3]
        assert torch.equal(torch.random.get_rng_state(), state)
    assert answers[0] != answers[1]
    cold = load(tiny_llava, decoding=Decoding(max_new_tokens=12, temperature=1e-4))
    greedy = load(tiny_llava, decoding=Decoding(max_new_tokens=12))
    assert cold.answers(images, MIXED) == greedy.answers(images, MIXED)


def test_sampled_have_the_probabilities_of_the_model() -> None:
    chances, count = torch.tensor([0.5, 0.3, 0.15, 0.05]), 10_000
    for top_p, expected in ((1.0, chances), (0.75, torch.tensor([0.625, 0.375, 0.0, 0.0]))):
        sampler = _sampled(Decoding(temperature=1.0, top_p=top_p), range(count), torch.device("cpu"))
        sampled = sampler(torch.zeros(count, 1, dtype=torch.long), chances.log().expand(count, 4)).argmax(-1)
        shares = torch.bincount(sampled, minlength=4) / count
        assert (shares - expected).abs().max() < 5 * 0.5 / count**0.5
        assert (shares > 0).equal(expected > 0)


def test_half_precision(tiny_llava: Path) -> None:
    half = load(tiny_llava, decoding=Decoding(max_new_tokens=4))
    half._network.to(torch.bfloat16)  # as on an accelerator
    embeddings, _ = half.inputs([picture(0), picture(1)], MIXED[:2])
    assert embeddings.dtype == torch.bfloat16 and len(half.answers([picture(0), picture(1)], MIXED[:2])) == 2


def test_identity_follows_weights_and_processor(tiny_llava: Path, tmp_path: Path) -> None:
    first = LlavaNextCaptioner(str(tiny_llava))
    assert first.reference is not None and first.reference.revision is None and len(first.reference.sha256) == 64
    copy = Path(shutil.copytree(tiny_llava, tmp_path / "copy"))
    assert LlavaNextCaptioner(str(copy)).identity == first.identity
    assert LlavaNextCaptioner(str(copy), prompts=Prompts("What is this?")).identity != first.identity
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert LlavaNextCaptioner(str(copy)).identity != first.identity


def test_refusals(tiny_llava: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--captioner"):
        LlavaNextCaptioner(str(tmp_path / "none"))
    copy = Path(shutil.copytree(tiny_llava, tmp_path / "copy"))
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template.*--captioner"):
        load(copy)
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="no processor of LLaVA-NeXT.*--captioner"):
        load(copy)
    asking = load(tiny_llava, prompts=Prompts("What is <image>?"))
    with pytest.raises(ValueError, match="2 places for an image, not 1: leave <image> out of --prompt"):
        asking.answers([picture(0)], [{"key": "a"}])
