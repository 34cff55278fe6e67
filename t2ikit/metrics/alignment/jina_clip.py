"""Jina-CLIP score: the cosine of image and caption where captions may have thousands of words.

Shape legend::

    B  images or captions    L  tokens    D  embedding width

CLIP reads 77 tokens, so a score of long captions ignores most of them. ``jinaai/jina-clip-v2`` reads 8,192. Its network
is not a part of transformers: loading it runs Python code from the Hub, so an option of its own allows this,
with the commits of weights and code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ikit.config.secrets import may_run_code
from t2ikit.files import parse_json
from t2ikit.metrics.alignment.clip_score import mean_error, observe_cosines
from t2ikit.metrics.base import Metric, Result, Rows, SampleBatch, Samples
from t2ikit.metrics.features.features import NetworkHolder
from t2ikit.metrics.features.pixels import describe_pipeline, preprocess_batch
from t2ikit.pretrained import PretrainedFolder, find_pretrained, load_pretrained

PIPELINE = "jina_clip_512"
MAX_TOKENS = 8192
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model", "vocab.txt")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(eq=False)
class DualEncoder(NetworkHolder):
    """A model of transformers with ``get_image_features`` and ``get_text_features``; loaded at the first use."""

    model: str
    revision: str | None
    run_remote_code: bool
    code_revision: str | None
    pipeline: str

    def __post_init__(self) -> None:
        self._settings = describe_pipeline(self.pipeline)
        self._found: PretrainedFolder | None = None
        self._loaded: tuple[Any, Any] | None = None

    def _find(self) -> PretrainedFolder:
        if self._found is None:
            self._found = find_pretrained(self.model, self.revision, "init_args.model", TOKENIZER_FILES)
        return self._found

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModel, AutoTokenizer

            options = self._code_options(self._find().folder)
            network, _ = load_pretrained(
                AutoModel, self.model, self.revision, "init_args.model", TOKENIZER_FILES, **options
            )
            try:
                tokenizer = AutoTokenizer.from_pretrained(self._find().folder, **options)
            except (OSError, ValueError, KeyError) as error:
                folder = self._find().folder
                raise FileNotFoundError(f"no tokenizer in {folder} ({error}): correct init_args.model") from error
            self._loaded = (network.float(), tokenizer)
        return self._loaded

    def _code_options(self, folder: Path) -> dict[str, Any]:
        """Options of ``from_pretrained`` for code that comes with the model.

        Raises:
            ValueError: the model has code and `run_remote_code` is false, or the commit of the code is not given.
        """
        code = code_of(folder)
        if not code:
            return {"trust_remote_code": False}  # None would ask on the terminal
        if not self.run_remote_code:
            raise ValueError(
                f"{self.model} brings Python code of its own ({', '.join(code)}), which would run here with all your "
                "rights: read it, then set init_args.run_remote_code to true"
            )
        if not may_run_code(self.model):  # an experiment of a stranger says run_remote_code as well as your own
            raise ValueError(
                f"{self.model} brings Python code of its own ({', '.join(code)}), which would run here with all your "
                f"rights: read it, then give --trust code:{self.model} beside init_args.run_remote_code"
            )
        elsewhere = [name for name in code if "--" in name]
        if elsewhere and not _COMMIT.fullmatch(self.code_revision or ""):
            raise ValueError(
                f"the code of {self.model} lies in {elsewhere[0].split('--')[0]}: set init_args.code_revision to the "
                "commit (40 hexadecimal digits) that you have read"
            )
        if self._find().reference.revision and not _COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"{self.model} runs code from the Hub: set init_args.revision to a commit (40 hexadecimal digits)"
            )
        options: dict[str, Any] = {"trust_remote_code": True}
        return {**options, "code_revision": self.code_revision} if self.code_revision else options

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] float32 of images [B, 3, H, W] uint8, on their device.

        The pixel pipeline takes whole grey levels: common code makes floats of them first and multiplies them by 255
        once more, which wraps around.
        """
        network = self._load()[0].to(images.device)
        pixels = preprocess_batch(self.pipeline, images)
        with torch.autocast(images.device.type, enabled=False):
            return _embeddings(network.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def texts(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Embeddings [B, D] float32 of captions, without a task prefix."""
        network, tokenizer = self._load()
        network, device = network.to(device), torch.device(device)
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
        with torch.autocast(device.type, enabled=False):
            return _embeddings(network.get_text_features(**tokens))

    def fingerprint(self) -> dict[str, Any]:
        """Model, hash of its weights and tokenizer, commit of its code, pixel pipeline."""
        described = {"features": f"jina_clip:{self.model}", "features_sha256": self._find().reference.sha256}
        return {**described, "code_revision": self.code_revision, **self._settings}


def code_of(folder: Path) -> list[str]:
    """The Python classes that a model folder names outside transformers, such as ``owner/repo--file.Class``."""
    named: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            for entry in (parse_json((folder / name).read_text()).get("auto_map") or {}).values():
                named += [part for part in (entry if isinstance(entry, list) else [entry]) if part]
    return sorted(set(named))


def _embeddings(output: Any) -> Tensor:
    """Jina's code gives a tensor, transformers' own classes an object."""
    return (output if isinstance(output, Tensor) else output.pooler_output).to(torch.float32)


@dataclass(eq=False)
class JinaCLIPScore(Metric):
    """100 x the mean cosine of images and prompts under jina-clip-v2, prompts of up to 8,192 tokens.

    Attributes:
        model: repository or local folder of jina-clip-v2, or of any model of transformers with ``get_image_features``
            and ``get_text_features``; weights are loaded at the first use.
        revision: commit of the repository; needed where it has code.
        run_remote_code: allow the model's own Python code to run. It is not checked: read it first.
        code_revision: commit of the repository of the code (``jinaai/jina-clip-implementation``), where that is
            another one.
        pipeline: pixel pipeline of the images.
        batch_size: pairs a pass.
        name: put before the score's name, where a snapshot has two of these.
    """

    model: str = "jinaai/jina-clip-v2"
    revision: str | None = None
    run_remote_code: bool = False
    code_revision: str | None = None
    pipeline: str = PIPELINE
    batch_size: int = 16
    name: str | None = None
    unit = "100 cos"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")
        self.encoder = DualEncoder(self.model, self.revision, self.run_remote_code, self.code_revision, self.pipeline)

    def check(self, samples: Samples) -> None:
        """Refuses samples without images or prompts."""
        if len(samples) == 0 or not samples.prompts:
            raise ValueError("the Jina-CLIP score needs images and their prompts")

    def observe(self, batch: SampleBatch) -> Rows:
        """Cosines [B] float64."""
        return observe_cosines(self.encoder, batch)

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``jina_clip_score``; its error has prompts as clusters and is missing for a single prompt."""
        values = 100.0 * torch.as_tensor(rows)
        errors = mean_error("jina_clip_score", values, samples.prompts)
        return Result({"jina_clip_score": float(values.mean())}, errors)

    def fingerprint(self) -> dict[str, Any]:
        """Model, hash of its weights, pixel pipeline."""
        return {**self.encoder.fingerprint(), "metric": "jina_clip_score"}
