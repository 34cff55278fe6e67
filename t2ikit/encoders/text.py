"""Text encoders: prompts to states.

Three kinds of models of transformers, each loaded from its ordinary folder or from the Hub:

- the encoder of a T5 (T5, flan-T5, ByT5, mT5, UMT5), last hidden state after the final norm. The paper's is flan-T5-XL;
- a CLIP text model, with or without its projection, at most 77 tokens, with a pooled vector a prompt;
- a decoder-only language model (LLaMA, Gemma, Qwen, ...), padded on the right, with the BOS that its tokenizer adds.

States are those of real tokens alone, un-padded. The empty prompt, which guidance and the conditioning drop use, is
whatever its tokenizer makes of "": the end token (T5), BOS and end token (CLIP), BOS (LLaMA, Gemma). A tokenizer that
makes no token of it (Qwen) gets one, its padding or end token, which counts as real.

Shapes: L tokens of a prompt, D width of the states, P width of a pooled vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit.batch import Text, Texts
from t2ikit.encoders.stored_texts import IN_MEMORY, Chosen, StoredTexts, Zipped
from t2ikit.files import below, parse_json
from t2ikit.pretrained import EncoderReference, load_pretrained

DEFAULT_TEXT_ENCODER = "google/flan-t5-xl"
MAX_TOKENS = 256
_OPTION = "--text-encoder DIR of `t2ikit prepare encode`, or the text encoder of the experiment"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "merges.txt")
_T5 = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
_LAYER = "#layer="


class TextEncoder:
    """A text model with its tokenizer.

    Attributes:
        dim: D, width of the states.
        pooled_dim: P, width of the pooled vectors; 0 for a model that gives none.
        max_tokens: longer prompts are cut to this many tokens; the special tokens at their ends stay.
        layer: hidden states that are taken: -1 the last ones, after the final norm; -2 those before the last block
            (penultimate), without that norm; and so on. Pooled vectors are always those of the last layer.
        reference: which weights these are; its hash covers the tokenizer, and ``layer`` where it is not -1.
    """

    def __init__(
        self, model: Any, tokenizer: Any, reference: EncoderReference, max_tokens: int = MAX_TOKENS, layer: int = -1
    ) -> None:
        """Wraps a loaded model (see ``load``).

        Raises:
            ValueError: no token may be kept, there is no such layer, or model and tokenizer do not fit each other.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1; got {max_tokens}")
        config = model.config.get_text_config()
        if not -config.num_hidden_layers <= layer <= -1:
            raise ValueError(
                f"{reference.name} has hidden states -1 (the last) to -{config.num_hidden_layers}; there is no {layer}"
            )
        tokenizer.truncation_side = "right"
        config.use_cache = False  # of a decoder: keys and values that nobody asks for again
        self.model = model
        self.tokenizer = tokenizer
        self.reference = reference
        self.max_tokens = min(max_tokens, getattr(config, "max_position_embeddings", None) or max_tokens)
        self.layer = layer
        self.dim: int = config.hidden_size
        self.pooled_dim: int = 0
        if config.model_type.startswith("clip"):
            projection = getattr(model, "text_projection", None)
            self.pooled_dim = self.dim if projection is None else projection.out_features
        self._check_end(reference.name)

    def _check_end(self, name: str) -> None:
        """Refuses a tokenizer that ends no prompt, where the model wants it, or that has no token for an empty one."""
        empty, end = self.tokenizer("").input_ids, self.tokenizer.eos_token_id
        kind = self.model.config.model_type
        if kind in _T5 and empty != [end]:
            raise ValueError(
                f"the tokenizer of {name} turns the empty prompt into {empty}, not into its end token alone, as that "
                f"of a T5 does; give another with {_OPTION}"
            )
        if self.pooled_dim and empty[-1:] != [end]:
            raise ValueError(
                f"the tokenizer of {name} turns the empty prompt into {empty}, without its end token {end}, where CLIP "
                f"takes the pooled vector; give another with {_OPTION}"
            )
        if not empty and self._padding is None:
            raise ValueError(
                f"the tokenizer of {name} has no token for the empty prompt, nor a padding or end token to stand in "
                f"for it; give another with {_OPTION}"
            )

    @classmethod
    def load(
        cls,
        name: str = DEFAULT_TEXT_ENCODER,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        max_tokens: int = MAX_TOKENS,
    ) -> TextEncoder:
        """Loads a text encoder from a local folder or from the Hub.

        Args:
            name: a folder in the format of transformers, or a repository of the Hub; with ``#layer=-2`` at its end for
                other hidden states than the last.
            revision: commit, tag or branch of the repository.
            device: where the model runs.
            dtype: of the weights. T5 overflows in float16: use float32 or bfloat16.
            max_tokens: longest prompt, with its special tokens; a model of fewer positions (CLIP: 77) takes fewer.

        Raises:
            FileNotFoundError: no such folder, or no way to the Hub; names the option.
            ValueError: the folder holds no text encoder of a known kind, or no tokenizer.
        """
        from transformers import AutoTokenizer

        source_name, layer = split_layer(name)
        model, source = load_pretrained(AnyTextModel, source_name, revision, _OPTION, TOKENIZER_FILES, dtype=dtype)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{name} has no loadable tokenizer ({error}); give another with {_OPTION}") from error
        reference = source.reference
        if layer != -1:
            digest = hashlib.sha256(f"{reference.sha256}{_LAYER}{layer}".encode()).hexdigest()
            reference = replace(reference, name=f"{source_name}{_LAYER}{layer}", sha256=digest)
        return cls(model.to(device), tokenizer, reference, max_tokens, layer)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.model.parameters()).device

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt with its special tokens, after the cut to ``max_tokens``."""
        return [len(ids) for ids in self._ids(prompts)]

    def unknown_words(self, prompt: str) -> list[str]:
        """Parts of a prompt that the vocabulary does not hold; the tokens that replace them all look alike."""
        if not self.tokenizer.is_fast:  # ByT5's: every byte is known
            return []
        encoding = self.tokenizer(prompt, return_offsets_mapping=True, split_special_tokens=True)
        spans = zip(encoding.input_ids, encoding.offset_mapping, strict=True)
        unknown = self.tokenizer.unk_token_id  # CLIP's is its end token, which covers no part of the prompt
        return [prompt[start:end] for token, (start, end) in spans if token == unknown and start < end]

    @torch.no_grad()
    def encode_pooled(self, prompts: Sequence[str]) -> tuple[list[Tensor], Tensor | None]:
        """Of B prompts, in one pass: B states [L, D], and the pooled vectors [B, P] of a model that gives them.

        Both are float32 on the device; L counts special tokens.
        """
        if len(prompts) == 0:
            return [], None
        ids = [torch.tensor(row) for row in self._ids(prompts)]
        tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self._padding or 0)
        lengths = torch.tensor([len(row) for row in ids])
        mask = torch.arange(tokens.shape[1])[None] < lengths[:, None]
        options = {} if self.layer == -1 else {"output_hidden_states": True}
        output = self.model(input_ids=tokens.to(self.device), attention_mask=mask.to(self.device), **options)
        hidden = output.last_hidden_state if self.layer == -1 else output.hidden_states[self.layer]
        states = [row[:length].to(torch.float32) for row, length in zip(hidden, lengths.tolist(), strict=True)]
        if not self.pooled_dim:
            return states, None
        pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
        return states, pooled.to(torch.float32)

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """States of B prompts, in one pass: B tensors [L, D] float32 on the device, L tokens with special ones."""
        return self.encode_pooled(prompts)[0]

    def encode_rows(self, prompts: Sequence[str], batch_size: int = 64) -> Sequence[Text]:
        """Any number of prompts, each a text of one row on the CPU: embeddings [1, L, D] float32, pooled [1, P].

        A pass takes at most ``batch_size`` prompts of one length: nothing is padded. Equal ones are encoded once; more
        than ``IN_MEMORY`` different ones are kept on the disk.
        """
        unique = list(dict.fromkeys(prompts))
        groups: dict[int, list[str]] = {}
        for prompt, length in zip(unique, self.lengths(unique) if unique else (), strict=True):
            groups.setdefault(length, []).append(prompt)
        rows: list[Text] | StoredTexts = [] if len(unique) <= IN_MEMORY else StoredTexts()
        encoded: dict[str, int] = {}
        with tqdm(total=len(unique), desc="encoding prompts", unit="prompt", leave=False, mininterval=1.0) as bar:
            for _, group in sorted(groups.items(), reverse=True):  # the longest first: they show whether memory lasts
                for start in range(0, len(group), batch_size):
                    batch = group[start : start + batch_size]
                    text = self(batch).to("cpu")
                    for row, prompt in enumerate(batch):
                        encoded[prompt] = len(rows)
                        rows.append(text.rows(slice(row, row + 1)))
                    bar.update(len(batch))
        order = [encoded[prompt] for prompt in prompts]
        return [rows[index] for index in order] if isinstance(rows, list) else Chosen(rows, order)

    def __call__(self, prompts: Sequence[str]) -> Text:
        """B prompts in one pass, padded: embeddings [B, max L, D] float32, pooled [B, P]."""
        return Text.from_rows(*self.encode_pooled(prompts))

    @property
    def _padding(self) -> int | None:
        """What fills a batch, hidden by the mask: the padding token, or the end token of a tokenizer without one."""
        padding = self.tokenizer.pad_token_id
        return cast("int | None", self.tokenizer.eos_token_id if padding is None else padding)

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        # Special tokens that are written in a prompt, such as </s>, are text.
        options = {"truncation": True, "max_length": self.max_tokens, "split_special_tokens": True}
        ids = self.tokenizer(list(prompts), **options).input_ids
        return [row or [self._padding] for row in ids]


class AnyTextModel:
    """Loads a text model by the class that the ``config.json`` of its folder asks for."""

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> Any:
        """The model of transformers, as its ``from_pretrained`` gives it.

        Raises:
            ValueError: a kind of model that is not known.
        """
        return cls.class_of(folder).from_pretrained(folder, trust_remote_code=False, **options)

    @staticmethod
    def class_of(folder: Path) -> Any:
        """The class of transformers.

        Raises:
            ValueError: a kind of model that is not known.
        """
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        config = parse_json((folder / "config.json").read_text())
        kind = config.get("model_type")
        if kind in _T5:
            model_class = getattr(transformers, _T5[kind])
        elif kind in ("clip", "clip_text_model"):
            plain = config.get("architectures") == ["CLIPTextModel"]
            model_class = transformers.CLIPTextModel if plain else transformers.CLIPTextModelWithProjection
        elif kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.get("is_encoder_decoder"):
            model_class = transformers.AutoModel
        else:
            raise ValueError(f"its model_type is {kind!r}, neither a T5, nor CLIP's text model, nor a language model")
        return model_class


def split_layer(name: str) -> tuple[str, int]:
    """Folder or repository, and the layer of ``NAME#layer=-2``; -1 where the name has none.

    Raises:
        ValueError: the layer is no number.
    """
    source, sign, layer = name.partition(_LAYER)
    try:
        return source, int(layer) if sign else -1
    except ValueError:
        raise ValueError(f"{name}: a layer is a negative number, such as {source}{_LAYER}-2") from None


def encode_prompts(encoders: Iterable[TextEncoder], prompts: Sequence[str], batch_size: int = 64) -> Sequence[Texts]:
    """Each prompt by every text encoder: one row of one text, or a tuple of such for several encoders.

    Args:
        encoders: in the order of the manifest; an iterator that loads each when it is asked for keeps one in memory.
        prompts: any.
        batch_size: prompts of one pass.
    """
    columns = []
    for encoder in encoders:
        columns.append(encoder.encode_rows(prompts, batch_size))
    return columns[0] if len(columns) == 1 else Zipped(columns)


def encoder_source(reference: EncoderReference, root: Path | None, name: str | None = None) -> tuple[str, str | None]:
    """Folder or repository of a recorded text encoder, with its layer, and the revision; as :func:`load_encoder`."""
    source, revision = name or reference.name, reference.revision if name in (None, reference.name) else None
    layer = split_layer(reference.name)[1]
    if layer != -1 and _LAYER not in source:
        source = f"{source}{_LAYER}{layer}"
    if name is None and root is not None:
        with suppress(ValueError):  # the path of a folder elsewhere is no name below the root
            beside = below(root, reference.name)
            source = str(beside) if beside.is_dir() else source
    return source, revision


def load_encoder(
    reference: EncoderReference,
    root: Path | None,
    remedy: str,
    name: str | None = None,
    device: str | torch.device = "cpu",
    token_limit: int = 0,
) -> TextEncoder:
    """The text encoder whose states a prepared set holds, checked by its hash.

    Args:
        reference: of the set's manifest.
        root: data root, the folder of a text encoder that was built for the set.
        remedy: what to do about other weights, the end of the message.
        name: folder or repository to take it from instead of the recorded one.
        device: where the model runs.
        token_limit: of the manifest, so that a prompt is cut where a caption was; 0 for a set that states none.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it has other weights.
    """
    source, revision = encoder_source(reference, root, name)
    encoder = TextEncoder.load(source, revision, device, max_tokens=token_limit or MAX_TOKENS)
    if reference.sha256 not in ("", encoder.reference.sha256):  # of imported weights it may not be known
        raise ValueError(
            f"the text encoder {source} has other weights than the one the data was prepared with "
            f"({encoder.reference.sha256[:12]}, manifest: {reference.sha256[:12]}): {remedy}"
        )
    return encoder
