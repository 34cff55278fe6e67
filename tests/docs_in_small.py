"""What the commands of the documentation need, in small: photos, pretrained models of the same classes, few steps.

Pretrained models stand in a cache of the Hub under their real names, with random weights, so that the commands of
``t2ikit prepare`` run as they are written.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_llava
from tokenizers import pre_tokenizers

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLASSES = ("n01440764", "n01443537")
AT_ONCE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]
SHAPES = """
    --data.count 64 --data.val_count 16 --data.batch_size 8 --trainer.max_steps 2 --trainer.log_every_n_steps 1
    --callbacks.val.prompts.limit 8 --callbacks.val.steps 1 --callbacks.geneval.prompts.per_task 1
    --callbacks.geneval.steps 1 --callbacks.geneval.prompts.tasks [colors] --callbacks.checkpoint.every_n_steps 1
"""
CAD_I = """
    --model.denoiser.data_dim 16 --model.denoiser.num_latents 4 --model.denoiser.latent_dim 16
    --model.denoiser.num_blocks 1 --model.denoiser.num_layers 1 --model.denoiser.read_write_heads 2
    --model.denoiser.compute_heads 2
"""
DIT_I = "--model.denoiser.hidden_size 16 --model.denoiser.depth 1 --model.denoiser.num_heads 2"
CORE = '--model.denoiser.core "{width: 32, blocks: 1, heads: 2, noise_width: 16}"'
SHELL = "--model.denoiser.shell"
LEVELS = """
    --model.denoiser.shell.channels [8,8,8] --model.denoiser.shell.blocks [1,1,1] --model.denoiser.shell.head_channels 8
"""
ONE_STEP = """
    --trainer.max_steps 1 --data.batch_size 2 --data.num_workers 0
    --callbacks.samples.steps 1 --callbacks.samples.batch_size 2 --callbacks.samples.prompts.limit 2
"""
KNOWN = ("prepare", "report", "export", "plan", "doctor", "experiments", "sweep", "import")  # small, or made so above
# By the beginning of an experiment's name.
OPTIONS = {
    "quickstart": SHAPES,
    "my_experiment": SHAPES,
    "shapes_pixels": SHAPES,
    "color": SHAPES,
    "staged": SHAPES,
    "shapes_cad_i_cmall": f"{SHAPES} --callbacks.geneval_original null",
    "shapes_growing": f"{SHAPES.partition('--callbacks.geneval')[0]} {CORE} --callbacks.checkpoint.every_n_steps 1"
    " --stages.shallow.trainer.max_steps 1 --stages.shallow.data.count 64",
    "photos_cad_i_cmall": "--trainer.max_steps 1 --data.batch_size 4 --callbacks.val.steps 1",
    "cad_i": f"{ONE_STEP} {CAD_I}",
    "dit_i": f"{ONE_STEP} {DIT_I}",
    "shallow_uvit": f"{ONE_STEP} {CORE} --model.denoiser.shell.channels 8",
    "uvit": f"{ONE_STEP} {CORE} {LEVELS}",
    "imagenet_growing": f"{ONE_STEP} {CORE} --stages.thawed.model.start.checkpoint stages.frozen@1"
    " --stages.shallow.model.denoiser.shell.channels 8 --stages.shallow.data.batch_size 2"
    " --stages.thawed.trainer.max_steps 1"
    + "".join(
        LEVELS.replace(SHELL, f" --stages.{stage}.model.init_args.denoiser.init_args.shell.init_args")
        for stage in ("frozen", "finetuned", "scratch", "thawed")
    ),
}
SCORES = {
    "imagenet_val": "[{class_path: t2ikit.metrics.DistributionMetrics, init_args: {k: 1, features: "
    "{class_path: t2ikit.metrics.features.networks.DINOv2Features, init_args: {model: dino, dim: 32}}}}]",
    "geneval": "[{class_path: t2ikit.metrics.alignment.clip_score.CLIPScore, init_args: {model: clip}}]",
}


def photo(path: Path, seed: int, size: tuple[int, int]) -> None:
    """A smooth picture of random colours, width x height."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).resize(size).save(path)


def sources() -> None:
    """IMAGENET and PHOTOS (class folders), CC12M with captions.tsv, and files of GenEval, in the current folder."""
    for source, train, val in (("IMAGENET", 4, 4), ("PHOTOS", 6, 12)):  # of a class; a third has each aspect
        for split, count in (("train", train), ("val", val)):
            for label, wnid in enumerate(CLASSES):
                for number in range(count):
                    seed = 100 * label + number + 10 * (split == "val")
                    size = ((288, 260), (288, 170), (170, 288))[number % 3]
                    photo(Path(source, split, wnid, f"{wnid}_{number}.JPEG"), seed, size)
    lines = ["key\tcaption"]
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            photo(Path(f"CC12M/{split}/{number}.png"), number, (530, 516))
            lines.append(f"{split}/{number}.png\tAn image of a tench")
    Path("captions.tsv").write_text("\n".join(lines) + "\n")
    benchmarks()
    shutil.copy("data/benchmarks/geneval/evaluation_metadata.jsonl", "evaluation_metadata.jsonl")
    Path("prompts.txt").write_text("a purple star\na green ring\n")


def benchmarks() -> None:
    """Files of the benchmarks, as their authors publish them, with a prompt or two, below data/benchmarks."""
    folder = Path("data/benchmarks")
    row = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
    files = {
        "geneval/evaluation_metadata.jsonl": json.dumps(row) + "\n",
        "geneval/extended.jsonl": "A wooden bench in a park.\n",
        "dpg/prompts/0.txt": "A bench beside a tree.\n",
        "PartiPrompts.tsv": "Prompt\tCategory\tChallenge\tNote\na bench\tArtifacts\tBasic\t\n",
        "coco/captions_val2014.json": json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.jpg"}],
                "annotations": [{"id": 1, "image_id": 1, "caption": "A bench."}],
            }
        ),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    photo(folder / "coco/val2014/1.jpg", 1, (60, 48))


