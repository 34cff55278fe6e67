"""Runs the code cells of a notebook without Jupyter, and can write what they give into the file.

python tests/notebooks.py docs/notebooks/start.ipynb     # in a folder for its runs; rewrites the outputs
"""

from __future__ import annotations

import ast
import base64
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def run_cells(notebook: dict[str, Any], replaced: dict[str, str] | None = None) -> list[list[dict[str, Any]]]:
    """Executes every code cell in turn, as Jupyter does.

    Args:
        notebook: the content of the file.
        replaced: lines of code, and what is executed in their place.

    Returns:
        The outputs of every code cell: what it printed, and the value of its last expression.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        code = "".join(cell["source"])
        for line, other in (replaced or {}).items():
            code = code.replace(line, other)
        tree, value = ast.parse(code), None
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(tree, "<cell>", "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        outputs.append([*_printed(printed.getvalue()), *_shown(value)])
    return outputs


def _printed(text: str) -> list[dict[str, Any]]:
    lines = text.splitlines(keepends=True)
    return [{"output_type": "stream", "name": "stdout", "text": lines}] if lines else []


def _shown(value: Any) -> list[dict[str, Any]]:
    """The value of a cell: a picture where it has one, else its text."""
    if value is None:
        return []
    data: dict[str, Any] = {"text/plain": [repr(value)]}
    if hasattr(value, "savefig"):
        stream = io.BytesIO()
        value.savefig(stream, format="png", dpi=80)
        data = {"image/png": base64.b64encode(stream.getvalue()).decode(), "text/plain": ["<Figure>"]}
    elif hasattr(value, "_repr_png_"):
        picture = base64.b64encode(value._repr_png_()).decode()
        data = {"image/png": picture, "text/plain": [f"<{type(value).__name__}>"]}
    return [{"output_type": "display_data", "metadata": {}, "data": data}]


def main(path: Path) -> None:
    """Rewrites the outputs of a notebook."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(cells, run_cells(notebook), strict=True), 1):
        cell["outputs"], cell["execution_count"] = outputs, number
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
