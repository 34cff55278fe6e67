"""The command line of prepare: the whole chain on real photos, exit codes, messages."""

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from t2ikit.augment.cutmix import SETTINGS
from t2ikit.cli import main
from t2ikit.commands.prepare import add_parser
from t2ikit.records.record_set import RecordSet


def call(*words: str | Path) -> int:
    return main(["prepare", *map(str, words)])


def test_chain_on_real_photos(tmp_path: Path) -> None:
    """Ten ImageNet photos; train and val share no class, and crane and maillot stand for two classes each."""
    data = os.environ.get("T2IKIT_TEST_DATA")
    if not data:
        pytest.skip("set T2IKIT_TEST_DATA to a folder with imagenet-sample/train and val")
    sample = Path(data) / "imagenet-sample"
    wanted = ["n02012849", "n03126707", "n03710637", "n03710721", "n01440764", "n04389033"]
    for split in ("train", "val"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        present = sorted(path.name for path in (sample / split).iterdir())
        for wnid in [*(wnid for wnid in wanted if wnid in present), *present[:2]]:
            link = tmp_path / "photos" / split / wnid
            if not link.exists():
                link.symlink_to(sample / split / wnid)
    out = tmp_path / "data"
    assert call("images", "--source", tmp_path / "photos", "--out", out, "--size", "64", "--workers", "0") == 0
    assert call("captions", "--out", out) == 0
    assert call("cutmix", "--out", out, "--setting", "cmall", "--workers", "0") == 0
    encoders = ("--autoencoder", "pixels", "--text-encoder", "small", "--accelerator", "cpu")
    assert call("encode", "--out", out, *encoders) == 0
    assert call("check", out) == 0
    classes = {}
    for name in ("train", "val"):
        for record in RecordSet(out / name):
            facts = record.metadata
            assert facts["key"].split("/")[0] == name
            assert record.captions == (f"An image of {facts['class_name']}",)
            classes[facts["class_id"]] = facts["class_name"]
            # The sample names its files after the number of the class.
            assert int(Path(facts["key"]).stem.split("_")[1]) == facts["class_id"]
    assert {classes[134], classes[517]} == {"crane"} and {classes[638], classes[639]} == {"maillot"}
    assert len(RecordSet(out / "train_cmall")) == len(RecordSet(out / "train"))


def test_errors_are_one_message_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("images", "--source", tmp_path / "missing", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: prepare images: there is no folder") and "--source" in error
    assert call("captions", "--out", tmp_path) == 2
    assert "t2ikit prepare images --source" in capsys.readouterr().err
    assert call("encode", "--out", tmp_path) == 2


def test_steps_out_of_order_name_the_missing_one(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("images", "--source", photos, "--out", tmp_path, "--size", "16", "--workers", "0") == 0
    assert call("encode", "--out", tmp_path, "--autoencoder", "pixels", "--text-encoder", "small") == 2
    assert f"run t2ikit prepare captions --out {tmp_path} first" in capsys.readouterr().err


def test_check_lists_findings_and_exits_with_1(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    chunk = next((prepared / "train").glob("chunk-*.bin"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert call("check", prepared) == 1
    assert str(chunk) in capsys.readouterr().out


def test_wrong_words_are_refused(capsys: pytest.CaptureFixture) -> None:
    for words in (["cutmix", "--out", "x", "--setting", "cm3"], ["captions"], [], ["check"]):
        with pytest.raises(SystemExit) as caught:
            call(*words)
        assert caught.value.code == 2
    capsys.readouterr()


STEPS = ["images", "captions", "cutmix", "encode", "shapes", "check", "extend"]


def parser_of(step: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    steps = add_parser(parser.add_subparsers())._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    return steps[step]  # type: ignore[index,no-any-return]


@pytest.mark.parametrize("step", STEPS)
def test_help_explains_every_option(step: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        call(step, "--help")
    assert caught.value.code == 0
    assert len(capsys.readouterr().out) > 200
    assert all(action.help for action in parser_of(step)._actions)


def test_help_loads_neither_torch_nor_lightning() -> None:
    """Nor does a mistyped option: both answer at once."""
    script = (
        "import sys, t2ikit.cli as c\n"
        "for words in (['--help'], *([step, '--help'] for step in sys.argv[1:]), ['encode', '--ou', 'x']):\n"
        "    try: c.main(['prepare', *words])\n"
        "    except SystemExit: pass\n"
        "sys.exit(' '.join({'torch', 'lightning', 'transformers', 'diffusers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, *STEPS], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: t2ikit prepare") == 1 + len(STEPS) and "prepare encode" in done.stderr


def test_help_shows_defaults_also_where_they_are_0(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        call("captions", "--help")
    assert "the likeliest token each time (default: 0.0)" in " ".join(capsys.readouterr().out.split())


def test_the_command_line_has_the_values_of_the_rooms_that_it_does_not_import() -> None:
    from t2ikit.commands.prepare.options import Setting
    from t2ikit.encoders.autoencoders import DEFAULT_AUTOENCODER
    from t2ikit.encoders.text import DEFAULT_TEXT_ENCODER, MAX_TOKENS

    encode = parser_of("encode")
    wanted = {"autoencoder": DEFAULT_AUTOENCODER, "text_encoder": [DEFAULT_TEXT_ENCODER], "max_tokens": MAX_TOKENS}
    assert {name: encode.get_default(name) for name in wanted} == wanted
    assert get_args(Setting) == SETTINGS


def test_an_abbreviated_option_is_no_option(capsys: pytest.CaptureFixture) -> None:
    for words in (["images", "--source", "x", "--out", "y", "--over"], ["captions", "--out", "x", "--prom", "y"]):
        with pytest.raises(SystemExit) as caught:
            call(*words)
        assert caught.value.code == 2
    assert "unrecognized arguments: --over" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("captions --prompt question.txt", "--prompt is for a model: give --kind llava or --kind http, too"),
        ("captions --temperature 0.7", "--temperature is for a model"),
        ("captions --captioner models/llava", "--captioner is for --kind llava"),
        ("captions --kind http --captioner models/llava", "--captioner is for --kind llava"),
        ("captions --kind llava --concurrency 8", "--concurrency is for --kind http"),
        ("captions --captions mine.tsv --max-new-tokens 50", "--max-new-tokens is for a model"),
        ("captions --kind llava --captions mine.tsv", "captions come from a file (--captions) or from a captioner"),
        ("encode --autoencoder pixels --autoencoder-revision main", "--autoencoder-revision is for an autoencoder of"),
        (
            "encode --text-encoder small --text-encoder-revision main",
            "--text-encoder-revision is for a text encoder",
        ),
        ("encode --text-dim 32", "--text-dim is for --text-encoder small"),
        ("encode --seed 1", "--seed is for --text-encoder small"),
    ],
)
def test_an_option_without_effect_is_refused(
    words: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Captions of the class names, where a prompt was given, would be found out at the end of the training."""
    assert call(*words.split(), "--out", tmp_path) == 2
    assert f"error: prepare {words.split()[0]}: {reason}" in capsys.readouterr().err


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def prepare(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("t2ikit.prepare.cutmix.prepare_cutmix", prepare)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "the disk is full ([Errno 28] No space left on"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "'/data/x': this user may not read or write"),
        (OSError(errno.EIO, "Input/output error", "/data/x"), "[Errno 5] Input/output error: '/data/x'"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "give a smaller --batch-size; what is finished is"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "too little memory: give fewer --workers; what is finished is kept: give the same command again",
        ),
    ],
)
def test_a_machine_that_cannot_go_on_says_what_to_do(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fails(monkeypatch, error)
    assert call("cutmix", "--out", "x") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: prepare cutmix: ") and told in said and len(said.splitlines()) == 1


def test_debug_shows_where_it_went_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prepare captions: ") as caught:
        call("captions", "--out", tmp_path, "--debug")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_defect_is_shown_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        call("cutmix", "--out", "x")


def test_an_interrupt_says_that_the_work_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fails(monkeypatch, KeyboardInterrupt())
    assert call("cutmix", "--out", "x") == 130
    said = capsys.readouterr().err
    assert said == "prepare cutmix: what is finished is kept: give the same command again to continue\ninterrupted\n"


def test_the_home_folder_may_be_written_with_a_tilde(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The shell leaves it alone in --out=~/data."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call("captions", "--out=~/data") == 2
    assert f"{tmp_path / 'data'} has no images" in capsys.readouterr().err
