"""Text encoders: prompts to states.

The paper's is the encoder of flan-T5-XL: last hidden state after the final norm, at most 256 tokens with the end token
``</s>``, un-padded. The empty prompt, which guidance and the conditioning drop use, is that one token. A small T5 of
the same classes, with seeded random weights and a word vocabulary, stands in for it where no weights can be had.

Shapes: L tokens of a prompt, D width of the states.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit.batch import Text
from t2ikit.files import below, partial_of, publish, recover
from t2ikit.pretrained import EncoderReference, load_pretrained

DEFAULT_TEXT_ENCODER = "google/flan-t5-xl"
MAX_TOKENS = 256
_OPTION = "--text-encoder DIR of `t2ikit prepare encode`, or the text encoder of the experiment"
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


class TextEncoder:
    """A T5 encoder with its tokenizer.

    Attributes:
        dim: D, width of the states.
        max_tokens: longer prompts are cut to this many tokens, the last of which is the end token.
        reference: which weights these are; its hash covers the tokenizer, too.
    """

    def __init__(self, model: Any, tokenizer: Any, reference: EncoderReference, max_tokens: int = MAX_TOKENS) -> None:
        """Wraps a loaded model (see ``load``); ValueError unless its tokenizer turns "" into the end token alone."""
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1; got {max_tokens}")
        empty = tokenizer("").input_ids
        if empty != [tokenizer.eos_token_id]:
            raise ValueError(
                f"the tokenizer of {reference.name} turns the empty prompt into {empty}, not into its end token alone; "
                f"give a T5 with {_OPTION}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.reference = reference
        self.max_tokens = max_tokens
        self.dim: int = model.config.d_model

    @classmethod
    def load(
        cls,
        name: str = DEFAULT_TEXT_ENCODER,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        max_tokens: int = MAX_TOKENS,
    ) -> TextEncoder:
        """Loads a T5 encoder from a local folder or from the Hub.

        Args:
            name: a folder in the format of transformers, or a repository of the Hub.
            revision: commit, tag or branch of the repository.
            device: where the model runs.
            dtype: of the weights. T5 overflows in float16: use float32 or bfloat16.
            max_tokens: longest prompt, with its end token.

        Raises:
            FileNotFoundError: no such folder, or no way to the Hub; names the option.
            ValueError: the folder holds no T5, or no tokenizer.
        """
        from transformers import AutoTokenizer, T5EncoderModel

        model, source = load_pretrained(T5EncoderModel, name, revision, _OPTION, _TOKENIZER_FILES, dtype=dtype)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.folder)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{name} has no loadable tokenizer ({error}); give a T5 with {_OPTION}") from error
        return cls(model.to(device), tokenizer, source.reference, max_tokens)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.model.parameters()).device

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt with its end token, after the cut to ``max_tokens``."""
        return [len(ids) for ids in self._ids(prompts)]

    def unknown_words(self, prompt: str) -> list[str]:
        """Parts of a prompt that the vocabulary does not hold; the tokens that replace them all look alike."""
        encoding = self.tokenizer(prompt, return_offsets_mapping=True)
        spans = zip(encoding.input_ids, encoding.offset_mapping, strict=True)
        return [prompt[start:end] for token, (start, end) in spans if token == self.tokenizer.unk_token_id]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """States of B prompts, in one pass: B tensors [L, D] float32 on the device, L tokens with the end token."""
        if len(prompts) == 0:
            return []
        ids = [torch.tensor(row) for row in self._ids(prompts)]
        tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in ids])
        mask = torch.arange(tokens.shape[1])[None] < lengths[:, None]
        states = self.model(input_ids=tokens.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return [row[:length].to(torch.float32) for row, length in zip(states, lengths.tolist(), strict=True)]

    def encode_all(self, prompts: Sequence[str], batch_size: int = 64) -> list[Tensor]:
        """States of any number of prompts, each [L, D] float32 on the CPU.

        A pass takes at most ``batch_size`` prompts of one length: nothing is padded. Equal ones are encoded once.
        """
        texts = list(dict.fromkeys(prompts))
        groups: dict[int, list[str]] = {}
        for text, length in zip(texts, self.lengths(texts) if texts else (), strict=True):
            groups.setdefault(length, []).append(text)
        states: dict[str, Tensor] = {}
        with tqdm(total=len(texts), desc="encoding prompts", unit="prompt", leave=False, mininterval=1.0) as bar:
            for _, group in sorted(groups.items(), reverse=True):  # the longest first: they show whether memory lasts
                for start in range(0, len(group), batch_size):
                    batch = group[start : start + batch_size]
                    states.update(zip(batch, (row.cpu() for row in self.encode(batch)), strict=True))
                    bar.update(len(batch))
        return [states[prompt] for prompt in prompts]

    def __call__(self, prompts: Sequence[str]) -> Text:
        """States of B prompts, padded: embeddings [B, max L, D] float32."""
        return Text.from_rows(self.encode(prompts))

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(prompts), truncation=True, max_length=self.max_tokens).input_ids


def build_small_t5(
    folder: str | Path,
    texts: Iterable[str],
    dim: int = 64,
    layers: int = 2,
    heads: int = 4,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Writes a small T5 encoder with seeded random weights, in the ordinary format of transformers.

    Its vocabulary is every word and every punctuation mark of ``texts`` (in lower case; others become ``<unk>``).
    Random weights still give unlike texts unlike states: each token keeps its own vector and mixes in its neighbours.

    Args:
        folder: of the model. One that holds the same model already stays as it is.
        texts: what the vocabulary is taken from.
        dim: D, width of the states; a multiple of ``heads``.
        layers: blocks of the encoder.
        heads: attention heads.
        seed: decides the weights.
        overwrite: replace a folder that holds something else.

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


def load_encoder(
    reference: EncoderReference,
    root: Path | None,
    remedy: str,
    name: str | None = None,
    device: str | torch.device = "cpu",
) -> TextEncoder:
    """The text encoder whose states a prepared set holds, checked by its hash.

    Args:
        reference: of the set's manifest.
        root: data root, the folder of a text encoder that was built for the set.
        remedy: what to do about other weights, the end of the message.
        name: folder or repository to take it from instead of the recorded one.
        device: where the model runs.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it has other weights.
    """
    source, revision = name or reference.name, reference.revision if name in (None, reference.name) else None
    if name is None and root is not None:
        with suppress(ValueError):  # the path of a folder elsewhere is no name below the root
            beside = below(root, reference.name)
            source = str(beside) if beside.is_dir() else source
    encoder = TextEncoder.load(source, revision, device)
    if encoder.reference.sha256 != reference.sha256:
        raise ValueError(
            f"the text encoder {source} has other weights than the one the data was prepared with "
            f"({encoder.reference.sha256[:12]}, manifest: {reference.sha256[:12]}): {remedy}"
        )
    return encoder
