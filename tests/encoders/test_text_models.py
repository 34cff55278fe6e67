"""Text encoders of every kind, each a tiny random model of the real class in a folder of the real format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from t2ikit.encoders import build_small_t5
from t2ikit.encoders.limits import cut_texts, with_remarks
from t2ikit.encoders.text import TextEncoder, encode_prompts, load_encoder, split_layer

TEXTS = ["An image of crane.", "", "a red circle, left of two blue squares", "an image"]
WIDTH = 32
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def clip_tokenizer() -> Any:
    """Bytes as tokens, as CLIP's without a merge; its padding is its end token."""
    names = [*BYTES, *(f"{byte}</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[])


def byte_tokenizer(first: str | None, **special: str) -> Any:
    """Bytes as tokens behind the token ``first``, as those of language models."""
    names = [*BYTES, "<s>", "</s>", "<pad>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if first is not None:
        tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, vocabulary[first])])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def clip_options() -> dict[str, Any]:
    sizes = {"vocab_size": 514, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3}
    return {**sizes, "num_attention_heads": 4, "projection_dim": 20, "bos_token_id": 512, "eos_token_id": 513}


def clip(folder: Path, model_class: Any = transformers.CLIPTextModel) -> str:
    model_class(transformers.CLIPTextConfig(**clip_options())).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return str(folder)


def projected_clip(folder: Path) -> str:
    return clip(folder, transformers.CLIPTextModelWithProjection)


def whole_clip(folder: Path) -> str:
    """A CLIP with its half for images."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=clip_options(), vision_config=vision, projection_dim=20)
    transformers.CLIPModel(config).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return str(folder)


def byt5(folder: Path) -> str:
    config = transformers.T5Config(vocab_size=384, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=3, num_heads=4)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    transformers.ByT5Tokenizer().save_pretrained(folder)
    return str(folder)


def language_model(folder: Path, kind: str, tokenizer: Any) -> str:
    """A decoder-only one with its head."""
    sizes = {"vocab_size": 259, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes, pad_token_id=tokenizer.pad_token_id)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def llama(folder: Path) -> str:
    """A BOS in front, no padding token."""
    return language_model(folder, "Llama", byte_tokenizer("<s>", bos_token="<s>", eos_token="</s>"))


def gemma(folder: Path) -> str:
    """A BOS in front; its tokenizer pads and cuts on the left."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    sides: Any = {"padding_side": "left", "truncation_side": "left"}
    return language_model(folder, "Gemma2", byte_tokenizer("<s>", **special, **sides))


def qwen(folder: Path) -> str:
    """No token at all for the empty prompt."""
    return language_model(folder, "Qwen2", byte_tokenizer(None, eos_token="</s>", pad_token="<pad>"))


# Maker -> tokens of the empty prompt, and of "an image"; width of the pooled vectors.
KINDS: dict[Callable[[Path], str], tuple[list[int], int, int]] = {
    byt5: ([1], 9, 0),
    clip: ([512, 513], 9, WIDTH),
    projected_clip: ([512, 513], 9, 20),
    whole_clip: ([512, 513], 9, 20),
    llama: ([256], 9, 0),
    gemma: ([256], 9, 0),
    qwen: ([258], 8, 0),
}
every = pytest.mark.parametrize("maker", KINDS, ids=lambda maker: maker.__name__)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], str]], str]:
    folder, folders = tmp_path_factory.mktemp("models"), dict[str, str]()

    def find(maker: Callable[[Path], str]) -> str:
        name = maker.__name__
        if name not in folders:
            torch.manual_seed(0)
            folders[name] = maker(folder / name)
        return folders[name]

    return find


@every
def test_states_are_those_of_the_model(maker: Callable[[Path], str], made: Any) -> None:
    """Of each prompt alone, computed by the model itself, whatever it is encoded with."""
    encoder = TextEncoder.load(made(maker))
    empty, length, pooled_dim = KINDS[maker]
    assert (encoder.dim, encoder.pooled_dim) == (WIDTH, pooled_dim)
    assert encoder.lengths(["", "an image"]) == [len(empty), length]
    states, pooled = encoder.encode_pooled(TEXTS)
    for row, (text, actual) in enumerate(zip(TEXTS, states, strict=True)):
        ids = encoder.tokenizer(text).input_ids or empty
        assert ids == empty if text == "" else len(ids) == len(actual)
        with torch.no_grad():
            output = encoder.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)))
        torch.testing.assert_close(actual, output.last_hidden_state[0], rtol=1e-4, atol=1e-5)
        assert actual.dtype == torch.float32 and len(actual) >= 1
        if pooled is not None:
            expected = output.text_embeds if pooled_dim == 20 else output.pooler_output
            torch.testing.assert_close(pooled[row], expected[0], rtol=1e-4, atol=1e-5)
            if pooled_dim == WIDTH:  # the state of the end token, not of the padding, which has the same number
                torch.testing.assert_close(pooled[row], actual[-1], rtol=1e-4, atol=1e-5)
    assert (pooled is None) == (pooled_dim == 0)


@every
def test_rows_of_many_prompts(maker: Callable[[Path], str], made: Any) -> None:
    encoder = TextEncoder.load(made(maker))
    rows, (whole, pooled) = encoder.encode_rows(TEXTS, 2), encoder.encode_pooled(TEXTS)
    for index, row in enumerate(rows):
        assert row.embeddings.shape[0] == 1 and bool(row.mask.all())
        torch.testing.assert_close(row.embeddings[0], whole[index], rtol=1e-4, atol=1e-5)
        if pooled is not None:
            torch.testing.assert_close(row.pooled[0], pooled[index], rtol=1e-4, atol=1e-5)
    text = encoder(TEXTS)
    assert text.mask.sum(1).tolist() == encoder.lengths(TEXTS)
    assert encoder.encode_pooled([]) == ([], None) and encoder.encode_rows([]) == []


