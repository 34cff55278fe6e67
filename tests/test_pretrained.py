"""Loading pretrained models: folders, revisions, hashes, and what is said when there is none."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ikit.pretrained import EncoderReference, find_pretrained, load_pretrained, state_sha256

OPTION = "--encoder DIR"


def folder_with(path: Path, **files: bytes) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name.replace("_DOT_", ".")).write_bytes(content)
    return path


def test_hash_of_one_file_is_its_sha256(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", model_DOT_safetensors=b"weights", config_DOT_json=b"{}")
    found = find_pretrained(str(folder), None, OPTION)
    assert found.reference == EncoderReference(str(folder), None, hashlib.sha256(b"weights").hexdigest())
    assert EncoderReference.from_dict(found.reference.to_dict()) == found.reference
    (folder / "tokenizer.json").write_bytes(b"words")
    both = find_pretrained(str(folder), None, OPTION, ["tokenizer.json", "absent.model"])
    listing = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in [("model.safetensors", b"weights"), ("tokenizer.json", b"words")]
    )
    assert both.reference.sha256 == hashlib.sha256(listing.encode()).hexdigest()


def test_hub_revision_is_the_commit_and_its_weights_are_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef"
    folder = folder_with(tmp_path / "snapshots" / commit, model_DOT_safetensors=b"weights")
    asked: list[tuple[str, Any]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "cache"))
    found = find_pretrained("someone/model", "main", OPTION)
    assert asked == [("someone/model", "main")]
    assert found.reference.revision == commit
    assert find_pretrained("someone/model", None, OPTION).reference == found.reference
    (folder / "model.safetensors").write_bytes(b"weigths!")
    with pytest.raises(ValueError, match="is not what it was when revision 0123456789abcdef"):
        find_pretrained("someone/model", None, OPTION)


def test_offline_error_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(FileNotFoundError, match="someone/model at revision v1.*no network.*--encoder DIR.*hf download"):
        find_pretrained("someone/model", "v1", OPTION)
    with pytest.raises(FileNotFoundError, match="is no folder.*--encoder DIR"):
        find_pretrained(str(tmp_path / "absent"), None, OPTION)


def test_missing_weights_are_refused_not_drawn(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = T5EncoderModel(config)
    model.save_pretrained(tmp_path / "whole")
    loaded, found = load_pretrained(T5EncoderModel, str(tmp_path / "whole"), None, OPTION)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.shared.weight, model.shared.weight) and found.folder == tmp_path / "whole"
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "final_layer_norm" not in name}
    config.save_pretrained(tmp_path / "part")
    save_file(weights, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of T5EncoderModel.*final_layer_norm.*--encoder DIR"):
        load_pretrained(T5EncoderModel, str(tmp_path / "part"), None, OPTION)
    with pytest.raises(ValueError, match="cannot be loaded as T5EncoderModel"):
        load_pretrained(T5EncoderModel, str(folder_with(tmp_path / "b", model_DOT_safetensors=b"no")), None, OPTION)


def test_hash_of_weights_sees_names_types_shapes_and_bytes() -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(3, dtype=torch.int64), "c": torch.ones(0)}
    assert (
        state_sha256(state) == "3621b92fa387546b4be6566a4748085bd6c3d40434e6a93e2933fd9e9614c489"
    )  # as in the fingerprints that are written already
    assert state_sha256(state) == state_sha256(dict(reversed(state.items())))
    others = (
        {**state, "a": torch.ones(2, dtype=torch.float64)},
        {**state, "a": torch.ones(1, 2)},
        {**state, "a": torch.tensor([1.0, 2.0])},
        {"d" if name == "a" else name: value for name, value in state.items()},
    )
    assert len({state_sha256(other) for other in (state, *others)}) == 5
    assert state_sha256({"a": torch.eye(3)[:, 0]}) == state_sha256({"a": torch.tensor([1.0, 0.0, 0.0])})
