"""``t2ikit prepare extend``: longer prompts for a benchmark."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from t2ikit.commands.prepare.options import Revision, Step, TextFile, text_of, values_of
from t2ikit.prepare.engine.launch import Devices, Launch
from t2ikit.prepare.rewriting import DEFAULT_MODEL, INSTRUCTION, Rewriting


@dataclass(frozen=True, kw_only=True)
class Extend:
    """Rewrites the prompts of a benchmark as long captions, by an instruction model.

    The papers' extended scores need such a list. They do not publish theirs, so publish yours with your scores. To
    continue after a call was stopped, give the same command again.

    Attributes:
        prompts: one prompt per line; .jsonl with a `prompt` in every line (GenEval's metadata); or .tsv with a column
            Prompt.
        out: the extended list, JSON lines.
        overwrite: replace a list that was made with other options.
        model: instruction model with a chat template.
        revision: commit, tag or branch on the Hub.
        instruction: file with your own instruction; {prompt} in it stands for the prompt.
        max_new_tokens: longest answer, in the model's tokens.
        batch_size: prompts at once.
    """

    prompts: Annotated[Path, "FILE"]
    out: Annotated[Path, "FILE"]
    overwrite: bool = False
    model: Annotated[str, "NAME|FOLDER"] = DEFAULT_MODEL
    revision: Revision = None
    instruction: TextFile = None
    max_new_tokens: int = Rewriting.max_new_tokens
    batch_size: int = 16


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.extend_prompts import extend_prompts

    options = Extend(**values_of(Extend, args))
    extend_prompts(
        options.prompts,
        options.out,
        options.model,
        options.revision,
        Rewriting(text_of(options.instruction, "--instruction", INSTRUCTION), options.max_new_tokens),
        Launch(**values_of(Devices, args), batch_size=options.batch_size),
        options.overwrite,
    )
    return 0


STEP = Step("extend", "longer prompts for a benchmark", Extend, _run, (Devices,))
