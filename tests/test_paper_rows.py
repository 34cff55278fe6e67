"""Every training command of docs/reproduce.md runs, in small: one step of a tiny network on pixels of 16 x 16.

Those of 512 and 1024 pixels are in test_resolution_rows.py, those of SynthReal in test_synthreal_rows.py.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_resolution_rows import ENCODERS, photo

import tiny
from t2ikit import cli
from t2ikit.config.compose import part_of
from t2ikit.config.files import find_experiment
from t2ikit.config.sweep import sweep_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reproduce.md").read_text()
SETTINGS = ("cm2", "cm4", "cm9", "cm16", "cmall")
COMMON = """
model: {init_args: {space: {class_path: t2ikit.encoders.PixelSpace}, denoiser: {init_args: {text_dim: 16}}}}
data: {init_args: {batch_size: 2, num_workers: 0}}
trainer: {accelerator: cpu, devices: 1, precision: 32-true, max_steps: 1}
callbacks: {samples: {init_args: {steps: 1, batch_size: 2, prompts: {init_args: {limit: 2}}}}}
"""
NETWORKS: dict[str, dict[str, Any]] = {
    "cad_i": {
        "input_size": 16,
        "in_channels": 3,
        "patch_size": 4,
        "data_dim": 16,
        "num_latents": 4,
        "latent_dim": 16,
        "num_blocks": 1,
        "num_layers": 1,
        "read_write_heads": 2,
        "compute_heads": 2,
        "refine_heads": 2,
    },
    "dit_i": {"input_size": 16, "in_channels": 3, "hidden_size": 16, "depth": 1, "num_heads": 2},
    "shallow": {
        "input_size": 8,
        "core": {"width": 32, "blocks": 1, "heads": 2, "noise_width": 16},
        "shell": {"init_args": {"channels": 8}},
    },
    "uvit": {
        "input_size": 32,
        "core": {"width": 32, "blocks": 1, "heads": 2, "noise_width": 16},
        "shell": {"init_args": {"channels": [8, 16], "blocks": [1, 1], "head_channels": 8}},
    },
}


def commands(program: str) -> list[list[str]]:
    """The commands of the page, without those that other tests run."""
    page = re.sub(r"### 512 and 1024.*?(?=\n### )", "", PAGE.partition("\n## SynthReal")[0], flags=re.DOTALL)
    fenced = "".join(re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    return [shlex.split(line) for line in fenced.splitlines() if line.startswith(program)]


TRAIN, SWEEPS = commands("lightning run"), commands("t2ikit sweep")


def overlay(name: str) -> str:
    """A file of the name of a shipped experiment, which extends it with small parts."""
    small = yaml.safe_load(COMMON)
    arguments = small["model"]["init_args"]["denoiser"]["init_args"]
    arguments |= next(options for start, options in NETWORKS.items() if name.startswith(start))
    if not name.startswith(("shallow", "uvit")):
        small["data"]["init_args"]["text_encoder"] = "text_encoder"
    if name.endswith("_cutmix"):
        small["callbacks"] |= dict.fromkeys(("imagenet_val", "geneval", "geneval_extended"))
    return yaml.safe_dump({"extends": [str(ROOT / f"experiments/{name}.yaml")], **small}, sort_keys=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data roots of the rows, in small, and the experiments."""
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        tiny.enter(folder, patch, {})
        for split, count in (("train", 4), ("val", 1)):
            for label, wnid in enumerate(("n01440764", "n01443537")):
                for number in range(count):
                    photo(Path("IMAGENET", split, wnid, f"{wnid}_{number}.png"), 10 * label + number, (40, 36))
        sizes = {"imagenet256": 16, "imagenet256_aio": 16, "cc12m64": 8, "cc12m512": 32}
        for name, size in sizes.items():
            out = ["--out", f"data/{name}"]
            steps = [["images", "--source", "IMAGENET", "--size", str(size)]]
            steps += [["cutmix", "--setting", setting] for setting in SETTINGS] if name == "imagenet256" else []
            for words in (*steps, ["captions"], ["encode", *ENCODERS]):
                assert cli.main(["prepare", *words, *out]) == 0, words
        Path("experiments").mkdir()
        for words in (*TRAIN, *SWEEPS):
            path = Path(words[2])
            path.write_text(overlay(path.stem))
    return folder


def test_every_experiment_of_the_papers_is_on_the_page() -> None:
    listed = {Path(words[2]).stem for words in (*TRAIN, *SWEEPS)} | set(re.findall(r"experiments/(\w+)\.yaml", PAGE))
    shipped = {path.stem for path in (ROOT / "experiments").glob("*.yaml") if "shapes" not in path.stem}
    # No rows: small photos, the shortest run, growing on ImageNet (docs/growing.md), the claims on shapes.
    others = {
        "photos_cad_i_cmall",
        "quickstart",
        "imagenet_growing",
        "mini_paper",
        "mini_paper_few",
        "mini_paper_cutmix",
    }
    assert shipped - listed == others
    assert len(TRAIN) == 29 and all(f"lightning run experiments/{Path(words[2]).name}" in PAGE for words in TRAIN)


