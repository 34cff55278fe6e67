"""What the Markdown files say is there: links lead somewhere, the commands shown are commands of this version."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ikit.batch import Text
from t2ikit.cli import COMMANDS
from t2ikit.commands.run import read_arguments
from t2ikit.config.compose import compose
from t2ikit.metrics import Samples
from t2ikit.run.experiment import check

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# [text](target), ![text](target), <img src="target">
LINK = re.compile(r"\]\(([^)\s]+)\)|<img[^>]*\ssrc=\"([^\"]+)\"")
COMMAND = re.compile(r"(?:^|&& )(lightning|t2ikit|python -m t2ikit) +([a-z][a-z-]*)([^`\n#|&;]*)", re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str) -> str:
    """The fenced blocks and inline code of a page."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"`([^`\n]+)`", text)])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page: Path) -> None:
    targets = [first or second for first, second in LINK.findall(page.read_text())]
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in local if target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands(page: Path) -> None:
    for program, command, rest in COMMAND.findall(blocks(page.read_text())):
        known_commands = ("run",) if program == "lightning" else COMMANDS
        assert command in known_commands, f"{program} {command}"
        experiment = re.search(r"experiments/\S+\.ya?ml", rest)
        if command == "run" and experiment:
            words = [word for word in shlex.split(rest) if not re.fullmatch(r"\[.*\]?|.*\]", word)]
            overrides = read_arguments(words, "lightning run").overrides
            known = [override for override in overrides if not re.search(r"(plain|features|restless)\.", override.text)]
            config = compose(ROOT / experiment[0], known)
            if {override.key for override in known} - {"data.root", "run.name"}:  # else as in tests/test_experiments.py
                check(config)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_parsed(page: Path) -> None:
    """Whole command lines of blocks, by the parsers of the commands; in running text the options that are named."""
    text = page.read_text()
    fenced = "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    for words in command_lines(fenced):
        try:
            parse(words)
        except SystemExit as error:
            raise AssertionError(f"t2ikit {shlex.join(words)} is refused") from error
    for program, command, rest in COMMAND.findall("\n".join(re.findall(r"`([^`\n]+)`", text))):
        if program == "lightning" or command == "run" or command not in COMMANDS:
            continue
        known = options(command)
        for option in re.findall(r"(?<=\s)--[a-z-]+(?=[ =\]]|$)", rest):
            assert option in known, f"t2ikit {command} has no {option}"


def command_lines(fenced: str) -> list[list[str]]:
    """The words of every ``t2ikit COMMAND ...`` in blocks but ``run``, which :func:`test_commands` checks."""
    lines = fenced.replace("\\\n", " ").splitlines()
    found = (re.match(r"\s*(?:t2ikit|python -m t2ikit) +([a-z].*)", line) for line in lines)
    typed = [match[1].partition(" > ")[0] for match in found if match and " | " not in match[1]]
    words = [shlex.split(line, comments=True) for line in typed]
    return [line for line in words if line[0] != "run" and line[0] in COMMANDS and "..." not in line]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="t2ikit", allow_abbrev=False)
    import_module(COMMANDS[command][1]).add_parser(parser.add_subparsers(dest="command", required=True))
    return parser


def parse(words: list[str]) -> None:
    """As ``t2ikit`` does; SystemExit where it refuses the line."""
    module = import_module(COMMANDS[words[0]][1])
    rest = module.take_overrides(words[1:])[0] if hasattr(module, "take_overrides") else words[1:]
    parser_of(words[0]).parse_args([words[0], *rest])


def options(command: str) -> set[str]:
    """Every option of a command and of those below it."""
    waiting, known = [parser_of(command)], set[str]()
    while waiting:
        for action in waiting.pop()._actions:
            known |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
    return known


def test_a_command_that_is_wrong_is_found() -> None:
    assert command_lines("t2ikit sample RUN --prompt x   # why\n  t2ikit plan\nt2ikit prepare a | b\n") == [
        ["sample", "RUN", "--prompt", "x"],
        ["plan"],
    ]
    parse(["sample", "RUN", "--prompt", "x"])
    with pytest.raises(SystemExit):
        parse(["sample", "RUN", "--promt", "x"])


@pytest.mark.parametrize("page", ["docs/where.md", "docs/flow.md"])
def test_names_beside_files_stand_in_them(page: str) -> None:
    """``[file](link) `name``` or ``[file](link) `Class.name```: the file defines it."""
    pairs = re.findall(r"\]\((\.\./[\w/]+\.py)\) `([A-Za-z_.]+)`", (ROOT / page).read_text())
    assert len(pairs) > 10
    for link, name in pairs:
        source = (ROOT / "docs" / link).read_text()
        for part in name.split("."):
            assert re.search(rf"^\s*(def|class) {part}\b", source, re.MULTILINE), f"{link} has no {name}"


def test_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md"} <= {name(page) for page in PAGES}


# Run by the tests below, and by test_notebook.py after a short training.
OTHERS = ("extend.md", "python.md", "export.md")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OTHERS], ids=name)
def test_python_blocks_run(page: Path) -> None:
    """The blocks of a page, one after the other in one module; one that begins with ``python fragment`` is not run."""
    shown: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(block, shown)


def test_every_page_is_on_the_site() -> None:
    """Every page of docs/ is in mkdocs.yml, and the reference names what there is."""
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in ROOT.glob("docs/**/*.md"):
        assert str(page.relative_to(ROOT / "docs")) in listed
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            path = path.replace("callbacks", "t2ikit.callbacks") if path.startswith("callbacks") else path
            module, _, last = path.rpartition(".")
            assert last[0].islower() and find_spec(path) or hasattr(import_module(module), last), path


def test_what_extend_shows_works() -> None:
    """Runs with a class of one's own are in tests/test_runs.py."""
    shown: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/extend.md").read_text(), re.MULTILINE | re.DOTALL):
        exec(block, shown)
    assert {"Mirror", "Collage", "Plain", "Color", "Features", "Restless", "Brightness"} <= shown.keys()
    denoiser = shown["Plain"]()
    text = Text(torch.randn(2, 5, 64), torch.ones(2, 5, dtype=torch.bool))
    context = denoiser.encode_text(text)
    twice = context.cat(context).rows(torch.tensor([3, 0]))
    x = torch.randn(2, *denoiser.input_shape)
    assert denoiser(x, torch.tensor([0.1, 0.9]), twice).output.shape == x.shape
    images = torch.full((2, 3, 4, 4), 9, dtype=torch.uint8)
    assert shown["Brightness"]().compute(Samples(images)).values == {"brightness": 9.0}
