"""``t2ikit export``: the same picture out of a folder of diffusers and out of one file; whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import t2ikit
import tiny
from t2ikit import cli
from t2ikit.checkpoints import exported, load_denoiser
from t2ikit.checkpoints.runs import step_of
from t2ikit.checkpoints.start import Start, start_from
from t2ikit.config.class_nodes import check_component
from t2ikit.config.errors import ConfigError
from t2ikit.denoisers import CADI
from t2ikit.denoisers.adopt import resized_positions
from t2ikit.encoders import LatentSpace, TextEncoder, build_small_t5
from t2ikit.module import TextToImage
from t2ikit.records.manifest import Manifest, TextSource

PROMPT = "a blue square"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as `t2ikit run` leaves it, of an untrained model on latents of a tiny autoencoder."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("export")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    torch.manual_seed(0)
    vae = AutoencoderKL(**blocks, block_out_channels=(4,) * 2, layers_per_block=1, norm_num_groups=2, latent_channels=4)
    vae.save_pretrained(folder / "vae")
    run = folder / "runs" / "small" / "version_0"
    build_small_t5(run / "text_encoder", [PROMPT, "a red ring"], dim=16)
    image = LatentSpace(str(folder / "vae")).reference
    text = TextEncoder.load(str(run / "text_encoder")).reference
    denoiser = yaml.safe_load(tiny.EXPERIMENT)["model"]["init_args"]["denoiser"]
    denoiser["init_args"] |= {"patch_size": 2, "input_size": 8, "text_dim": 16}
    space = {"class_path": "t2ikit.encoders.LatentSpace", "init_args": {"autoencoder": image.name}}
    arguments = {"denoiser": {"class_path": "t2ikit.denoisers.CADI", **denoiser}, "space": space}
    node = {"class_path": "t2ikit.module.TextToImage", "init_args": arguments}
    module = check_component("model", node, TextToImage).build()
    tiny.awake(module.denoiser)
    source = TextSource(16, type(text)("text_encoder", None, text.sha256))
    module.manifest = Manifest("latents", (2, 4, 8, 8), texts={"t5": source}, token_limit=8, autoencoder=image)
    averages = {name: value * 0.9 for name, value in module.denoiser.named_parameters()}
    callbacks = {"EMA": {"step": 3, "profiles": {"0.9": averages}}}
    content = {"state_dict": module.state_dict(), "global_step": 3, "callbacks": callbacks}
    data = {"class_path": "t2ikit.data.DataModule", "init_args": {"root": "gone", "batch_size": 8}}
    module.experiment = {"model": node, "data": data, "run": {"name": "small"}}
    module.on_save_checkpoint(content)
    (run / "checkpoints").mkdir()
    torch.save(content, run / "checkpoints" / "step-00000003.ckpt")
    return run


def run_options(run: Path) -> dict[str, Any]:
    """The denoiser's node in the experiment of the run."""
    content = torch.load(run / "checkpoints" / "step-00000003.ckpt", weights_only=True)
    return content["experiment"]["model"]["init_args"]["denoiser"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def export(*words: str | Path) -> None:
    assert cli.main(["export", *map(str, words)]) == 0


def expected(run: Path, *words: str) -> np.ndarray:
    assert cli.main(["sample", str(run), "--prompt", PROMPT, "--steps", "3", "--seed", "5", *words]) == 0
    return np.asarray(Image.open("samples/00000.png"))


@pytest.mark.long
def test_the_same_picture_in_another_process(run: Path, place: Path) -> None:
    picture = expected(run)
    export(run, "folder", "--license", "apache-2.0")
    export(run, "one.safetensors", "--format", "safetensors")
    hidden = run.parents[2].rename(place / "hidden")  # neither the run nor its autoencoder is needed any more
    program = f"""
import t2ikit, t2ikit.pipeline
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("folder", trust_remote_code=False)
pipeline({PROMPT!r}, num_inference_steps=3, seed=5).images[0].save("pipeline.png")
pipeline({PROMPT!r}, num_inference_steps=3, seed=5, guidance_scale=1.0).images[0].save("plain.png")
for name in ("folder", "one.safetensors"):
    t2ikit.load(name, device="cpu").sample({PROMPT!r}, steps=3, seed=5)[0].save(name + ".png")
"""
    try:
        done = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True)
    finally:
        hidden.rename(run.parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("pipeline.png", "folder.png", "one.safetensors.png"):
        assert np.array_equal(picture, np.asarray(Image.open(name))), name
    assert np.array_equal(expected(run, "--guidance", "0"), np.asarray(Image.open("plain.png")))
    assert np.array_equal(picture, expected(Path("folder")))  # wherever a checkpoint is taken
    index = json.loads(Path("folder/model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "T5EncoderModel"] and index["vae"][1] == "AutoencoderKL"
    card = Path("folder/README.md").read_text()
    assert "license: apache-2.0" in card and "The run has not been scored at step 3." in card
    assert "ema 0.9" in card and "autoencoder" in card


@pytest.fixture(scope="module")
def exported_folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers") / "folder"
    export(run, folder)
    return folder


def loaded(folder: Path, **options: Any) -> Any:
    from diffusers import DiffusionPipeline

    import t2ikit.pipeline  # noqa: F401

    return DiffusionPipeline.from_pretrained(folder, **options)


def drawn(pipeline: Any, prompt: str | list[str] = PROMPT, **options: Any) -> np.ndarray:
    """[N, H, W, 3] of a call of three steps."""
    images = pipeline(prompt, **{"num_inference_steps": 3, "seed": 5, **options}).images
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["from_pretrained", "to"])
def test_a_pipeline_of_half_precision_draws_nearly_the_same(
    exported_folder: Path, dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = drawn(loaded(exported_folder)).astype(int)
    pipeline = loaded(exported_folder).to(dtype) if way == "to" else loaded(exported_folder, torch_dtype=dtype)
    assert {pipeline.denoiser.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype, pipeline.dtype} == {dtype}
    seen: list[torch.dtype] = []
    space = pipeline.denoiser.module.space
    images = space.images
    monkeypatch.setattr(space, "images", lambda x_0: (seen.append(x_0.dtype), images(x_0))[1])
    half = drawn(pipeline).astype(int)
    assert seen == [torch.float32]  # the sampler keeps x in it
    assert plain.std() > 0 and np.abs(half - plain).max() <= 8
    assert np.array_equal(half, drawn(pipeline).astype(int))


def test_an_overflow_in_float16_is_said(exported_folder: Path) -> None:
    pipeline = loaded(exported_folder, torch_dtype=torch.float16)
    with torch.no_grad():
        next(pipeline.vae.decoder.parameters()).fill_(60_000.0)
    with pytest.raises(ValueError, match="overflows in float16; load it in bfloat16 or float32"):
        drawn(pipeline)


def test_what_a_call_of_diffusers_may_say(exported_folder: Path) -> None:
    pipeline = loaded(exported_folder)
    other, prompts = "a red ring", [PROMPT, "a red ring"]
    assert np.array_equal(drawn(pipeline), drawn(pipeline, negative_prompt=None))
    strong = {"guidance_scale": 200.0}  # an untrained model hardly looks at a text
    one, two = drawn(pipeline, prompts, negative_prompt=other, **strong)
    assert np.array_equal(drawn(pipeline, negative_prompt=[other], **strong)[0], one)
    # One negative prompt for each prompt: those of the other images change an image by rounding at most.
    mixed = drawn(pipeline, prompts, negative_prompt=[other, ""], **strong).astype(int)
    plain = drawn(pipeline, prompts, **strong)
    for image, expected, unlike in zip(mixed, (one, plain[1]), (plain[0], two), strict=True):
        assert np.abs(image - expected.astype(int)).max() <= 1 < np.abs(image - unlike.astype(int)).max()
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 5, 7)]
    several = drawn(pipeline, prompts, generator=generators, num_images_per_prompt=2)
    assert np.array_equal(several[0], drawn(pipeline)[0])
    assert np.array_equal(several[1], drawn(pipeline, seed=6)[0])
    assert np.array_equal(several[3], drawn(pipeline, other, generator=generators[3])[0])
    for options, message in (
        ({"generator": generators[:3]}, "generator: one for all images or one for each of the 2; got 3"),
        ({"negative_prompt": [other]}, "negative_prompt: one for all prompts or one for each of the 2; got 1"),
        ({"negative_prompt": other, "guidance_scale": 1.0}, "give guidance_scale another value than 1"),
        ({"height": 15}, r"height 15, width 16: the model makes images of 16x16 \(height x width\)"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn(pipeline, prompts, **options)
    with pytest.raises(ValueError, match="negative: one for all prompts or one for each of the 2; got 1"):
        pipeline.denoiser.trained.sample(prompts, negative=[other])


def test_other_sizes_are_given_in_pixels(exported_folder: Path) -> None:
    pipeline = loaded(exported_folder)
    assert np.array_equal(drawn(pipeline, height=16, width=16), drawn(pipeline))
    denoiser = pipeline.denoiser.module.denoiser
    taken = (denoiser.input_shape, (4, 4, 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(denoiser), "shapes", property(lambda self: taken))
        assert pipeline._size(8, 24) == (4, 12) and pipeline._size(None, 16) == (8, 8)
        with pytest.raises(ValueError, match=r"height 24, width 8: the model makes images of 16x16, 8x24"):
            pipeline._size(24, 8)


def test_weights_elsewhere(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(run, "one.safetensors", "--format", "safetensors", "--weights", "raw")
    one = Path("one.safetensors")
    denoiser = load_denoiser(one, "raw")
    stored = torch.load(run / "checkpoints" / "step-00000003.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[f"denoiser.{name}"]) for name, value in denoiser.state_dict().items())
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.zero_()
    start = Start(str(one), weights="auto")
    assert start_from(denoiser, start, *start.read())["weights"] == "raw"
    assert all(torch.equal(value, stored[f"denoiser.{name}"]) for name, value in denoiser.state_dict().items())
    with pytest.raises(ValueError, match="holds the weights 'raw' alone"):
        t2ikit.load(one)
    with pytest.raises(ConfigError, match=r"no run can go on.*--model\.start\.checkpoint one.safetensors"):
        step_of(one)
    content = bytearray(one.read_bytes())
    content[-9] ^= 1
    one.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        t2ikit.load(one, weights="raw")


def test_nothing_is_overwritten_and_nothing_is_left_of_a_failure(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        capsys.readouterr()
        assert cli.main(["export", str(run), *words]) == 2
        return capsys.readouterr().err

    export(run, "folder")
    before = Path("folder/README.md").read_bytes()
    assert "--force" in refused("folder")
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    assert "is no export, and is not replaced" in refused("mine", "--force") and Path("mine/notes.txt").exists()
    assert "ends with .safetensors" in refused("one.bin", "--format", "safetensors")
    assert "add --format safetensors" in refused("one.safetensors")
    assert "--push is of a folder" in refused("a.safetensors", "--format", "safetensors", "--push", "a/b")
    assert "OWNER/NAME" in refused("other", "--push", "name")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("t2ikit.run.export.shutil.copyfile", full)
        for words in (["folder", "--force"], ["other"]):
            capsys.readouterr()
            assert cli.main(["export", str(run), *words]) == 1
            assert "error: No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["folder", "mine"]
    assert Path("folder/README.md").read_bytes() == before
    export(run, "folder", "--force")


def test_push(run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[str, Any]] = []

    class Hub:
        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
            if repo_id == "me/refused":
                raise RuntimeError("401 Client Error\nmore")
            return "https://hub/me/model"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    export(run, "folder", "--push", "me/model", "--private")
    files = ["README.md", "denoiser", "model_index.json", "scheduler", "text_encoder", "tokenizer", "vae"]
    assert calls == [("me/model", {"private": True, "exist_ok": True}), ("me/model", files)]
    assert "https://hub/me/model" in capsys.readouterr().out
    assert 'snapshot_download("me/model")' in Path("folder/README.md").read_text()
    assert cli.main(["export", str(run), "folder", "--force", "--push", "me/refused"]) == 2
    assert "--push me/refused: 401 Client Error. folder is whole" in capsys.readouterr().err


def test_parts_of_the_hub_are_named_or_included(run: Path, place: Path) -> None:
    shutil.copytree(run, "run")
    checkpoint = Path("run/checkpoints/step-00000003.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    manifest = json.loads(content["data_manifest"])
    manifest["texts"]["t5"]["encoder"] |= {"name": "owner/encoder", "revision": "1234"}
    content["data_manifest"] = json.dumps(manifest)
    torch.save(content, checkpoint)
    moved = ["--text-encoder", "run/text_encoder"]
    export("run", "named", *moved)
    assert not Path("named/text_encoder").exists()
    assert "text encoder owner/encoder at revision 1234, not included" in Path("named/README.md").read_text()
    export("run", "whole", *moved, "--include-encoders")
    shutil.rmtree("run")
    assert len(t2ikit.load("whole").sample(PROMPT, steps=1)) == 1
    assert len(t2ikit.load("named", text_encoder="whole/text_encoder").sample(PROMPT, steps=1)) == 1


def test_files_of_other_programs(place: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, "other.safetensors")
    assert exported.read_exported(Path("other.safetensors")) is None
    with pytest.raises(ConfigError, match="weights alone, in the format safetensors"):
        t2ikit.load("other.safetensors")


def test_a_start_knows_the_grid_of_the_positions(run: Path, place: Path) -> None:
    """As many positions of another grid would be taken in another order, with nothing to be seen."""
    options = run_options(run)
    tall = check_component("denoiser", options | {"init_args": options["init_args"] | {"input_size": (16, 4)}}, CADI)
    path = run / "checkpoints" / "step-00000003.ckpt"
    denoiser = tall.build()
    before = denoiser.data_pos_embedding.clone()
    with pytest.raises(ValueError, match=r"data_pos_embedding: \[4, 4\] given, \[8, 2\] wanted"):
        start_from(denoiser, Start(str(path)), *Start(str(path)).read())
    assert torch.equal(denoiser.data_pos_embedding, before)
    resize = Start(str(path), fit="resize")
    said = start_from(denoiser, resize, *resize.read())["changes"]
    assert said == "resized data_pos_embedding [4, 4] -> [8, 2]"
    source = load_denoiser(path).data_pos_embedding
    assert torch.equal(denoiser.data_pos_embedding, resized_positions(source, (8, 2), (4, 4)))
    same = check_component("denoiser", options, CADI).build()
    state = torch.random.get_rng_state()
    assert start_from(same, Start(str(path)), *Start(str(path)).read())["changes"] == ""
    assert torch.equal(torch.random.get_rng_state(), state) and torch.equal(same.data_pos_embedding, source)
