"""Loads any pretrained model from a local folder or from the Hugging Face Hub, and says which weights it was.

A folder in the ordinary layout of the library (``save_pretrained`` of transformers and diffusers) and a repository of
the Hub are loaded the same way: a repository is first downloaded.
The revision that is recorded is the commit that was really loaded; a local folder has none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from t2ikit.files import parse_json, write_whole

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
_SETTING_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")  # the last one: chat templates
_BLOCK = 1 << 22

EMBEDDED = "embedded:"
"""How the names of models begin that are shipped with the kit."""

_EMBEDDED_FOLDER = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class EncoderReference:
    """Which weights made or read a data set.

    Attributes:
        name: repository of the Hub, or the local folder as it was given.
        revision: commit of the Hub; None for a local folder.
        sha256: of the weight file; of several files (weights, tokenizer), that of their ``sha256sum`` listing; empty
            where it is not known, as of released weights, which say a name at most.
    """

    name: str
    revision: str | None
    sha256: str

    def to_dict(self) -> dict[str, str | None]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderReference:
        """From ``to_dict``."""
        return cls(values["name"], values["revision"], values["sha256"])


@dataclass(frozen=True)
class PretrainedFolder:
    """A model's files on the local disk, and what they are."""

    folder: Path
    reference: EncoderReference


def find_pretrained(name: str, revision: str | None, option: str, extra_files: Sequence[str] = ()) -> PretrainedFolder:
    """Finds a model's folder, bringing it from the Hub where it is not local, and hashes its weights.

    Args:
        name: a local folder, a repository of the Hub such as ``google/flan-t5-xl``, or a model that is shipped with the
            kit, such as ``embedded:shapes-full``.
        revision: branch, tag or commit of the repository; None is its main branch. Not for local folders.
        option: the option that gives ``name``, for the error message.
        extra_files: further files that go into the hash where they exist (a tokenizer decides the output, too).

    Returns:
        The folder with its reference.

    Raises:
        FileNotFoundError: no such folder, no such repository, or no way to the Hub; names ``option``.
        ValueError: a revision for a local folder, a folder without weights, or weights of a recorded revision that
            are not what they were.
    """
    folder = _embedded(name, option) if name.startswith(EMBEDDED) else Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a local folder, which has no revision {revision!r}: leave the revision out")
        commit = None
    elif _looks_like_path(name):
        raise FileNotFoundError(f"{name} is no folder; give an existing one or a repository of the Hub with {option}")
    else:
        folder = _from_hub(name, revision, option)
        commit = folder.name
    files = weight_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no weights ({', '.join(WEIGHT_PATTERNS)}); give another folder with {option}")
    files += [folder / extra for extra in extra_files if (folder / extra).is_file()]
    sums = _recorded_sums(name, commit, files) if commit else {file.name: sha256_of(file) for file in files}
    return PretrainedFolder(folder, EncoderReference(name, commit, _sum_of_sums(sums)))


def find_cached(name: str, revision: str | None = None) -> Path | None:
    """The folder of a model where it is on this machine already; None where it must be brought. Asks no network.

    Args:
        name: as in ``find_pretrained``.
        revision: as in ``find_pretrained``.
    """
    from huggingface_hub import snapshot_download

    folder = _EMBEDDED_FOLDER / name.removeprefix(EMBEDDED) if name.startswith(EMBEDDED) else Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith(EMBEDDED) or _looks_like_path(name):
            return None
        try:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (OSError, ValueError):  # LocalEntryNotFoundError is both
            return None
    return folder if weight_files(folder) else None