def numbers(text: str) -> list[float]:
    """Those of a cell of a table, without what version they are of."""
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


@pytest.mark.parametrize(("name", "first"), [("cad_i_cutmix", 0), ("dit_i_cutmix", 2)])
def test_the_sweeps_have_the_numbers_of_the_page(name: str, first: int) -> None:
    sweep = sweep_of(find_experiment(name))
    section = PAGE.partition("### CutMix setting")[2].partition("### Overfitting")[0]
    rows = [
        [entry.strip() for entry in line.strip("|").split("|")] for line in re.findall(r"^\| .*`.*$", section, re.M)
    ]
    seen = set()
    for row in rows:
        *published, cell, _ = row[1:]
        known = sweep.paper.rows.get(cell.strip("`"))
        if known is None or len(published) <= first:
            assert name == "dit_i_cutmix"  # tau is of CAD-I
            continue
        seen.add(cell.strip("`"))
        fid, geneval = (numbers(entry) for entry in published[first : first + 2])
        for number, entry in zip([*fid, *geneval], known, strict=True):
            assert number in numbers(entry), (row, entry)
    assert seen == sweep.paper.rows.keys() == {cell.row for cell in sweep.cells.values()}
    for column, entry in zip(("FID", "GenEval original", "GenEval extended"), sweep.paper.columns, strict=True):
        assert column == entry
    main = PAGE.partition("### Main rows")[2]
    title = "CAD-I" if first == 0 else "DiT-I"
    for row_name, cell in ((f"{title} TA", "rows ta"), (f"{title} TA + CutMix", "rows cmall")):
        fid = re.search(rf"^\| {re.escape(row_name)} \| ([\d.]+) \|", main, re.MULTILINE)
        assert fid is not None and float(fid[1]) == numbers(sweep.paper.rows[cell][0])[0]


@pytest.mark.parametrize("path", sorted({words[2] for words in SWEEPS}))
def test_the_cells_of_the_sweeps_are_the_papers_settings(path: str) -> None:
    sweep = sweep_of(ROOT / path)
    cutmix = {}
    for cell in sweep.cells.values():
        config = sweep.compose(cell)
        arguments = config["callbacks"].get("cutmix", {}).get("init_args")
        cutmix[cell.row] = arguments and (arguments["setting"], arguments["p"], arguments["tau"])
        assert config["trainer"]["max_steps"] == 250_000 and config["data"]["init_args"]["batch_size"] == 1024
        assert config["seed_everything"] == config["data"]["init_args"]["seed"] == cell.seed
        snapshots = config["callbacks"]
        assert all(snapshots[name]["init_args"]["at_end"] for name in ("imagenet_val", "geneval", "geneval_extended"))
    assert cutmix.pop("rows ta") is None and cutmix.pop("rows cmall") == ("cmall", 0.5, 0.4)
    settings = {f"settings {setting}": (setting, 0.5, 0.4) for setting in SETTINGS[:-1]}
    p = {f"p p{text}": ("cm4", float(value), 0.4) for text, value in (("025", 0.25), ("075", 0.75), ("1", 1))}
    tau = {f"tau tau{text}": ("cmall", 0.5, value) for text, value in (("03", 0.3), ("05", 0.5), ("06", 0.6))}
    assert cutmix == settings | p | (tau if "cad_i" in path else {})


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_row_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.current(folder, monkeypatch)
    for words in TRAIN:
        more = []
        if "thawed" in words[2]:  # from step 500,000
            more = ["--model.start.checkpoint", f"runs/{Path(words[2]).stem.replace('thawed', 'frozen')}/version_0"]
        assert cli.main([*words[1:], *more]) == 0, words
        run = Path("runs") / Path(words[2]).stem / "version_0"
        content = torch.load(run / "checkpoints/step-00000001.ckpt", weights_only=True)
        start = part_of(ROOT / words[2], "model")["init_args"].get("start")
        assert ("start" in content) == (start is not None), words


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["cad_i_cutmix", "dit_i_cutmix"])
def test_every_cell_trains(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.current(folder, monkeypatch)
    (words,) = [words for words in SWEEPS if name in words[2] and len(words) == 5]
    assert cli.main([*words[1:], "--list", "--commands"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("seed0")]
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0, line
    assert cli.main([*words[1:], "--list"]) == 0
    said = capsys.readouterr().out
    assert f"{len(lines)} of {len(sweep_of(find_experiment(name)).cells)} cells are done" in said
    assert not re.search(r"seed0 .*missing", said) and "paper: FID" in said
