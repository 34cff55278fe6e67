"""Question-answering models: small ones of the same classes, saved as the real ones, against transformers' own way."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from t2ikit.metrics.questions.models import BlipAnswerer, ChatAnswerer, ViltAnswerer, pictures
from t2ikit.metrics.questions.mplug import MPLUGAnswerer

IMAGES = torch.randint(0, 256, (3, 3, 40, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES[0], IMAGES[1, :, :, :26] = 0, 255
QUESTIONS = ["is there a dog ?", "red cat ?", "is there a red cat or a dog or a cat ?"]
# fmt: off
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]",
    "yes", "no", "is", "there", "a", "dog", "cat", "red", "or", "?",
]
# fmt: on
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert_tokenizer() -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, bos_token="[DEC]")


def stir(model: torch.nn.Module, factor: float = 8.0) -> None:
    """Random weights far enough from zero that another image or question gives another answer."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 and "norm" not in name.lower():
                value.mul_(factor)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("blip")
    special = {"bos_token_id": 5, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    text = {**TOWER, **special, "vocab_size": len(WORDS), "encoder_hidden_size": 32, "max_position_embeddings": 24}
    vision = {**TOWER, "image_size": 32, "patch_size": 8, "initializer_range": 0.02}
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision))
    stir(model)
    model.eval().save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), bert_tokenizer()).save_pretrained(folder)
    return folder


def test_blip_answers_as_transformers_does_one_by_one(blip: Path) -> None:
    from transformers import AutoProcessor, BlipForQuestionAnswering

    model, processor = BlipForQuestionAnswering.from_pretrained(blip).eval(), AutoProcessor.from_pretrained(blip)
    images, questions = IMAGES.repeat_interleave(3, dim=0), QUESTIONS * 3
    expected = []
    for image, question in zip(pictures(images), questions, strict=True):
        inputs = processor(images=image, text=question, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=10, do_sample=False)
        expected.append(processor.decode(output[0], skip_special_tokens=True).strip())
    # Questions of other lengths in the batch must not change an answer.
    answerer = BlipAnswerer(str(blip))
    assert answerer.free_answers(images, questions) == expected
    assert len(set(expected)) > 3
    pairs = [answerer.free_answers(images[k : k + 2], questions[k : k + 2]) for k in range(0, len(questions), 2)]
    assert [answer for pair in pairs for answer in pair] == expected


def test_what_an_answerer_is(blip: Path) -> None:
    described = BlipAnswerer(str(blip), num_beams=3).fingerprint()
    assert described["features"] == f"BlipAnswerer:{blip}"
    assert (described["num_beams"], described["reading"], described["features_revision"]) == (3, "as_is", None)
    assert len(described["features_sha256"]) == 64
    # The tokenizer decides the answers, too.
    tokenizer = blip / "tokenizer_config.json"
    before = tokenizer.read_text()
    try:
        tokenizer.write_text(before + "\n")
        assert BlipAnswerer(str(blip)).identity()["features_sha256"] != described["features_sha256"]
    finally:
        tokenizer.write_text(before)
    with pytest.raises(FileNotFoundError, match="answerer.init_args.model"):
        BlipAnswerer("./nowhere").identity()
    with pytest.raises(ValueError, match="dtype must be one of"):
        BlipAnswerer(str(blip), dtype="int8")


def test_another_kind_of_model_is_refused(blip: Path) -> None:
    with pytest.raises(ValueError, match=r"answerer\.init_args\.model"):
        ViltAnswerer(str(blip)).free_answers(IMAGES[:1], ["a"])