def load_pretrained(
    model_class: Any, name: str, revision: str | None, option: str, extra_files: Sequence[str] = (), **options: Any
) -> tuple[Any, PretrainedFolder]:
    """Loads a model of transformers or diffusers in evaluation mode, without gradients.

    Args:
        model_class: a class with ``from_pretrained``.
        name: as in ``find_pretrained``.
        revision: as in ``find_pretrained``.
        option: as in ``find_pretrained``.
        extra_files: as in ``find_pretrained``.
        **options: for ``from_pretrained`` (the name of the dtype is ``torch_dtype`` in diffusers, ``dtype`` in
            transformers).

    Returns:
        The model, and the folder it came from.

    Raises:
        FileNotFoundError: as in ``find_pretrained``.
        ValueError: the folder holds another kind of model; names ``option``. Weights that are missing are an error
            here, where the libraries fill them with random numbers.
    """
    from safetensors import SafetensorError

    source = find_pretrained(name, revision, option, extra_files)
    if model_class.__module__.startswith("transformers."):
        options = {"trust_remote_code": False, **options}  # None would ask on the terminal, in the middle of a run
    try:
        model, info = model_class.from_pretrained(source.folder, output_loading_info=True, **options)
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, SafetensorError, UnpicklingError) as error:
        raise ValueError(
            f"{name} cannot be loaded as {model_class.__name__}: {error}. Give a model of that kind with {option}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of {model_class.__name__}, the first one {missing[0]}. "
            f"Give a model of that kind with {option}"
        )
    return model.eval().requires_grad_(False), source


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, sorted: the safetensors, or where there are none, the pickled ones."""
    for pattern in WEIGHT_PATTERNS:
        files = sorted(folder.glob(pattern))
        if files:
            return files
    return []


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of network weights: names, types, shapes and bytes, by sorted name."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where the kit keeps what it can make again: ``$T2IKIT_CACHE``, or ``~/.cache/t2ikit``.

    A user without a home, as containers start one by its number, has none that can be written.
    """
    path = Path(os.environ.get("T2IKIT_CACHE") or "~/.cache/t2ikit")
    try:
        return path.expanduser()
    except RuntimeError:
        return Path("/", *path.parts[1:])


def _embedded(name: str, option: str) -> Path:
    folder = _EMBEDDED_FOLDER / name.removeprefix(EMBEDDED)
    shipped = sorted(path.parent.name for path in _EMBEDDED_FOLDER.glob("*/config.json"))
    if folder.name not in shipped or folder.parent != _EMBEDDED_FOLDER:
        names = ", ".join(EMBEDDED + model for model in shipped)
        raise FileNotFoundError(f"{name} is not shipped with the kit; give one of {names} with {option}")
    return folder


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or "\\" in name


def _from_hub(name: str, revision: str | None, option: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        for weights in WEIGHT_PATTERNS:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_SETTING_PATTERNS, weights]))
            if weight_files(folder):
                return folder
    except Exception as error:  # the Hub's client, its HTTP library and the socket each raise their own
        of_revision = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{name}{of_revision} is neither a local folder nor to be had from the Hugging Face Hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}). "
            f"Give the path of a local folder with {option}, or bring the model into the Hub's cache first "
            f"(hf download {name})"
        ) from error
    raise ValueError(f"{name} of the Hub holds no weights ({', '.join(WEIGHT_PATTERNS)}); give another with {option}")


def _recorded_sums(name: str, commit: str, files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file of a revision: computed and written down at its first load, compared ever after.

    A file whose size and time have not changed since is not read again.
    """
    record_file = cache_folder() / "weights" / f"{name.replace('/', '--')}@{commit}.json"
    record: dict[str, dict[str, Any]] = {}
    if record_file.is_file():
        record = parse_json(record_file.read_text())
    sums = {}
    changed = False
    for file in files:
        stat = file.stat()
        old = record.get(file.name)
        if old and (old["bytes"], old["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
            sums[file.name] = old["sha256"]
            continue
        sums[file.name] = sha256_of(file)
        if old and old["sha256"] != sums[file.name]:
            raise ValueError(
                f"{file} is not what it was when revision {commit} of {name} was first loaded (SHA-256 "
                f"{sums[file.name]}, then {old['sha256']}): delete it and load it again, or, if the first was the bad "
                f"one, delete {record_file}"
            )
        record[file.name] = {"sha256": sums[file.name], "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        changed = True
    if changed:
        with suppress(OSError):  # a cache that cannot be written: they are computed again
            write_whole(record_file, json.dumps(record, indent=2, sort_keys=True))
    return sums


def _sum_of_sums(sums: dict[str, str]) -> str:
    if len(sums) == 1:
        return next(iter(sums.values()))
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    return hashlib.sha256(listing.encode()).hexdigest()
