"""``t2ikit prepare extend``: longer prompts for a benchmark."""

from __future__ import annotations

import argparse
from typing import Any

from t2ikit.commands.prepare.launch import add_launch, launch_of
from t2ikit.commands.prepare.options import add_step, expanded, text_of
from t2ikit.prepare.rewriting import DEFAULT_MODEL, INSTRUCTION, Rewriting


def add_parser(steps: Any) -> None:
    """Adds the step to the subcommands of ``prepare``."""
    parser = add_step(
        steps,
        "extend",
        "longer prompts for a benchmark",
        "Rewrites the prompts of a benchmark as long captions, by an instruction model. The papers' extended scores "
        "are made with such a list, which they do not publish; publish yours. A call that was stopped goes on where "
        "it was.",
    )
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help="one prompt a line; .jsonl with a `prompt` in every line (GenEval's metadata); or .tsv with a column "
        "Prompt",
    )
    parser.add_argument("--out", required=True, type=expanded, metavar="FILE", help="the extended list, JSON lines")
    parser.add_argument("--overwrite", action="store_true", help="replace a list that was made otherwise")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME|FOLDER", help="instruction model with a chat template"
    )
    parser.add_argument("--revision", metavar="REVISION", help="commit, tag or branch on the Hub")
    parser.add_argument(
        "--instruction", metavar="FILE", help="another instruction than ours; {prompt} stands for the prompt"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=Rewriting.max_new_tokens, help="longest answer, in the model's tokens"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="prompts at once")
    add_launch(parser)
    parser.set_defaults(prepare_run=_run)


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.extend_prompts import extend_prompts

    instruction = text_of(args.instruction, "--instruction") if args.instruction else INSTRUCTION
    extend_prompts(
        args.prompts,
        args.out,
        args.model,
        args.revision,
        Rewriting(instruction, args.max_new_tokens),
        launch_of(args, args.batch_size),
        args.overwrite,
    )
    return 0
