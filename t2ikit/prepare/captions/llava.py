"""LLaVA-NeXT as captioner, with the tokens of the whole image only.

LLaVA-NeXT shows its language model a picture twice: as one view of the whole picture (336 x 336 pixels, 24 x 24 = 576
tokens) and cut into tiles of that size. The paper keeps the tokens of the whole picture and drops those of the tiles
(v2 appendix D: 2.7 times faster, captions as good); only tiles that are kept are computed here. For CutMix images of
CM 1/4, 1/9 and 1/16, where the insert is small, the tokens of the tile that holds it follow.

Shapes: B images [3, S, S] uint8, V views [3, s, s] (B of whole pictures, then tiles), N tokens a view, D width of the
language model, L length of the prompt with its image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ikit.prepare.captions.captioner import DEFAULT_CAPTIONER, Captioner, Decoding, Prompts
from t2ikit.pretrained import find_pretrained, load_pretrained

GRID = 2
"""Tiles along a side: "four distinct patches" (paper, v2 appendix D), at every size of the picture.

transformers takes 1 x 2 tiles, each half filled by padding, for 256 x 256 pixels, and 2 x 2 from 337 pixels on."""

TILED_SETTINGS = ("cm4", "cm9", "cm16")
"""Settings whose insert gets the tokens of its tile; CM 1/2 fills half the picture and does without."""

_OPTION = "--captioner"
_PROCESSOR_FILES = (
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip


def tile_of(rectangle: Sequence[int], size: int) -> int:
    """The tile (0 upper left, 1 upper right, 2 lower left, 3 lower right) that shares most pixels with an insert.

    An insert of CM 1/4 fills a tile; those of CM 1/9 and 1/16 may lie across two, and the paper adds one ("the patch
    to which the CutMix image belongs"). Equal shares go to the upper, and to the left, tile.

    Args:
        rectangle: half-open ``(x0, y0, x1, y1)`` in pixels.
        size: S, side of the picture.

    Example:
        >>> tile_of((128, 0, 256, 128), 256), tile_of((0, 100, 85, 185), 256)
        (1, 2)
    """
    x0, y0, x1, y1 = rectangle
    # Twice the centre of the insert, twice the middle of the picture: no fractions.
    return (GRID if y0 + y1 > size else 0) + (1 if x0 + x1 > size else 0)


def tile_shown(metadata: dict[str, Any], size: int) -> int | None:
    """The tile whose tokens follow those of the whole picture, or None."""
    if metadata.get("setting") not in TILED_SETTINGS:
        return None
    return tile_of(metadata["rectangle"], size)


class LlavaNextCaptioner(Captioner):
    """A ``LlavaNextForConditionalGeneration`` of transformers: bfloat16 on an accelerator, float32 on a CPU.

    Args:
        name: repository of the Hub, or a folder.
        revision: commit, tag or branch of the repository.
        prompts: the questions.
        decoding: how answers are decoded.

    Raises:
        FileNotFoundError: no such folder, or no way to the Hub; names ``--captioner``.
        ValueError: a folder without weights.

    Example:
        >>> captioner = LlavaNextCaptioner("models/llama3-llava-next-8b-hf")  # doctest: +SKIP
        >>> captioner.setup(torch.device("cuda"))
        >>> captioner.caption([image], [{"key": "train/n02012849/x.JPEG"}])
        ['A grey crane stands in shallow water.']
    """

    kind = "llava"

    def __init__(
        self,
        name: str = DEFAULT_CAPTIONER,
        revision: str | None = None,
        prompts: Prompts | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__(prompts or Prompts(), decoding or Decoding())
        self.model = name
        self.revision = revision
        self.reference = find_pretrained(name, revision, _OPTION, _PROCESSOR_FILES).reference
        self._network: Any = None
        self._processor: Any = None
        self._prompt_ids: dict[tuple[str, int], list[int]] = {}

    def _details(self) -> tuple[Any, ...]:
        return (GRID, *TILED_SETTINGS)

    def setup(self, device: torch.device) -> None:
        """Loads model and processor.

        Raises:
            ValueError: the folder holds no LLaVA-NeXT, no processor or no chat template; names ``--captioner``.
        """
        from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

        if self._network is None:
            dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
            self._network, files = load_pretrained(
                LlavaNextForConditionalGeneration, self.model, self.revision, _OPTION, _PROCESSOR_FILES, dtype=dtype
            )
            try:
                self._processor = LlavaNextProcessor.from_pretrained(files.folder)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"{self.model} has no processor of LLaVA-NeXT ({reason}): give a complete folder with {_OPTION}"
                ) from error
            if not self._processor.chat_template:
                raise ValueError(
                    f"{self.model} has no chat template, which tells how a question is written: give a folder with "
                    f"chat_template.jinja or chat_template.json with {_OPTION}"
                )
        self._network.to(device)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self._network.parameters()).device

    @torch.no_grad()
    def answers(self, images: list[np.ndarray], metadata: list[dict[str, Any]], attempt: int = 0) -> list[str]:
        """One answer an image, all images in one pass."""
        embeddings, mask = self.inputs(images, metadata)
        tokens = self._generate(embeddings, mask, metadata, attempt)
        answers: list[str] = self._processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return answers

    @torch.no_grad()
    def inputs(self, images: list[np.ndarray], metadata: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """What the language model reads.

        Returns:
            Embeddings [B, L, D] of the prompts, padded on the left, with the features of the images in them; and which
            are real, [B, L] int64.
        """
        pixels = torch.from_numpy(np.stack(images)).to(self._network.device)
        tiles = [tile_shown(facts, pixels.shape[-1]) for facts in metadata]
        features = self.features(self.views(pixels, tiles))
        count = features.shape[1]
        rows = [
            self._ids(self.prompts.of(facts), count * (1 if tile is None else 2))
            for facts, tile in zip(metadata, tiles, strict=True)
        ]
        longest = max(map(len, rows))
        padding = self._pad_token()
        ids = torch.tensor([[padding] * (longest - len(row)) + row for row in rows], device=pixels.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=pixels.device)
        embeddings = self._network.get_input_embeddings()(ids)
        # In the order of the text: whole picture of an image, then its tile.
        extra = iter(range(len(images), len(features)))
        order = [view for row, tile in enumerate(tiles) for view in ([row] if tile is None else [row, next(extra)])]
        shown = (ids == self._processor.image_token_id) & (mask == 1)
        embeddings[shown] = features[order].flatten(0, 1).to(embeddings.dtype)
        return embeddings, mask

    def views(self, pixels: Tensor, tiles: Sequence[int | None]) -> Tensor:
        """What the vision tower sees, resized and normalised as the model's processor does it.

        Args:
            pixels: [B, 3, S, S] uint8.
            tiles: for each image the tile that is shown as well, or None.

        Returns:
            [V, 3, s, s] float32: the B whole pictures, then the tiles.
        """
        from transformers.image_utils import SizeDict

        processor = self._processor.image_processor
        side = processor.size.get("shortest_edge") or processor.size["height"]
        views = [processor.resize(pixels, SizeDict(height=side, width=side), processor.resample)]
        tiled = [row for row, tile in enumerate(tiles) if tile is not None]
        if tiled:
            tile_side = processor.crop_size["height"]
            large = SizeDict(height=GRID * tile_side, width=GRID * tile_side)
            enlarged = processor.resize(pixels[tiled], large, processor.resample)
            cut = []
            for picture, tile in zip(enlarged, (tile for tile in tiles if tile is not None), strict=True):
                top, left = (tile // GRID) * tile_side, (tile % GRID) * tile_side
                cut.append(picture[:, top : top + tile_side, left : left + tile_side])
            views.append(processor.resize(torch.stack(cut), SizeDict(height=side, width=side), processor.resample))
        normalised: Tensor = processor.rescale_and_normalize(
            processor.center_crop(torch.cat(views), processor.crop_size),
            processor.do_rescale,
            processor.rescale_factor,
            processor.do_normalize,
            tuple(processor.image_mean),
            tuple(processor.image_std),
        )
        return normalised

    def features(self, views: Tensor) -> Tensor:
        """What the language model gets of each view, [V, N, D]: chosen layers of the vision tower, projected."""
        model, config = self._network.model, self._network.config
        seen = model.vision_tower(views.to(self._network.dtype), output_hidden_states=True)
        layers = config.vision_feature_layer
        chosen = [layers] if isinstance(layers, int) else list(layers)
        hidden = torch.cat([seen.hidden_states[layer] for layer in chosen], dim=-1)
        if config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:]  # without the class token
        features: Tensor = model.multi_modal_projector(hidden)
        return features

    def _ids(self, prompt: str, image_tokens: int) -> list[int]:
        """The prompt as the model's chat template puts it, with so many image tokens."""
        ids = self._prompt_ids.get((prompt, image_tokens))
        if ids is None:
            processor = self._processor
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            conversation = [{"role": "user", "content": content}]
            text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
            if text.count(processor.image_token) != 1:
                raise ValueError(
                    f"the prompt of {self.model} has {text.count(processor.image_token)} places for an image, not 1: "
                    f"leave {processor.image_token} out of --prompt and --cutmix-prompt"
                )
            text = text.replace(processor.image_token, processor.image_token * image_tokens)
            begin = processor.tokenizer.bos_token
            special = begin is None or not text.startswith(begin)  # some templates begin with it themselves
            ids = list(processor.tokenizer(text, add_special_tokens=special).input_ids)
            if ids.count(processor.image_token_id) != image_tokens:
                raise ValueError(
                    f"the tokenizer of {self.model} does not know {processor.image_token} as one token: give another "
                    f"folder with {_OPTION}"
                )
            self._prompt_ids[prompt, image_tokens] = ids
        return ids

    def _generate(self, embeddings: Tensor, mask: Tensor, metadata: list[dict[str, Any]], attempt: int) -> Tensor:
        """New tokens, [B, at most max_new_tokens]."""
        from transformers import GenerationConfig, LogitsProcessorList

        decoding = self.decoding.of_attempt(attempt)
        processors = LogitsProcessorList()
        if decoding.temperature:
            seeds = [decoding.seed_of(facts, attempt) for facts in metadata]
            processors.append(_sampled(decoding, seeds, self._network.device))
        config = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,  # the processor samples: what transformers samples depends on the rest of the batch
            use_cache=True,  # the released config.json says no
            eos_token_id=self._end_tokens(),
            pad_token_id=self._pad_token(),
        )
        tokens: Tensor = self._network.generate(
            inputs_embeds=embeddings, attention_mask=mask, generation_config=config, logits_processor=processors
        )
        return tokens

    def _end_tokens(self) -> list[int]:
        configured = self._network.generation_config.eos_token_id
        ends = set(configured if isinstance(configured, list) else [] if configured is None else [configured])
        if self._processor.tokenizer.eos_token_id is not None:
            ends.add(self._processor.tokenizer.eos_token_id)
        return sorted(ends)

    def _pad_token(self) -> int:
        padding = self._processor.tokenizer.pad_token_id
        return int(padding if padding is not None else self._end_tokens()[0])


def _sampled(decoding: Decoding, seeds: Sequence[int], device: torch.device) -> Any:
    """A logits processor after which the largest logit is a sample, each image with a generator of its own.

    The largest of logits plus Gumbel noise is a sample of their softmax (the Gumbel-max trick).
    """
    from transformers import LogitsProcessor, TopPLogitsWarper

    class Sampled(LogitsProcessor):
        def __init__(self) -> None:
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
            self.top_p = TopPLogitsWarper(decoding.top_p) if decoding.top_p < 1 else None

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            scores = scores.float() / decoding.temperature
            if self.top_p is not None:
                scores = self.top_p(input_ids, scores)
            noise = torch.empty_like(scores)
            for row, generator in zip(noise, self.generators, strict=True):
                row.exponential_(generator=generator)
            return scores - noise.log()

    return Sampled()
