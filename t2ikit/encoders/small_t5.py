"""A small T5 of the real class, with seeded random weights and a vocabulary of words: where no weights can be had."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from t2ikit.files import partial_of, publish, recover

_NEIGHBOUR_BIAS = 6.0
"""Of scores with variance 1: nine tenths of a head's attention, in a text of fifty words."""

_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


def build_small_t5(
    folder: str | Path,
    texts: Iterable[str],
    dim: int = 64,
    layers: int = 2,
    heads: int = 4,
    seed: int = 0,
    overwrite: bool = False,
    word_order: bool = False,
) -> Path:
    """Writes a small T5 encoder with seeded random weights, in the ordinary format of transformers.

    Its vocabulary is every word and every punctuation mark of ``texts`` (in lower case; others become ``<unk>``).
    Random weights still give unlike texts unlike states: each token keeps its own vector and mixes in those of all
    others, nearly evenly. So its states hardly say in which order the words stood, and no network that reads them can
    tell "a striped ring and a star" from "a ring and a striped star". ``word_order`` repairs that.

    Args:
        folder: of the model. One that holds the same model already stays as it is.
        texts: what the vocabulary is taken from.
        dim: D, width of the states; a multiple of ``heads``.
        layers: blocks of the encoder.
        heads: attention heads.
        seed: decides the weights.
        overwrite: replace a folder that holds something else.
        word_order: all heads but the last look at one neighbour each, as heads of trained encoders do: at the word
            before, the one behind, the second before, and so on.

    Returns:
        ``folder``.

    Raises:
        ValueError: no words in ``texts``, or ``dim`` not a multiple of ``heads``.
        FileExistsError: the folder exists, holds something else and may not be replaced.
    """
    from transformers import T5Config, T5EncoderModel

    if dim % heads:
        raise ValueError(f"dim must be a multiple of heads; got {dim} and {heads}")
    tokenizer = _word_tokenizer(texts)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=dim,
        d_kv=dim // heads,
        d_ff=2 * dim,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",  # as in flan-T5
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
    if word_order:
        blocks: Any = model.encoder.block
        _look_at_neighbours(blocks[0].layer[0].SelfAttention.relative_attention_bias, heads)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    partial = partial_of(folder)
    try:
        with _no_progress_bars():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if folder.exists() and _same_files(folder, partial):
            return folder
        if folder.exists() and not overwrite:
            raise FileExistsError(f"{folder} exists and is not the model asked for: delete it or choose another folder")
        publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _look_at_neighbours(bias: torch.nn.Embedding, heads: int) -> None:
    """Adds to the bias of T5's attention, [buckets, heads], for one distance a head; all layers share it.

    A bucket is a distance up to a quarter of their number: first those to words before, in the second half those to
    words behind (Raffel et al. 2020, section 2.1).
    """
    half, nearest = bias.num_embeddings // 2, bias.num_embeddings // 4
    with torch.no_grad():
        for head in range(min(heads - 1, 2 * (nearest - 1))):
            distance, behind = head // 2 + 1, head % 2
            bias.weight[distance + half * behind, head] += _NEIGHBOUR_BIAS


def _word_tokenizer(texts: Iterable[str]) -> Any:
    """Words and punctuation marks as tokens, the end token appended to every text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import NFKC, Lowercase
    from tokenizers.normalizers import Sequence as Normalizers
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = Normalizers([NFKC(), Lowercase()]), Whitespace()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    if not counts:
        raise ValueError("a small T5 takes its vocabulary from texts; none of them has a word")
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {token: index for index, token in enumerate([_PAD, _END, _UNKNOWN, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {_END}", pair=f"$A {_END} $B {_END}", special_tokens=[(_END, vocabulary[_END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        unk_token=_UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
    )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keeps transformers from showing a bar while it writes one small file."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _same_files(first: Path, second: Path) -> bool:
    names = os.listdir(second)
    return set(os.listdir(first)) == set(names) == set(filecmp.cmpfiles(first, second, names, shallow=False)[0])