def test_vilt_chooses_a_known_answer(tmp_path: Path) -> None:
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor

    torch.manual_seed(0)
    known = {0: "yes", 1: "no", 2: "2", 3: "red", 4: "blue", 5: "dog"}
    config = ViltConfig(
        **TOWER,
        vocab_size=len(WORDS),
        max_position_embeddings=12,
        image_size=64,
        patch_size=16,
        id2label=known,
        label2id={word: number for number, word in known.items()},
    )
    model = ViltForQuestionAnswering(config).eval()
    stir(model, 20.0)
    model.save_pretrained(tmp_path)
    processor = ViltProcessor(ViltImageProcessor(size={"shortest_edge": 64}, size_divisor=16), bert_tokenizer())
    processor.save_pretrained(tmp_path)
    images, questions = IMAGES.repeat_interleave(3, dim=0), QUESTIONS * 3
    expected = []
    for image, question in zip(pictures(images), questions, strict=True):
        inputs = processor(images=image, text=question, truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            expected.append(known[int(model(**inputs).logits.argmax())])
    assert ViltAnswerer(str(tmp_path)).free_answers(images, questions) == expected
    assert len(set(expected)) > 1


TEMPLATE = (
    "{% for message in messages %}user : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-NeXT of 32 pixels whose words are letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llava")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *pre_tokenizers.ByteLevel.alphabet()]
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    config = LlavaNextConfig(
        text_config={**TOWER, "model_type": "llama", "vocab_size": len(letters), "num_key_value_heads": 2},
        vision_config={**TOWER, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8},
        image_token_index=4,
        image_grid_pinpoints=[[32, 64], [64, 32]],
        vision_feature_layer=-1,
    )
    model = LlavaNextForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    stir(model, 4.0)
    model.save_pretrained(folder)
    shown = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 64], [64, 32]]
    )
    processor = LlavaNextProcessor(
        shown, fast, patch_size=8, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder


def test_a_chat_model_answers_as_transformers_does_one_by_one(llava: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(llava).eval(), AutoProcessor.from_pretrained(llava)
    expected = []
    for image, question in zip(pictures(IMAGES), QUESTIONS, strict=True):
        prompt = f"user : <image> {question}\nAnswer the question using a single word or phrase. assistant : "
        inputs = processor(images=image, text=prompt, return_tensors="pt", add_special_tokens=False)
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        answer = output[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(answer, skip_special_tokens=True).strip())
    answerer = ChatAnswerer(str(llava), max_new_tokens=6, batch_size=3, reading="as_is")
    assert answerer.free_answers(IMAGES, QUESTIONS) == expected
    assert len(set(expected)) > 1
    # Shown choices are part of the prompt.
    shown = answerer._texts(processor, ["which ?"], [["a dog", "a cat"]])
    assert shown == ["user : <image> which ?\nAnswer with one of: a dog, a cat. assistant : "]
    assert answerer.identity()["chat"] is True


def test_a_prompt_without_a_chat(llava: Path) -> None:
    from transformers import AutoProcessor

    answerer = ChatAnswerer(str(llava), prompt="<image> answer en {question}", chat=False, max_new_tokens=2)
    processor = AutoProcessor.from_pretrained(llava)
    assert answerer._texts(processor, ["a ?"], None) == ["<image> answer en a ?"]
    assert len(answerer.free_answers(IMAGES[:2], ["a ?", "there is a dog ?"])) == 2
    processor.chat_template = None
    with pytest.raises(ValueError, match=r"answerer\.init_args\.chat"):
        ChatAnswerer(str(llava))._texts(processor, ["a ?"], None)
    with pytest.raises(ValueError, match="prompt must hold {question}"):
        ChatAnswerer(str(llava), prompt="answer")


def test_mplug_without_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ImportError, match=r"pip install \"t2ikit\[mplug\]\""):
        MPLUGAnswerer().identity()
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    answerer = MPLUGAnswerer(str(tmp_path))
    assert len(answerer.identity()["features_sha256"]) == 64
    with pytest.raises(ImportError, match=r"t2ikit\[mplug\]"):
        answerer.free_answers(IMAGES[:1], ["a ?"])


def test_mplug_is_asked_through_modelscopes_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    made: list[dict[str, Any]] = []

    def pipeline(task: str, model: str, device: str) -> Any:
        made.append({"task": task, "model": model, "device": device})
        return lambda asked: {"text": f"{asked['question']} {asked['image'].size[0]} x {asked['image'].size[1]}"}

    names = {"modelscope": {}, "modelscope.pipelines": {"pipeline": pipeline}, "modelscope.utils": {}}
    tasks = type("Tasks", (), {"visual_question_answering": "visual-question-answering"})
    hub = {"snapshot_download": lambda name, revision: str(tmp_path)}
    names |= {"modelscope.utils.constant": {"Tasks": tasks}, "modelscope.hub": {}}
    names["modelscope.hub.snapshot_download"] = hub
    for name, content in names.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    answerer = MPLUGAnswerer()
    assert answerer.free_answers(IMAGES[:2], ["a ?", "b ?"]) == ["a ? 52 x 40", "b ? 52 x 40"]
    assert made == [{"task": "visual-question-answering", "model": str(tmp_path), "device": "cpu"}]