def hub(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A cache of the Hub in ``folder`` with every model that the commands name, and no way to the network."""
    from huggingface_hub import constants

    for key, value in (("HF_HUB_OFFLINE", "1"), ("HF_HUB_CACHE", str(folder))):
        patch.setenv(key, value)
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(folder))
    tiny_llava(snapshot(folder, "llava-hf/llama3-llava-next-8b-hf"))
    text_to_states(snapshot(folder, "google/flan-t5-xl"), 2048)
    text_to_states(snapshot(folder, "google/t5-v1_1-xxl"), 4096)
    clip_text(snapshot(folder, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"), 1024)
    for name in ("Lucasdegeorge/CAD-I", "Lucasdegeorge/CAD-I_TA", "nicolas-dufour/CAD_256"):
        released(snapshot(folder, name))
    autoencoder(snapshot(folder, "stabilityai/sd-vae-ft-ema"))


def snapshot(folder: Path, name: str) -> Path:
    """Where the cache has the files of a repository's main branch."""
    repository = folder / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    files = repository / "snapshots" / COMMIT
    files.mkdir(parents=True)
    return files


def text_to_states(folder: Path, width: int) -> None:
    """A T5 encoder of one thin layer with states of this width."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    from t2ikit.encoders import build_small_t5

    build_small_t5(folder / "words", ["An image of a tench, goldfish. red green blue grey dog fish ship tree"], dim=8)
    tokenizer = AutoTokenizer.from_pretrained(folder / "words")
    shutil.rmtree(folder / "words")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"d_model": width, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)


def released(folder: Path) -> None:
    """A CAD-I of one thin layer, as its authors release theirs; with a coherence token."""
    from t2ikit.denoisers import CADI

    torch.manual_seed(0)
    sizes = {"data_dim": 16, "num_latents": 4, "latent_dim": 16, "num_blocks": 1, "num_layers": 1}
    save_file(CADI(**sizes, coherence=True).state_dict(), folder / "model.safetensors")


def clip_text(folder: Path, width: int) -> None:
    """A CLIP text model with its projection, whose tokens are bytes."""
    import transformers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    transformers.CLIPTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[]).save_pretrained(
        folder
    )
    sizes = {"vocab_size": 514, "hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "projection_dim": 16, "bos_token_id": 512, "eos_token_id": 513}
    torch.manual_seed(0)
    transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes)).save_pretrained(folder)


def autoencoder(folder: Path) -> None:
    """An autoencoder that divides the sides by 8, into 4 channels."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    torch.manual_seed(0)
    AutoencoderKL(**blocks, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2).save_pretrained(folder)


def dino(folder: Path) -> None:
    """A DINOv2 of two small blocks."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)


def small(line: str) -> list[str]:
    """The words of a command line of a page, with what makes it small; without the name of the program."""
    for pattern, text in (
        (r"step-(00000500|00050000)\.ckpt", "step-00000001.ckpt"),
        ("step-00001320-", "step-00000002-"),
        (r" > \S+$", ""),
        (r"\bRUN\b", "runs/quickstart/version_0"),
        (r"\bDIR\b", "OUT"),
        (r"--workers 16", "--workers 1"),
        (r"--measure 60", "--measure 1"),
        (r"--candidates 16", "--candidates 2"),
        (r"--nproc_per_node 8 ", "--nproc_per_node 2 "),
    ):
        line = re.sub(pattern, text, line)
    if "experiments/base/evaluation.yaml" in line:
        line = line.replace("runs/quickstart/", "runs/cad_i_cmall/")
    words = shlex.split(line, comments=True)
    while "=" in words[0]:
        words.pop(0)
    program, *words = words
    if program == "lightning" and words[0] != "run":
        raise LookupError(f"{line}: lightning has one command, run")
    if words[0] == "run" and "--print_config" not in words:
        name = Path(words[1]).stem
        options = OPTIONS[max((start for start in OPTIONS if name.startswith(start)), key=len)]
        if name.endswith("_thawed"):
            options += f" --model.start.checkpoint runs/{name.replace('thawed', 'frozen')}/version_0"
        return [*words, *AT_ONCE, *shlex.split(options)]
    if words[0] == "prepare" and words[1] in ("images", "cutmix", "reencode"):
        return [*words, "--workers", "1"] if words[1] != "reencode" else words
    if words[:2] == ["prepare", "autoencoder"]:
        return [*words, "--steps", "2", "--batch-size", "2"]
    if words[0] == "sample":
        return [*words, *(() if "--steps" in words else ("--steps", "1")), "--device", "cpu"]
    if words[0] == "evaluate":
        snapshot_name = words[words.index("--snapshot") + 1]
        words += [*(() if "--steps" in words else ("--steps", "1")), "--device", "cpu"]
        if "experiments/base/evaluation.yaml" in words:
            words += [f"--callbacks.{snapshot_name}.metrics", SCORES.get(snapshot_name, SCORES["geneval"])]
        if snapshot_name == "coco":
            words += ["--callbacks.coco.prompts.count", "1"]
        return words
    if words[0] in KNOWN or words[:2] == ["-m", "t2ikit.testing"] or "--print_config" in words:
        return words
    raise LookupError(f"{line}: say here how it is made small, or in tests/test_docs_commands.py why it is not run")