@every
def test_special_tokens_in_a_prompt_are_text(maker: Callable[[Path], str], made: Any) -> None:
    encoder = TextEncoder.load(made(maker))
    special = encoder.tokenizer.eos_token
    assert special
    (plain,), (ids,) = encoder._ids(["an image"]), encoder._ids([f"an {special} image"])
    assert ids.count(encoder.tokenizer.eos_token_id) == plain.count(encoder.tokenizer.eos_token_id)
    assert len(ids) > len(plain)
    assert encoder._ids([""])[0]


@every
def test_long_prompts_lose_their_end(maker: Callable[[Path], str], made: Any) -> None:
    encoder = TextEncoder.load(made(maker), max_tokens=6)
    texts = ["an image of crane", "an", ""]
    assert encoder.lengths(texts)[0] == 6 and cut_texts(encoder, texts) == (1, texts[0])
    assert cut_texts(encoder, []) == (0, "")
    whole = TextEncoder.load(made(maker))
    kept = 5 if maker is byt5 or encoder.pooled_dim else 6  # then the end token
    first = encoder.tokenizer(texts[0]).input_ids[:kept]
    assert encoder._ids(texts)[0][:kept] == first
    if encoder.pooled_dim:
        assert whole.max_tokens == 77 and whole.lengths(["image " * 100]) == [77]
        assert cut_texts(whole, ["image " * 100, "image"])[0] == 1
    else:
        torch.testing.assert_close(whole.encode(["an"])[0], encoder.encode(["an"])[0])


@every
def test_another_layer(maker: Callable[[Path], str], made: Any) -> None:
    folder = made(maker)
    last, penultimate = TextEncoder.load(folder), TextEncoder.load(f"{folder}#layer=-2")
    ids = torch.tensor(last._ids(["an image"]))
    with torch.no_grad():
        output = last.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    actual, pooled = penultimate.encode_pooled(["an image"])
    torch.testing.assert_close(actual[0], output.hidden_states[-2][0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(actual[0], last.encode(["an image"])[0], atol=1e-3)
    if pooled is not None:
        torch.testing.assert_close(pooled, last.encode_pooled(["an image"])[1])
    assert penultimate.reference.name == f"{folder}#layer=-2"
    assert penultimate.reference.sha256 != last.reference.sha256
    again = load_encoder(penultimate.reference, None, "encode again")
    assert again.layer == -2 and torch.equal(again.encode(["an image"])[0], actual[0])
    assert load_encoder(penultimate.reference, None, "encode again", name=folder).layer == -2
    assert load_encoder(penultimate.reference, None, "encode again", token_limit=4).max_tokens == 4
    with pytest.raises(ValueError, match="there is no -4"):
        TextEncoder.load(f"{folder}#layer=-4")
    with pytest.raises(ValueError, match="other weights.*encode again"):
        load_encoder(last.reference, None, "encode again", name=f"{folder}#layer=-2")


def test_names_of_layers() -> None:
    assert split_layer("a/b") == ("a/b", -1) and split_layer("a/b#layer=-3") == ("a/b", -3)
    with pytest.raises(ValueError, match="a/b#layer=-2"):
        split_layer("a/b#layer=last")


def test_prompts_by_several_encoders(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One encoder after the other, a tuple a prompt; cut prompts are counted."""
    loaded: list[str] = []

    def encoders() -> Any:
        for maker in (byt5, clip):
            loaded.append(maker.__name__)
            yield TextEncoder.load(made(maker), max_tokens=20)

    rows = encode_prompts(with_remarks(encoders(), TEXTS), TEXTS)
    assert loaded == ["byt5", "clip"] and len(rows) == len(TEXTS)
    first, second = rows[1]
    assert first.embeddings.shape == (1, 1, WIDTH) and first.pooled is None
    assert second.embeddings.shape == (1, 2, WIDTH) and second.pooled.shape == (1, WIDTH)
    assert "1 of 3 prompts are longer than the 20 tokens that the text encoder" in capsys.readouterr().out
    (alone,) = encode_prompts([TextEncoder.load(made(byt5))], ["an image"])
    assert alone.embeddings.shape == (1, 9, WIDTH)  # no tuple


def test_nothing_is_unknown_to_bytes(made: Any) -> None:
    for maker in (byt5, clip, qwen):
        assert TextEncoder.load(made(maker)).unknown_words("An image of zebra é") == []


def test_refusals(tmp_path: Path, made: Any) -> None:
    transformers.Dinov2Model(
        transformers.Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path / "vision")
    with pytest.raises(ValueError, match="model_type is 'dinov2', neither a T5"):
        TextEncoder.load(str(tmp_path / "vision"))
    build_small_t5(tmp_path / "t5", ["a"], dim=16)
    byte_tokenizer("<s>", bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="not into its end token alone"):
        TextEncoder.load(str(tmp_path / "t5"))
    clip(tmp_path / "clip")
    byte_tokenizer("<s>", bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="without its end token 257"):
        TextEncoder.load(str(tmp_path / "clip"))
    encoder = TextEncoder.load(made(qwen))
    with pytest.raises(ValueError, match="no token for the empty prompt"):
        TextEncoder(encoder.model, byte_tokenizer(None), encoder.reference)
