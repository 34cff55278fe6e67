"""Secrets that stand in an experiment as they are: refused by name and by look, and shown nowhere."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from t2ikit.cli import main
from t2ikit.config import secrets
from t2ikit.config.compose import compose, stages_of
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import find_experiment, shipped_names
from t2ikit.config.secrets import hidden, literal_secret, refuse_literal, without_secrets

WORD = "hunter2" + 30 * "a"
TOKEN = f"hf_{WORD}"


@pytest.mark.parametrize(
    "key",
    [
        "data.init_args.storage_options.client_kwargs.headers.Authorization",
        "data.init_args.storage_options.headers.X-Api-Key",
        "data.init_args.storage_options.headers.Private-Token",
        "data.init_args.storage_options.headers.Cookie",
        "loggers.mine.init_args.cookies.session",
        "loggers.mine.init_args.authorization",
        "loggers.mine.init_args.passwords",
        "loggers.mine.init_args.wandb_api_key",
    ],
)
def test_text_below_such_a_name_is_a_secret(key: str) -> None:
    def at(value: Any) -> dict[str, Any]:
        for name in reversed(key.split(".")):
            value = {name: value}
        return dict(value)

    assert literal_secret(at(WORD)) == key
    assert literal_secret(at([WORD])) == f"{key}.0"
    assert literal_secret(at("Bearer ${oc.env:MY_TOKEN}")) is None
    assert literal_secret(at(3)) is None and literal_secret(at(None)) is None


def test_headers_are_secrets_as_a_text_of_headers_only() -> None:
    """A title is none, and the name of a callback says nothing of its options."""
    assert literal_secret({"loggers": {"mine": {"init_args": {"headers": f"X-Key: {WORD}"}}}})
    assert literal_secret({"callbacks": {"extra": {"init_args": {"header": "Shapes, first try"}}}}) is None
    assert literal_secret({"callbacks": {"headers": {"init_args": {"key": "val/score"}}}}) is None


SECRETS = [
    f"Bearer {TOKEN}",
    f"Bearer {WORD}",
    f"postgresql://me:{WORD}@host/db",
    f"https://me:{WORD}@host/${{oc.env:USER}}",
    f"https://h/x?sig={WORD}",
    f"https://h/x?a=b&X-Amz-Signature={WORD}",
    f"https://h/x?api_key={WORD}&a=b",
    f"sk-proj-{WORD}",
    f"sk-{WORD}",
    f"ghp_{WORD}",
    f"AccountName=a;AccountKey={WORD}==",
    f"eyJ{WORD}.eyJ{WORD}.{WORD}",
    "AKIAHUNTER2HUNTER2AA",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_secret_is_one_under_any_name(secret: str) -> None:
    node = {"data": {"init_args": {"roots": ["x", secret]}}}
    assert literal_secret(node) == "data.init_args.roots.1"
    with pytest.raises(
        ConfigError, match=r"^data\.init_args\.roots\.1: .*\$\{oc\.env:NAME\}.*--trust env:NAME"
    ) as refusal:
        refuse_literal(node)
    assert "hunter2" not in str(refusal.value).lower()
    message = f"data.root: no folder '{secret}' here"
    assert "hunter2" not in hidden(message).lower()
    assert hidden(message).startswith("data.root: no folder '") and hidden(message).endswith("' here")


HARMLESS = [
    "/data/imagenet/hf_cache/train",
    "hf_ImageNet256LatentsTrain",
    "hf://datasets/org/name@main/train",
    "org/name",
    "s3://bucket/key:a@b",
    "gs://bucket/2026-07-01T12:30:00@v2",
    "https://huggingface.co/org/name/resolve/main/x.safetensors?download=true",
    "http://localhost:5000",
    "file:///home/me/x",
    "sqlite:///mlruns.db",
    "mask-generation-of-the-second-kind",
    "models/sk-learn-random-forest-v2",
    "a token of basic understanding-of-reinforcement-learning",
    "the standard bearer internationalization",
    "C:\\photos\\2026",
    hashlib.sha256(b"x").hexdigest(),
    hashlib.sha1(b"x").hexdigest(),
    "postgresql://me:${oc.env:DB_PASSWORD}@host/db",
    "https://h/x?sig=${oc.env:SIG}&a=b",
    "${model.init_args.size}",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_no_false_alarm(text: str) -> None:
    assert literal_secret({"data": {"init_args": {"root": text}}}) is None
    assert hidden(f"no folder {text!r}") == f"no folder {text!r}"


@pytest.mark.parametrize("name", shipped_names())
def test_no_false_alarm_in_a_shipped_experiment(name: str) -> None:
    path = find_experiment(name)
    for stage in [None, *stages_of(path)]:
        try:
            config = compose(path, stage=stage)
        except ConfigError as error:
            assert "must be set" in str(error)
            continue
        refuse_literal(without_secrets(config))


@pytest.mark.parametrize(
    "words",
    [
        ["--data.root", f"https://h/x?sig={WORD}"],
        ["--data.root", f"https://h/x?sig={WORD}", "--print_config"],
        ["--trainer.max_steps", f"postgresql://me:{WORD}@host/db"],  # refused by its type too
        ["--model", f"https://me:{WORD}@host.name/x"],
        ["--trainer", f"https://me:{WORD}@host.name/x"],  # refused while it is composed
        ["--loggers.mine", f"{{class_path: strange.Logger, init_args: {{token: {TOKEN}}}}}"],
        ["--trust", f"Bearer {TOKEN}", f"--{TOKEN}", "x"],
    ],
)
def test_no_message_shows_it(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(secrets, "_trusted", set())
    assert main(["run", "quickstart", *words]) == 2
    shown = capsys.readouterr()
    assert "hunter2" not in shown.out + shown.err and shown.err.startswith("error: ")
    assert not any(tmp_path.iterdir())
