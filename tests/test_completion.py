"""Shell completion: commands, options, names of experiments, as a shell asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2ikit import cli

pytest.importorskip("argcomplete")
CALL = "import sys; from t2ikit.cli import main; sys.exit(main([], prog={prog!r}))"


def completions(line: str, folder: Path) -> set[str]:
    answer = folder / "answer"
    prog = line.split()[0]
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    command = [sys.executable, "-c", CALL.format(prog=prog)]
    subprocess.run(command, env={**os.environ, **variables}, cwd=folder, check=True, capture_output=True)
    return {word.strip() for word in answer.read_text().split("\n")}


def test_completions(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: [quickstart.yaml]\n")
    assert {"run", "experiments", "export", "sample"} <= completions("t2ikit ", tmp_path)
    assert {"quickstart", "synthreal/rgb", "mine.yaml"} <= completions("t2ikit run ", tmp_path)
    assert completions("t2ikit run quick", tmp_path) == {"quickstart"}
    assert completions("lightning ", tmp_path) >= {"run"} and "sample" not in completions("lightning ", tmp_path)
    assert {"--resume", "--stage"} <= completions("t2ikit run quickstart --", tmp_path)
    assert completions("t2ikit experiments copy quick", tmp_path) == {"quickstart"}
    assert "--include-encoders" in completions("t2ikit export --i", tmp_path)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    assert "t2ikit" in capsys.readouterr().out
