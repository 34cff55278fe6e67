"""Extended prompts: a small chat model in the place of the large one; resuming, publishing, refusing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ikit.cli import main
from t2ikit.prepare import extend_prompts as extending
from t2ikit.prepare.captions.captioner import tidy
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.extend_prompts import ExtendPrompts, extend_prompts, read_prompt_list, unquoted
from t2ikit.prepare.rewriting import Rewriting

REWRITING = Rewriting("Say more : {prompt}", max_new_tokens=12)
LAUNCH = Launch(accelerator="cpu", devices=1, batch_size=3)
PROMPTS = ["a dog", "two red cats on a bench", "a car", "a dog", "a cat left of a bus", "seven cups", "one spoon"]
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}{% if add_generation_prompt %} : {% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of letters with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("chat")
    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(letters), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.mul_(8)
        # Letters only: bytes that are no UTF-8 and an early end would make empty answers.
        writable = torch.tensor([letter.isascii() and letter.isalpha() and len(letter) == 1 for letter in letters])
        model.lm_head.weight[~writable] = 0
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n\n")
    return path


def test_list_is_what_the_model_says_to_each_prompt(chat_model: Path, prompts: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = extend_prompts(prompts, tmp_path / "extended.jsonl", str(chat_model), None, REWRITING, LAUNCH)
    header, *rows = rows_of(out)
    assert [row["prompt"] for row in rows] == PROMPTS
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(chat_model).eval(),
        AutoTokenizer.from_pretrained(chat_model),
    )
    for row in rows:
        inputs = tokenizer(f"<s>Say more : {row['prompt']} : ", return_tensors="pt", add_special_tokens=False)
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert row["extended"] == tidy(unquoted(tokenizer.decode(output, skip_special_tokens=True)))
    assert len({row["extended"] for row in rows}) > 2
    assert (header["kind"], header["count"], header["instruction"]) == ("extended prompts", 7, "Say more : {prompt}")
    assert header["model"]["name"] == str(chat_model)
    assert len(header["model"]["sha256"]) == 64
    assert {file.name for file in tmp_path.iterdir()} == {"prompts.txt", "extended.jsonl"}


def test_a_stopped_call_goes_on(
    chat_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extend_prompts(prompts, tmp_path / "whole.jsonl", str(chat_model), None, REWRITING, LAUNCH)
    monkeypatch.setattr(extending, "SHARD", 3)
    asked: list[list[str]] = []
    compute = ExtendPrompts.compute

    def stop_at_third(self: ExtendPrompts, items: list[str]) -> list[bytes]:
        asked.append(list(items))
        if len(asked) == 3:
            raise RuntimeError("power cut")
        return compute(self, items)

    monkeypatch.setattr(ExtendPrompts, "compute", stop_at_third)
    out = tmp_path / "extended.jsonl"
    with pytest.raises(RuntimeError, match="power cut"):
        extend_prompts(prompts, out, str(chat_model), None, REWRITING, LAUNCH)
    assert not out.exists()
    done = len(list((tmp_path / ".extended.jsonl.work").glob("shard-*.json")))
    assert done >= 1
    extend_prompts(prompts, out, str(chat_model), None, REWRITING, LAUNCH)
    # What the first call wrote is not asked again.
    assert asked[3:] == [PROMPTS[start : start + 3] for start in range(3 * done, 7, 3)]
    assert out.read_text() == whole.read_text()


def test_another_list_is_not_overwritten(
    chat_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "extended.jsonl"
    extend_prompts(prompts, out, str(chat_model), None, REWRITING, LAUNCH)
    before = out.read_bytes()
    extend_prompts(prompts, out, str(chat_model), None, REWRITING, LAUNCH)
    assert "up to date" in capsys.readouterr().out
    other = Rewriting("Say less : {prompt}", 12)
    with pytest.raises(FileExistsError, match="--overwrite"):
        extend_prompts(prompts, out, str(chat_model), None, other, LAUNCH)
    assert out.read_bytes() == before
    extend_prompts(prompts, out, str(chat_model), None, other, LAUNCH, overwrite=True)
    assert rows_of(out)[0]["instruction"] == "Say less : {prompt}"


def test_kinds_of_files(tmp_path: Path) -> None:
    geneval = tmp_path / "metadata.jsonl"
    geneval.write_text('{"tag": "colors", "prompt": "a red car"}\n{"tag": "counting", "prompt": "two cups"}\n')
    assert read_prompt_list(geneval) == ["a red car", "two cups"]
    parti = tmp_path / "PartiPrompts.tsv"
    parti.write_text('Prompt\tCategory\n"a sign that says "no"\tText\nbond\tAbstract\n')
    assert read_prompt_list(parti) == ['"a sign that says "no"', "bond"]
    geneval.write_text('{"prompt": "a"}\n{"tag": "colors"}\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 2: no JSON object with a prompt"):
        read_prompt_list(geneval)
    geneval.write_text('{"prompt": ""}\n')
    with pytest.raises(ValueError, match="line 1: the prompt is ''"):
        read_prompt_list(geneval)
    parti.write_text("Text\nbond\n")
    with pytest.raises(ValueError, match="no column Prompt"):
        read_prompt_list(parti)
    with pytest.raises(FileNotFoundError, match="--prompts"):
        read_prompt_list(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompt_list(tmp_path / "empty.txt")


def test_real_prompt_files(sample_data: Path) -> None:
    benchmarks = sample_data / "benchmarks"
    assert len(read_prompt_list(benchmarks / "PartiPrompts.tsv")) == 1632
    assert len(read_prompt_list(next((benchmarks / "geneval").glob("*.jsonl")))) == 553


def test_wrong_options(chat_model: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="{prompt}"):
        Rewriting("Say more")
    with pytest.raises(ValueError, match="--max-new-tokens"):
        Rewriting(max_new_tokens=0)
    with pytest.raises(FileNotFoundError, match="--model"):
        extend_prompts(prompts, tmp_path / "out.jsonl", "./nowhere", None, REWRITING, LAUNCH)
    for file in chat_model.iterdir():
        if not file.name.startswith("chat_template"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="no chat template.*--model"):
        extend_prompts(prompts, tmp_path / "out.jsonl", str(tmp_path), None, REWRITING, LAUNCH)


def test_a_model_that_says_nothing_is_named(
    chat_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExtendPrompts, "compute", lambda self, items: [b""] * len(items))
    with pytest.raises(ValueError, match="nothing to say to 'a dog'.*--instruction"):
        extend_prompts(prompts, tmp_path / "out.jsonl", str(chat_model), None, REWRITING, LAUNCH)
    assert not (tmp_path / "out.jsonl").exists()


def test_quotation_marks() -> None:
    assert unquoted(' "A dog." ') == "A dog."
    assert unquoted('"A" is a "letter".') == '"A" is a "letter".'
    assert unquoted('"') == '"'


def test_command(chat_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "extended.jsonl"
    (tmp_path / "instruction.txt").write_text("Say more : {prompt}")
    options = ["--model", str(chat_model), "--instruction", str(tmp_path / "instruction.txt")]
    options += ["--max-new-tokens", "6", "--trainer.accelerator", "cpu"]
    assert main(["prepare", "extend", "--prompts", str(prompts), "--out", str(out), *options]) == 0
    assert [row["prompt"] for row in rows_of(out)[1:]] == PROMPTS
    assert main(["prepare", "extend", "--prompts", str(tmp_path / "none"), "--out", str(out), *options]) == 2
    assert "--prompts" in capsys.readouterr().err


def test_the_prompt_source_reads_the_list(chat_model: Path, prompts: Path, tmp_path: Path) -> None:
    from t2ikit.metrics.geneval.prompts import read_extended

    out = extend_prompts(prompts, tmp_path / "extended.jsonl", str(chat_model), None, REWRITING, LAUNCH)
    assert read_extended(out, PROMPTS, "extended") == [row["extended"] for row in rows_of(out)[1:]]
