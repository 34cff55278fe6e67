"""The command line of prepare: the whole chain on real photos, exit codes, messages."""

import argparse
import os
from pathlib import Path

import pytest

from t2ikit.data.records import RecordSet
from t2ikit.prepare.command import add_parser, run


def call(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return run(parser.parse_args(["prepare", *map(str, words)]))


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
    assert error.startswith("t2ikit prepare images: there is no folder") and "--source" in error
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


@pytest.mark.parametrize("step", ["images", "captions", "cutmix", "encode", "shapes", "check"])
def test_help_explains_every_option(step: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        call(step, "--help")
    assert caught.value.code == 0
    assert len(capsys.readouterr().out) > 200
    parser = argparse.ArgumentParser()
    steps = add_parser(parser.add_subparsers())._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert all(action.help for action in steps[step]._actions)  # type: ignore[index]
