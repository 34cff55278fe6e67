"""What a file is that is no checkpoint of a run: another program's weights, another module of Lightning, a web page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import t2ikit
from t2ikit.config.errors import ConfigError
from t2ikit.denoisers.adopt import some_of

# First bytes of files that are taken for checkpoints.
_STARTS = (
    (rb"PK", "a zip archive, but not of torch, or cut off"),
    (rb"\x80[\x02-\x05]", "in the format of before torch 1.6, or another pickle: `torch.save` its content again"),
    (rb".{7}\0\{", "weights alone, in the format safetensors"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file itself: git lfs pull"),
    (rb"\s*<", "a web page or another text"),
    (rb"\Z", "it is empty"),
)


_KINDS: dict[str, type] = {
    "state_dict": Mapping,
    "experiment": dict,
    "global_step": int,
    "optimizer_states": list,
    "loops": Mapping,
}
TRAINING = ("global_step", "optimizer_states", "loops")
"""What a training needs to go on."""


def kind_of_file(path: Path) -> str:
    """What a file seems to be out of which torch can read no checkpoint, in a few words."""
    with path.open("rb") as file:
        start = file.read(64)
    kinds = (kind for pattern, kind in _STARTS if re.match(pattern, start, re.DOTALL))
    return next(kinds, "cut off, or not written by torch")


def refuse_foreign(content: Any, path: Path, option: str, needs: Sequence[str] = ("experiment",)) -> dict[str, Any]:
    """The content of a checkpoint of a run.

    Args:
        content: what a file holds.
        path: the file, for the message.
        option: what the user gave it by, for the message.
        needs: what it must hold beside the weights.

    Raises:
        ConfigError: it is another program's, or another module's, and says what it holds; or a later version's.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{option} {path}: not a checkpoint of a run (`t2ikit run`): it holds a {_type(content)}")
    wrong = [name for name in ("state_dict", *needs) if not isinstance(content.get(name), _KINDS[name])]
    wrong += [] if isinstance(content.get("callbacks", {}), Mapping) else ["callbacks"]
    if not wrong:
        _refuse_later(content.get("t2ikit"), path, option)
        return content
    raise ConfigError(
        f"{option} {path}: not a checkpoint of a run (`t2ikit run`): {_described(content)}, no {' and no '.join(wrong)}"
    )


def _refuse_later(written: Any, path: Path, option: str) -> None:
    """Refuses a checkpoint of a later minor version, whose format may be another."""
    ours, theirs = (re.match(r"(\d+)\.(\d+)", str(version)) for version in (t2ikit.__version__, written))
    if ours and theirs and tuple(map(int, theirs.groups())) > tuple(map(int, ours.groups())):
        raise ConfigError(
            f"{option} {path}: t2ikit {written} has written it, and this is {t2ikit.__version__}, which may read it "
            f"wrongly: pip install 't2ikit>={theirs[0]}'"
        )


def reason_of(error: Exception) -> str:
    """Why torch does not read a file, in one line: its own message advises to run the file's code."""
    objects = re.search(r"GLOBAL (\S+)", str(error))
    if objects is not None:
        return (
            f"it holds objects ({objects[1]}) of another program, whose code would run: only weights and plain values "
            "are read"
        )
    if "weights_only" in str(error):
        return "it is a pickle of more than weights and plain values, whose code would run"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _described(content: dict[Any, Any]) -> str:
    names = [str(name) for name in content]
    if content and all(hasattr(value, "shape") for value in content.values()):
        return f"it holds {len(names)} weights alone{some_of(names)}"
    if "pytorch-lightning_version" in content and "experiment" not in content:
        weights = content.get("state_dict")
        listed = some_of([str(name) for name in weights]) if isinstance(weights, Mapping) else ""
        return f"a checkpoint of Lightning, of another module{listed}"
    return f"it holds {len(names)} entries{some_of(names, 12)}"


def _type(value: Any) -> str:
    return type(value).__name__
