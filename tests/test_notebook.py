"""The notebook and the Python blocks of docs/python.md and docs/export.md, on a run of two steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from notebooks import run_cells

from t2ikit import cli

DOCS = Path(__file__).parents[1] / "docs"
SMALL = {
    "trainer.max_steps": 2,
    "trainer.log_every_n_steps": 1,
    "data.count": 32,
    "data.val_count": 8,
    "data.batch_size": 8,
    "callbacks.geneval": None,
    "callbacks.val": None,
    "callbacks.table": None,
}


@pytest.mark.long
def test_notebook_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "notebooks" / "start.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    kept = [output["data"].keys() for cell in cells for output in cell["outputs"] if "data" in output]
    assert sum("image/png" in data for data in kept) >= 3, "written by python tests/notebooks.py"
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    (options,) = re.findall(r"^options = .*$", "".join(cells[0]["source"]), re.MULTILINE)
    few = {"steps=30": "steps=2", options: f"options = {SMALL!r}"}
    outputs = run_cells(notebook, few)
    assert "the same picture: True\n" in outputs[2][0]["text"]
    assert [len(shown) > 0 for shown in outputs] == [True] * len(cells)

    assert cli.main(["export", "runs/quickstart", "exported", "--license", "apache-2.0"]) == 0
    for page, count in (("python.md", 2), ("export.md", 2)):
        names: dict[str, object] = {}
        blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
        assert len(blocks) == count
        for block in blocks:
            given = '{"trainer.max_steps": 300, "callbacks.geneval": None}'
            exec(block.replace(given, repr(SMALL)).replace("num_inference_steps=50", "num_inference_steps=2"), names)
    assert Path("circle.png").is_file()
