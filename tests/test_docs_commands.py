"""Every command line of the pages is run, in small, in the order of a reader; or it is listed here with the reason.

The pages share a folder. A line that is neither known to :func:`docs_in_small.small` nor listed fails the quick test.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_in_small import CLASSES, dino, hub, photo, small, sources
from tiny_models import small_clip

import tiny
from t2ikit import cli
from t2ikit.config.files import find_experiment

ROOT = Path(__file__).parents[1]
FIRST = "start README experiments runs photos data growing reproduce search shapes synthreal extend export plan report"
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
PAGES.sort(key=lambda page: (FIRST.split().index(page.stem) if page.stem in FIRST.split() else 99, page.name))
PROGRAMS = "lightning|t2ikit|python3?|nox|torchrun|tensorboard|hf|pip|wandb|pre-commit|eval|sky|sbatch"
LINE = re.compile(rf"(?:[A-Z0-9_]+=\S+ )?(?:{PROGRAMS}) ")
WHOLE = re.compile(r" --| \S*[./]\S*| run quickstart|python -m ")  # in running text: more than a command's name
ROWS = "tests/test_resolution_rows.py"
# What is not run here, and why: the first pattern that is found in a line.
ELSEWHERE = {
    r"^python3 -m venv|^pip install|^pre-commit": "makes an environment: nox -s quickstart, wheel and release do",
    r"^tensorboard ": "serves until it is stopped",
    r"^python train.py": "the papers' program",
    r"^hf auth|--push|^wandb sync": "needs an account; tests/test_export.py publishes to a stand-in",
    r"--data.root s3://": "a bucket: tests/records has a stand-in",
    r"--kind http": "a server: tests/prepare/test_captioners_http.py has a stand-in",
    r"^torchrun|^sbatch|^sky |SLURM_ARRAY": "two ranks or a cluster: tests/test_two_ranks.py, tests/test_launch.py",
    r"accelerator gpu": "needs a GPU",
    r"compile blocks": "minutes on a CPU: tests/diffusion/test_compiled.py; the papers' rows: tests/test_paper_rows.py",
    r"denoiser.input_size 32": "the papers' sizes: tests/test_docs.py runs the class of that page",
    r"benchmarks gpu": "tests/test_benchmarks_gpu.py runs it with --dry-run",
    r"benchmarks.growing_proof": "tests/test_benchmarks_growing.py",
    r"benchmarks.synthreal": "half an hour: nox -s synthreal",
    r"^nox -s mini_paper": "minutes: tests/test_mini_paper.py compares without training",
    r"-m benchmarks": "minutes on quiet cores: tests/test_benchmarks*.py run each in small",
    r"verify-resume": "minutes: tests/test_verify_resume.py",
    r"t2ikit prefer|sample runs/[ab] ": "tests/report/test_preference_page.py, test_preference_analysis.py",
    r"t2ikit replay": "needs a step that is not finite: tests/callbacks/test_guard.py",
    r"sweep .*--jobs|sweep experiments/shapes_recipe.yaml$": "many cells: tests/test_sweeps.py",
    r"laion_pop|imagenet_coco|COCO|imagenet512|dit_i_512_1024": ROWS,
    r"train_coco": ROWS,
    r"shapes_resolutions": "tests/test_resolutions.py",
    r"benchmark synthreal|prepare reencode|experiments/synthreal/": "tests/test_synthreal_rows.py, tests/classify",
    r"^t2ikit import |released_cad": "tests/test_import.py",
    r"experiments/(cad_i|dit_i)_cutmix.yaml": "tests/test_paper_rows.py trains every cell in small",
    r"by_heart|runs/large| large.yaml": "minutes: docs/overfitting.md; tests/callbacks/test_overfitting.py",
    r"prepare extend": "tests/prepare/test_extend_prompts.py",
    r"prepare autoencoder --source shapes": "tests/prepare/test_autoencoder.py",
    r"--compare OTHER|--images DIR|--write-reference|evaluate --compare": "a pattern: tests/test_evaluate.py",
    r"--sets X|--text-encoder A|--kind source$|--key value|--size 80x48|DIR --overwrite|DIR$": "a pattern",
    r"(EXPERIMENT|ROOT|STEP|COMMAND|NAME|FILE|DIR)\b(?!/)": "a pattern",
}
LANGUAGES = ("", "python", "python fragment", "yaml")  # commands stand in blocks without one
BESIDE = ("$ cmp straight.csv killed.csv && echo IDENTICAL", "IDENTICAL")  # in a block of commands, none of ours
# What a page says in words, or takes for granted, before this line of it.
BEFORE = {
    "t2ikit prepare captions --out data/two256": (
        "t2ikit prepare images --source IMAGENET --out data/two256 --size 256",
        "t2ikit prepare cutmix --out data/two256 --setting cmall",
    ),
    "lightning run experiments/cad_i_cmall.yaml --data.root data/two256": ("t2ikit prepare encode --out data/two256",),
    "t2ikit prepare autoencoder --source data/latents64": (
        "t2ikit prepare images --source PHOTOS --out data/latents64 --size 64",
        "t2ikit prepare captions --out data/latents64",
    ),
    "lightning run experiments/photos_cad_i_cmall.yaml --data.root data/photos ": (
        "t2ikit prepare images --source PHOTOS --out data/photos --bucket 64x64 80x48 48x80",
        "t2ikit prepare captions --out data/photos",
        "t2ikit prepare encode --out data/photos --autoencoder pixels --text-encoder small",
    ),
    "lightning run experiments/uvit_base_frozen.yaml": (
        "t2ikit prepare captions --out data/cc12m512 --captions captions.tsv",
        "t2ikit prepare encode --out data/cc12m512 --autoencoder pixels --text-encoder google/t5-v1_1-xxl "
        "--text-encoder laion/CLIP-ViT-H-14-laion2B-s32B-b79K --max-tokens 128 --text-dtype bfloat16",
    ),
    "lightning run experiments/imagenet_growing.yaml": (
        "t2ikit prepare captions --out data/imagenet256_pixels --kind llava",
        "t2ikit prepare encode --out data/imagenet256_pixels --autoencoder pixels --text-dtype bfloat16",
    ),
    "lightning run experiments/base/shapes_pixels.yaml": ("t2ikit run staged.yaml", "t2ikit run color_run.yaml"),
    "t2ikit report runs/mine": ("lightning run experiments/quickstart.yaml --run.name mine",),
}
# Two ways to prepare one folder are two folders here; the second way would be refused without --overwrite.
FOLDERS = {
    ("README.md", "data/imagenet256"): "data/readme256",
    ("upstream.md", "data/imagenet256"): "data/readme256",
    ("README.md", " --resume auto"): " --resume auto --data.root data/readme256",
    ("data.md", "data/photos64"): "data/latents64",
}
TWO_CAPTIONS = ("--kind llava --add", "caption_weights", "captions --out data/imagenet256")
AGAIN = ("photos.md", "upstream.md")  # pages that repeat the preparations of README.md
STATUS = {"doctor": (0, 1)}


def lines() -> list[tuple[str, str]]:
    """(Page, command line) of blocks without a language, and of running text where options follow the command."""
    found = []
    for page in PAGES:
        text = page.read_text()
        shown = [line for language, block in blocks_of(text) if not language for line in block]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        named = [code for code in re.findall(r"`([^`\n]+)`", prose) if WHOLE.search(code)]
        for line in (*shown, *named):
            line = re.sub(r"\s+#.*| +$", "", line.removeprefix("$ "))
            if LINE.match(line):
                found.append((page.name, adapted(page.name, line)))
    return found


def blocks_of(text: str) -> list[tuple[str, list[str]]]:
    """(Language, lines) of every block; a line that goes on is one."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(language, block.replace("\\\n", " ").splitlines()) for language, block in blocks]


