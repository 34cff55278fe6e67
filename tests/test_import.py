"""``t2ikit import``: released weights as a run of one's own, for every command that takes one."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import t2ikit
import tiny
from t2ikit import cli
from t2ikit.checkpoints import load_denoiser
from t2ikit.checkpoints.runs import is_finished
from t2ikit.denoisers import CADI
from t2ikit.metrics.fingerprint import read_scores
from t2ikit.run import imported

EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 2}
callbacks:
  cutmix: null
  table: null
  geneval: null
  val:
    init_args: {prompts: {init_args: {limit: 4}}, metrics: [t2ikit.shapes.LargestColorShare], at_start: false, steps: 2}
data: {init_args: {settings: []}}
"""
# As the released program calls them.
SETTINGS = {"read_write_heads": 2, "compute_heads": 2, "compute_dropout": 0.0, "time_scaling": 1000.0, "num_blocks": 1}
PROMPT = ("--prompt", "a red circle", "--steps", "2", "--seed", "3")


def released(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """With the constants that the released program stores beside its weights."""
    constants = {"time_embedder.encode_time.freqs": torch.zeros(8)}
    constants["rin_blocks.0.writer_ca.attention_mask_dummy"] = torch.ones(1, 1, dtype=torch.bool)
    return {prefix + name: value.clone() for name, value in {**state, **constants}.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, and theirs/: the same weights as the released program would keep them."""
    folder = tmp_path_factory.mktemp("import")
    with pytest.MonkeyPatch.context() as patch:
        tiny.enter(folder, patch, {"small.yaml": EXPERIMENT})
        assert cli.main(["run", "small.yaml"]) == 0
    content = torch.load(folder / "runs/small/version_0/checkpoints/step-00000002.ckpt", weights_only=True)
    raw = {name.removeprefix("denoiser."): value for name, value in content["state_dict"].items() if "denoiser" in name}
    (averages,) = content["callbacks"]["EMA"]["profiles"].values()
    (folder / "theirs").mkdir()
    (folder / "theirs" / "config.json").write_text(json.dumps(SETTINGS))
    both = released(raw, "network.") | released(averages, "ema_network.") | {"loss.weight": torch.ones(1)}
    torch.save({"state_dict": both, "global_step": 2, "epoch": 0}, folder / "theirs/epoch=0-step=2.ckpt")
    save_file(released(averages), folder / "theirs" / "model.safetensors")
    return folder


@pytest.fixture
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test, with what the fixture made."""
    for name in ("small.yaml", "tiny.yaml"):
        shutil.copy(folder / name, tmp_path / name)
    for name in ("runs", "theirs"):
        shutil.copytree(folder / name, tmp_path / name)
    return tiny.current(tmp_path, monkeypatch)


ENCODER = ("--text-encoder", "runs/small/version_0/text_encoder")


def bring(source: str, target: str, *words: str) -> Path:
    assert cli.main(["import", source, target, "--experiment", "small.yaml", *ENCODER, *words]) == 0
    return Path(target)


def picture(run: Path | str, *words: str) -> np.ndarray:
    assert cli.main(["sample", str(run), *PROMPT, "--out", "out", *words]) == 0
    return np.asarray(Image.open("out/00000.png"))


def scores(run: str, out: str) -> dict[str, Any]:
    assert cli.main(["evaluate", run, "--snapshot", "val", "--out", out, "--device", "cpu"]) == 0
    return {
        name: (score.value, score.fingerprint) for name, score in read_scores(next(Path(out).glob("*/scores"))).items()
    }


@pytest.mark.long
def test_it_is_as_a_run_of_one_s_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = "runs/small/version_0"
    theirs = bring("theirs/epoch=0-step=2.ckpt", "runs/theirs/version_0")
    assert is_finished(theirs) and (theirs / "checkpoints/step-00000002.ckpt").is_file()
    assert not list(theirs.parent.glob(".*"))
    facts = yaml.safe_load((theirs / "imported.yaml").read_text())
    assert facts["source"] == str(place / "theirs/epoch=0-step=2.ckpt") and facts["weights"] == "averages and raw ones"
    for words in ((), ("--weights", "raw")):
        assert np.array_equal(picture(ours, *words), picture(theirs, *words))
    assert not np.array_equal(picture(theirs), picture(theirs, "--weights", "raw"))
    assert np.array_equal(picture("runs/theirs"), picture(theirs))  # as the folder of an experiment's runs
    loaded = t2ikit.load(theirs, device="cpu").sample("a red circle", steps=2, seed=3)[0]
    assert np.array_equal(np.asarray(loaded), picture(ours))
    assert scores(ours, "first") == scores(str(theirs), "second")  # the same fingerprints, too
    assert cli.main(["export", str(theirs), "one.safetensors", "--format", "safetensors"]) == 0
    assert np.array_equal(picture("one.safetensors"), picture(ours))
    assert cli.main(["report", str(theirs), "--out", "page.html"]) == 0
    assert "were imported from" in Path("page.html").read_text()
    capsys.readouterr()
    assert cli.main(["plan", str(theirs / "config.yaml"), "--gpu", "l4"]) == 0
    assert "parameters, trained" in capsys.readouterr().out


@pytest.mark.slow
def test_another_run_starts_from_it_and_none_goes_on_from_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = bring("theirs", "runs/small/version_7")
    start = ["--model.start.checkpoint", str(theirs), "--run.name", "tuned", "--trainer.max_steps", "1"]
    assert cli.main(["run", "small.yaml", *start]) == 0
    started = torch.load("runs/tuned/version_0/checkpoints/step-00000001.ckpt", weights_only=True)["start"]
    assert "version_7" in started["checkpoint"] and started["weights"].startswith("ema")
    for given in (["last"], [str(theirs)], [str(theirs), "--fork"], [str(theirs / "checkpoints/step-00000000.ckpt")]):
        capsys.readouterr()
        assert cli.main(["run", "small.yaml", "--resume", *given]) == 2, given
        assert "were imported" in (said := capsys.readouterr().err) and "--model.start.checkpoint" in said
    lone = shutil.copy(theirs / "checkpoints/step-00000000.ckpt", place / "step-00000000.ckpt")
    assert cli.main(["run", "small.yaml", "--resume", str(lone), "--fork"]) == 2
    assert "were imported" in capsys.readouterr().err
    assert cli.main(["run", "small.yaml", "--resume", "auto", "--trainer.max_steps", "1"]) == 0
    assert Path("runs/small/version_8").is_dir()  # a run of its own


def test_a_repository_and_its_experiment(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network = CADI(input_size=4, data_dim=16, num_latents=4, latent_dim=32, num_blocks=1, num_layers=1, text_dim=8)
    commit = tmp_path / "snapshots" / "abc123"
    commit.mkdir(parents=True)
    coherent = CADI(
        input_size=4, data_dim=16, num_latents=4, latent_dim=32, num_blocks=1, num_layers=1, text_dim=8, coherence=True
    )
    state = {**coherent.state_dict(), **network.state_dict()}
    save_file(released({name: value.half() for name, value in state.items()}), commit / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(commit))
    assert cli.main(["import", "Lucasdegeorge/CAD-I", "released"]) == 0
    said = capsys.readouterr().out
    assert "experiment cad_i_cmall" in said and "coherence token dropped: it was never trained" in said
    facts = yaml.safe_load(Path("released/imported.yaml").read_text())
    assert (facts["source"], facts["revision"], facts["step"]) == ("Lucasdegeorge/CAD-I", "abc123", 0)
    config = yaml.safe_load(Path("released/config.yaml").read_text())
    options = config["model"]["init_args"]["denoiser"]["init_args"]
    assert (options["data_dim"], options["latent_dim"], options["text_dim"]) == (16, 32, 8)
    assert options["read_write_heads"] == 16 and not options["coherence"]
    loaded = load_denoiser("released")
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    assert cli.main(["import", "Lucasdegeorge/CAD-I_TA", "kept", "--coherence", "keep", "--step", "250000"]) == 0
    assert "experiment cad_i_ta" in capsys.readouterr().out and load_denoiser("kept").coherence
    assert Path("kept/checkpoints/step-00250000.ckpt").is_file()


def test_the_released_network_predicts_the_same(
    sample_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vectors = load_file(sample_data / "vectors" / "cadi_tiny.safetensors")
    settings = json.loads((sample_data / "vectors" / "cadi_tiny.json").read_text())["config"]
    Path("model").mkdir()
    Path("model/config.json").write_text(json.dumps(settings))
    save_file({name[2:]: value for name, value in vectors.items() if name.startswith("w.")}, "model/model.safetensors")
    assert cli.main(["import", "model", "run"]) == 0
    options = yaml.safe_load(Path("run/config.yaml").read_text())["model"]["init_args"]["denoiser"]["init_args"]
    known = {"num_latents": "num_latents", "latents_dim": "latent_dim", "data_mlp_multiplier": "data_mlp_ratio"}
    known |= {"num_processing_layers": "num_layers", "label_dim": "text_dim", "data_size": "input_size"}
    known |= {name: name for name in ("data_dim", "num_blocks", "read_write_heads", "compute_heads")}
    assert {name: options[option] for name, option in known.items()} == {name: settings[name] for name in known}
    assert load_denoiser("run").state_dict().keys() <= {name[2:] for name in vectors if name.startswith("w.")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["theirs", "runs/small"], "is there already"),
        (["theirs", "new.ckpt"], "a run folder is written"),
        (["runs/small/version_0/checkpoints/step-00000002.ckpt", "new"], "already: every command takes it as it is"),
        (["nowhere/at/all", "new"], "SOURCE"),
        (["theirs/config.json", "new"], "not a readable weight file"),
        (["theirs/model.safetensors", "new", "--revision", "main"], "--revision main"),
        (["theirs", "new", "--model.denoiser.num_registers", "3"], "text_registers"),
        (["theirs", "new", "--experiment", "smal"], "nearest known: 'small'"),
        (["theirs", "new", "--step", "-1"], "less than 0"),
        (["theirs", "new", "--experiment", "quickstart"], "of 3 channels, LatentSpace of"),
    ],
)
def test_refusals_leave_nothing(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    try:
        status = cli.main(
            ["import", *words, *([] if "--experiment" in words else ["--experiment", "small.yaml"]), *ENCODER]
        )
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert status == 2 and message in capsys.readouterr().err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_embedding_type": "fourier"}, "noise_embedding_type 'fourier'; CADI computes"),
        ({"read_write_heads": 5}, "read_write_heads"),
        ({"compute_heads": "two"}, "compute_heads"),
    ],
)
def test_settings_that_cannot_be(
    place: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("theirs/config.json").write_text(json.dumps({**SETTINGS, **change}))
    assert cli.main(["import", "theirs", "new", "--experiment", "small.yaml", *ENCODER]) == 2
    assert message in capsys.readouterr().err and not Path("new").exists()


def other_content(place: Path, change: str) -> str:
    """A file of weights with one fault, as a source."""
    content = torch.load("theirs/epoch=0-step=2.ckpt", weights_only=True)
    state = content["state_dict"]
    if change == "number":
        state[1] = torch.ones(1)
    elif change == "twice":
        state |= {f"module.{name}": value for name, value in state.items() if name.startswith("network.")}
    elif change == "flat":
        state["ema_network.latents"] = state["ema_network.latents"].flatten()
    elif change == "empty":
        state["ema_network.latents"] = torch.zeros(4, 0)
    elif change == "nan":
        state["ema_network.latents"][0, 0] = torch.nan
    elif change == "raw":
        del state["network.latents"]
    else:
        content["global_step"] = {"negative": -3, "text": "many", "tensor": torch.tensor([1, 2])}[change]
    torch.save(content, "theirs/other.ckpt")
    return "theirs/other.ckpt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("number", "a name that is no text: 1"),
        ("twice", "hold network.data_pos_embedding twice"),
        ("flat", "latents has the shape [64]; 2 sizes above 0 were expected"),
        ("empty", "latents has the shape [4, 0]; 2 sizes above 0 were expected"),
        ("nan", "latents is not finite"),
        ("raw", "nothing under (latents)"),
        ("negative", "global_step is -3: give --step"),
        ("text", "global_step is 'many': give --step"),
        ("tensor", "global_step is tensor([1, 2]): give --step"),
    ],
)
def test_weights_with_a_fault(place: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = other_content(place, change)
    assert cli.main(["import", source, "new", "--experiment", "small.yaml", *ENCODER]) == 2
    said = capsys.readouterr().err
    assert message in said and source in said and not Path("new").exists() and not list(place.glob(".new*"))


def test_weights_of_a_compiled_module_keep_both(place: Path) -> None:
    content = torch.load("theirs/epoch=0-step=2.ckpt", weights_only=True)
    content["state_dict"] = {f"_orig_mod.{name}": value for name, value in content["state_dict"].items()}
    torch.save(content, "theirs/compiled.ckpt")
    sources = ("theirs/compiled.ckpt", "theirs/epoch=0-step=2.ckpt")
    first, second = (load_denoiser(bring(source, f"{source}.run"), weights="raw").state_dict() for source in sources)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"PK\3\4" + bytes(20_000), "not of torch, or cut off"),
        (pickle.dumps({"latents": Path("x")}), "whose code would run"),
    ],
)
def test_files_that_are_none_of_weights(
    place: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("theirs/broken.ckpt").write_bytes(content)
    assert cli.main(["import", "theirs/broken.ckpt", "new", "--experiment", "small.yaml", *ENCODER]) == 2
    said = capsys.readouterr().err
    assert "broken.ckpt is not a readable weight file" in said and message in said and "weights_only" not in said


def test_a_checkpoint_that_is_cut_off(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Path("theirs/epoch=0-step=2.ckpt").read_bytes()
    for share in (0.01, 0.3, 0.9):
        Path("theirs/cut.ckpt").write_bytes(whole[: int(share * len(whole))])
        assert cli.main(["import", "theirs/cut.ckpt", "new", "--experiment", "small.yaml", *ENCODER]) == 2
        assert "cut.ckpt is not a readable weight file" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{not json", "[1, 2]"])
def test_a_broken_config_is_named(place: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs/config.json").write_text(content)
    assert cli.main(["import", "theirs", "new", "--experiment", "small.yaml", *ENCODER]) == 2
    said = capsys.readouterr().err
    assert "config.json" in said and "settings of the released program" in said


def test_other_weights_and_other_encoders(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.ones(1)}, "theirs/model.safetensors")
    assert cli.main(["import", "theirs", "new", "--experiment", "small.yaml", *ENCODER]) == 2
    assert "not a CAD-I layout" in capsys.readouterr().err
    shutil.copy("theirs/epoch=0-step=2.ckpt", "theirs/one.bin")
    Path("theirs/model.safetensors").unlink()
    config = json.loads((Path(ENCODER[1]) / "config.json").read_text())
    shutil.copytree(ENCODER[1], "wide")
    Path("wide/config.json").write_text(json.dumps({**config, "d_model": 96}))
    words = ["--experiment", "small.yaml", "--text-encoder", "wide"]
    assert cli.main(["import", "theirs", "new", *words]) == 2
    assert "96 wide, these weights read 64" in capsys.readouterr().err


def test_it_is_written_whole_or_not_at_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(imported, "finish", full)
    with pytest.raises(OSError, match="no space"):
        imported.import_released(
            imported.Request("theirs", experiment=Path("small.yaml"), text_encoder=ENCODER[1]),
            place / "new",
            imported.Origins(),
        )
    assert not (place / "new").exists() and not list(place.glob(".new*"))
