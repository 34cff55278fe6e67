"""A captioner behind HTTP: any server that speaks the chat completions of OpenAI, such as vLLM in its own environment.

vLLM pins other versions of torch and transformers than this kit and cannot share its environment; as a server it can.
The server encodes images in its own way (vLLM shows LLaVA-NeXT all tiles of a picture, 1,176 tokens at 256 x 256
pixels), so only the prompts and the decoding are the paper's.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from PIL import Image

from t2ikit.prepare.captions.captioner import Captioner, Decoding, Prompts
from t2ikit.prepare.captions.service import KEPT, Refused, Service

if TYPE_CHECKING:
    import torch

ImageFormat = Literal["png", "jpeg"]


class HTTPCaptioner(Captioner):
    """A model that a server runs.

    Args:
        service: the server and how requests reach it.
        model: name of the model at the server.
        prompts: the questions.
        decoding: how answers are decoded.
        image_format: "png", without loss, or "jpeg" (quality 95), a quarter of the bytes.

    Example:
        >>> captioner = HTTPCaptioner(Service("http://127.0.0.1:8000/v1"), "llava")  # doctest: +SKIP
        >>> captioner.setup(torch.device("cpu"))
        >>> captioner.caption([image], [{"key": "train/n02012849/x.JPEG"}])
        ['A grey crane stands in shallow water.']
    """

    kind = "http"

    def __init__(
        self,
        service: Service,
        model: str,
        prompts: Prompts | None = None,
        decoding: Decoding | None = None,
        image_format: ImageFormat = "png",
    ) -> None:
        super().__init__(prompts or Prompts(), decoding or Decoding())
        if image_format not in get_args(ImageFormat):
            raise ValueError(f"--image-format is one of {', '.join(get_args(ImageFormat))}; got {image_format!r}")
        self.service = service
        self.model = model
        self.source = service.endpoint
        self.image_format = image_format

    def _details(self) -> tuple[Any, ...]:
        return (self.image_format,)

    def setup(self, device: torch.device) -> None:
        """Checks that the server answers and has the model; one that lists no models is not refused.

        Raises:
            ValueError: it does not answer, or has another model; names ``--endpoint`` or ``--model``.
        """
        try:
            listing = self.service.send("models", None, threading.Event())
        except Refused as error:
            if error.status < 400 or error.status in (401, 403):
                raise
            return
        rows = listing.get("data") if isinstance(listing, dict) else None
        names = [str(row["id"]) for row in rows or () if isinstance(row, dict) and "id" in row]
        if names and self.model not in names:
            raise ValueError(f"{self.source} has no model {self.model!r}: --model can be {', '.join(names)}")

    def answers(self, images: list[np.ndarray], metadata: list[dict[str, Any]], attempt: int = 0) -> list[str]:
        """One answer per image, many requests at once.

        Raises:
            ValueError: no answer, a refusal, or an answer that is none; says which option to look at.
        """
        stop = threading.Event()  # set by the first request that fails: none is sent, or sent again, after it
        failures: list[BaseException] = []

        def ask(image: np.ndarray, facts: dict[str, Any]) -> str:
            try:
                return self._ask(image, facts, attempt, stop)
            except BaseException as error:
                failures.append(error)
                stop.set()
                raise

        with ThreadPoolExecutor(self.service.concurrency) as pool:
            try:
                requests = [pool.submit(ask, image, facts) for image, facts in zip(images, metadata, strict=True)]
                wait(requests)
            finally:
                stop.set()  # Ctrl-C, too, sends no more
        if failures:
            raise failures[0]  # the later ones may only say that they were stopped
        return [request.result() for request in requests]

    def _ask(self, image: np.ndarray, metadata: dict[str, Any], attempt: int, stop: threading.Event) -> str:
        decoding = self.decoding.of_attempt(attempt)
        content = [
            {"type": "image_url", "image_url": {"url": self._url(image)}},
            {"type": "text", "text": self.prompts.of(metadata)},
        ]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
        }
        if decoding.temperature:
            body |= {"top_p": decoding.top_p, "seed": decoding.seed_of(metadata, attempt)}
        answer = self.service.send("chat/completions", body, stop)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            text = answer
        if text is None:
            return ""
        if not isinstance(text, str):
            raise ValueError(
                f"{self.source} answers {self.service.shown(json.dumps(answer))}, which is no chat completion: is "
                f"--endpoint that of an OpenAI-compatible server, with its version (.../v1)? {KEPT}"
            )
        return text

    def _url(self, image: np.ndarray) -> str:
        buffer = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        picture.save(buffer, self.image_format, **({"quality": 95} if self.image_format == "jpeg" else {}))
        return f"data:image/{self.image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"
