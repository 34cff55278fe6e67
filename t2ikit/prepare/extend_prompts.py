"""Longer prompts: an instruction model rewrites the prompts of a benchmark as the long captions that training saw.

Paper: "How far can we go with ImageNet for Text-to-Image generation?", v1 section 4: short prompts are extended "using
Llama-3.1 to approximate the distribution of long prompts used during training"; v2 only says that a "Prompt Extender"
was used. Neither gives the instruction, the size of the model, the decoding or the lists, so the defaults here are
ours. Scores depend strongly on the rewriting: publish the list with them.

The file has one JSON object per line: a header, then one line per prompt, in their order::

    {"kind": "extended prompts", "version": 1, "identity": "...", "count": 553, "model": {...}, "instruction": "..."}
    {"prompt": "a photo of a bench", "extended": "A weathered wooden bench stands ..."}
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from t2ikit.files import check_text, parse_json, read_lines, write_whole
from t2ikit.prepare.captions.captioner import tidy
from t2ikit.prepare.engine.engine import run_work
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.engine.work import Work
from t2ikit.prepare.rewriting import DEFAULT_MODEL, Rewriting
from t2ikit.prepare.steps import sha256_of_json
from t2ikit.pretrained import EncoderReference, find_pretrained, load_pretrained

KIND, VERSION = "extended prompts", 1
SHARD = 64
"""Prompts that are written together: what a stopped call loses at most."""

_OPTION = "--model"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja",
)  # fmt: skip


class ExtendPrompts(Work):
    """Prompts to longer prompts, by a causal language model of transformers with a chat template.

    Args:
        prompts: in their order.
        model: repository of the Hub, or a folder.
        revision: commit, tag or branch of the repository.
        rewriting: what is asked.

    Raises:
        FileNotFoundError, ValueError: no such model; names ``--model``.
    """

    def __init__(
        self, prompts: Sequence[str], model: str, revision: str | None = None, rewriting: Rewriting | None = None
    ) -> None:
        self.prompts = list(prompts)
        self.model = model
        self.revision = revision
        self.rewriting = rewriting or Rewriting()
        self.reference: EncoderReference = find_pretrained(model, revision, _OPTION, _TOKENIZER_FILES).reference
        self.identity = sha256_of_json(
            [VERSION, self.prompts, self.reference.sha256, asdict(self.rewriting), torch.__version__]
        )
        self._network: Any = None
        self._tokenizer: Any = None

    def __len__(self) -> int:
        return len(self.prompts)

    def load(self, index: int) -> str:
        """The prompt."""
        return self.prompts[index]

    def setup(self, device: torch.device) -> None:
        """Loads model and tokenizer: float32 on a CPU, else the number format of the file.

        Raises:
            ValueError: the folder holds no such model, no tokenizer, or no chat template; names ``--model``.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if self._network is None:
            dtype: Any = torch.float32 if device.type == "cpu" else "auto"
            self._network, files = load_pretrained(
                AutoModelForCausalLM, self.model, self.revision, _OPTION, _TOKENIZER_FILES, dtype=dtype
            )
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.model} has no tokenizer ({error}): give a whole folder with {_OPTION}"
                ) from error
            if not self._tokenizer.chat_template:
                raise ValueError(f"{self.model} has no chat template: give an instruction model with {_OPTION}")
            # Answers start right after their prompts; the padding itself is masked, any token will do.
            self._tokenizer.padding_side = "left"
            if self._tokenizer.pad_token is None:
                self._tokenizer.pad_token = self._tokenizer.eos_token
        self._network.to(device)

    @torch.no_grad()
    def compute(self, items: list[Any]) -> list[bytes]:
        """The extended prompts of one batch, UTF-8; empty where the model gave no answer."""
        tokenizer, network = self._tokenizer, self._network
        turns = [
            [{"role": "user", "content": self.rewriting.instruction.replace("{prompt}", prompt)}] for prompt in items
        ]
        texts = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        # The template writes the special tokens itself.
        inputs = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        ids, mask = (inputs[name].to(network.device) for name in ("input_ids", "attention_mask"))
        output = network.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.rewriting.max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        return [tidy(unquoted(answer)).encode() for answer in answers]

    def header(self) -> dict[str, Any]:
        """The first line of the file."""
        return {
            "kind": KIND,
            "version": VERSION,
            "identity": self.identity,
            "count": len(self.prompts),
            "prompts_sha256": sha256_of_json(self.prompts),
            "model": self.reference.to_dict(),
            **asdict(self.rewriting),
        }