def is_command(line: str) -> bool:
    return LINE.match(line.removeprefix("$ ")) is not None


def test_no_command_hides() -> None:
    """In a block of another language, or beside commands as one of a program that is not known here."""
    for page in PAGES:
        for language, block in blocks_of(page.read_text()):
            assert language in LANGUAGES, f"{page}: {language}"
            if not language and any(map(is_command, block)):
                assert not [line for line in block if line.strip() and not is_command(line) and line not in BESIDE]


def adapted(page: str, line: str) -> str:
    """The line with the folder that this test gives it."""
    if page == "data.md" and (line.endswith(TWO_CAPTIONS) or "caption_weights" in line):
        return line.replace("data/imagenet256", "data/two256")
    for (name, folder), other in FOLDERS.items():
        line = line.replace(folder, other) if name == page else line
    return line


def reason(line: str) -> str | None:
    return next((why for pattern, why in ELSEWHERE.items() if re.search(pattern, line)), None)


RUN = [(page, line) for page, line in lines() if reason(line) is None]


def test_every_line_is_sorted() -> None:
    assert len(RUN) > 90
    for _, line in RUN:
        small(line)
    unused = [pattern for pattern in ELSEWHERE if not any(re.search(pattern, line) for _, line in lines())]
    assert not unused
    assert not [start for start in BEFORE if not any(line.startswith(start) for _, line in RUN)]


def files_of_the_pages() -> None:
    """The files that docs/runs.md and docs/extend.md have their reader write."""
    text = "".join((ROOT / f"docs/{name}.md").read_text() for name in ("runs", "extend"))
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for name in re.findall(r"^class (\w+)\(", block, re.MULTILINE):
            Path(f"{name.lower()}.py").write_text(block)
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if "mirror.Mirror" in block:
            Path("my_experiment.yaml").write_text(block)
        if "grids:" in block:
            Path("recipe.yaml").write_text(block)
        if "color.Color" in block:
            Path("color_run.yaml").write_text(block)
        if "stages:\n  small: {}" in block:
            Path("staged.yaml").write_text(block)


def run(line: str) -> None:
    words = small(line)
    if line.startswith("python -m t2ikit.testing"):
        assert subprocess.run([sys.executable, *words], timeout=300).returncode == 0, line
        return
    status = cli.main(words)
    assert status in STATUS.get(words[0], (0,)), f"{line}\n{words}: status {status}"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_line_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.enter(tmp_path, monkeypatch, {})
    sources()
    hub(tmp_path / "hub", monkeypatch)
    dino(tmp_path / "dino")
    small_clip(tmp_path / "clip")
    (tmp_path / "experiments").symlink_to(find_experiment("quickstart").parent)
    files_of_the_pages()
    done = set()
    waiting = dict(BEFORE)
    for page, line in RUN:
        if line in done and (" prepare " not in line or page in AGAIN):
            continue
        done.add(line)
        for start in [start for start in waiting if line.startswith(start)]:
            for before in waiting.pop(start):
                run(before)
        if "--append" in line:
            for label, wnid in enumerate(CLASSES):
                photo(Path("IMAGENET/train", wnid, f"{wnid}_new.JPEG"), 50 + label, (288, 260))
        run(line)