def unquoted(answer: str) -> str:
    """An answer without the quotation marks around all of it, which chat models like to put."""
    text = answer.strip()
    pairs = (('"', '"'), ("“", "”"), ("'", "'"))
    if len(text) > 1 and any(text[0] == first and text[-1] == last for first, last in pairs):
        return text[1:-1]
    return text


def extend_prompts(
    prompts: str | Path,
    out: str | Path,
    model: str = DEFAULT_MODEL,
    revision: str | None = None,
    rewriting: Rewriting | None = None,
    launch: Launch | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the extended list of a file of prompts; a call that was stopped continues when it is given again.

    Args:
        prompts: see ``read_prompt_list``.
        out: the file, see the head of this module; its unfinished parts lie beside it.
        model: instruction model of the Hub or of a folder.
        revision: commit, tag or branch of the repository.
        rewriting: what is asked.
        launch: on which devices.
        overwrite: replace a list that was made with other options.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is wrong with which option, or which line.

    Example:
        >>> extend_prompts("evaluation_metadata.jsonl", "geneval_extended.jsonl")  # doctest: +SKIP
    """
    path = Path(out)
    work = ExtendPrompts(read_prompt_list(prompts), model, revision, rewriting)
    if path.exists():
        if _header_of(path) == work.header():
            print(f"{path}: up to date")
            return path
        if not overwrite:
            raise FileExistsError(
                f"{path} was made with other options: choose another --out, or replace it with --overwrite"
            )
    folder = path.with_name(f".{path.name}.work")
    results = run_work(work, folder, launch or Launch(), "extend", "prompt", SHARD, overwrite)
    if results.chief:
        write_whole(path, (line.encode() for line in _lines(work, results)))
        print(f"{path}: {len(work):,} prompts extended")
    results.discard()
    return path


def _lines(work: ExtendPrompts, results: Any) -> Iterator[str]:
    yield json.dumps(work.header(), ensure_ascii=False) + "\n"
    for prompt, result in zip(work.prompts, results, strict=True):
        extended = bytes(result).decode()
        if not extended:
            raise ValueError(f"the model has nothing to say to {prompt!r}: change --model or --instruction")
        yield json.dumps({"prompt": prompt, "extended": extended}, ensure_ascii=False) + "\n"


def _header_of(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as stream:
            return parse_json(stream.readline())
    except (OSError, ValueError):
        return None


def read_prompt_list(path: str | Path) -> list[str]:
    """The prompts of a file, in order.

    Args:
        path: ``.jsonl`` with a "prompt" in every object (GenEval's metadata), ``.tsv`` with a column "Prompt"
            (PartiPrompts; quotation marks are part of a prompt), or any other text with one prompt per line.

    Raises:
        FileNotFoundError: no such file; names ``--prompts``.
        ValueError: a line that is none of these, or no prompt at all; names file and line.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file of prompts {file}: correct --prompts")
    try:
        lines = read_lines(file)
    except ValueError as error:
        raise ValueError(f"{error}: correct --prompts") from error
    if file.suffix == ".jsonl":
        prompts = [_prompt_of(file, row, line) for row, line in enumerate(lines, start=1) if line.strip()]
    elif file.suffix == ".tsv":
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        if "Prompt" not in (rows.fieldnames or ()):
            raise ValueError(f"{file} has no column Prompt: correct --prompts")
        prompts = [str(row["Prompt"]).strip() for row in rows]
    else:
        prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{file} holds no prompt: correct --prompts")
    for prompt in prompts:
        check_text(prompt, f"a prompt of {file}")
    return prompts


def _prompt_of(file: Path, line_number: int, line: str) -> str:
    try:
        prompt = parse_json(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}, line {line_number}: no JSON object with a prompt ({error!r})") from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{file}, line {line_number}: the prompt is {prompt!r}")
    return prompt
