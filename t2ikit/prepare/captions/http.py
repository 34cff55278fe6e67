"""A captioner behind HTTP: any server that speaks the chat completions of OpenAI, such as vLLM in its own environment.

vLLM pins other versions of torch and transformers than this kit and cannot share its environment; as a server it can.
The server encodes images in its own way (vLLM shows LLaVA-NeXT all tiles of a picture, 1,176 tokens at 256 x 256
pixels), so only the prompts and the decoding are the paper's.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.message import Message
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from PIL import Image

from t2ikit.prepare.captions.captioner import Captioner, Decoding, Prompts

if TYPE_CHECKING:
    import torch

ImageFormat = Literal["png", "jpeg"]
FIRST_WAIT = 1.0
"""Seconds before the second try of a request; doubled before every further one, with a little chance in it."""
_SHOWN = 200
_LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
_LONGEST_ASKED = 600.0
_chance = random.Random()  # of its own: waiting leaves the random numbers of the process alone
_GONE_ON = "what is finished is kept: the same command goes on there"


@dataclass(frozen=True)
class Service:
    """How a server is talked to. None of it decides the captions, so work may go on with other values.

    Attributes:
        endpoint: address of the server up to the version, such as http://127.0.0.1:8000/v1.
        api_key_variable: environment variable that holds the API key, if the server wants one; the key is read for
            each request, and written nowhere.
        concurrency: requests sent at the same time.
        timeout: seconds that an answer may take.
        tries: how often a request is sent that fails for a passing reason (429, 5xx, no connection, too slow).
    """

    endpoint: Annotated[str, "URL"] = ""
    api_key_variable: Annotated[str, "VARIABLE"] = "OPENAI_API_KEY"
    concurrency: int = 32
    timeout: float = 300.0
    tries: int = 6

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--endpoint must be like http://127.0.0.1:8000/v1; got {self.endpoint!r}")
        if parts.username is not None or parts.query:
            raise ValueError(
                "--endpoint must hold no user, password or query, since it is written into the captions: put the API "
                "key into an environment variable (--api-key-variable)"
            )
        if self.concurrency < 1 or self.tries < 1:
            raise ValueError(f"--concurrency and --tries must be at least 1; got {self.concurrency} and {self.tries}")
        if self.timeout <= 0:
            raise ValueError(f"--timeout must be above 0 seconds; got {self.timeout}")


class HTTPCaptioner(Captioner):
    """A model that a server runs.

    Args:
        service: where it is and how it is talked to.
        model: name of the model at the server.
        prompts: what it is asked.
        decoding: how answers are drawn.
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
        """Sees that the server is there and has the model. A server that lists no models is believed.

        Raises:
            ValueError: it is not, or has not; names ``--endpoint`` or ``--model``.
        """
        try:
            listing = self._send("models", None, threading.Event())
        except _Refused as error:
            if error.status in (401, 403):
                raise
            return
        rows = listing.get("data") if isinstance(listing, dict) else None
        names = [str(row["id"]) for row in rows or () if isinstance(row, dict) and "id" in row]
        if names and self.model not in names:
            raise ValueError(f"{self.source} has no model {self.model!r}: --model can be {', '.join(names)}")

    def answers(self, images: list[np.ndarray], metadata: list[dict[str, Any]], attempt: int = 0) -> list[str]:
        """One answer an image, many requests at once.

        Raises:
            ValueError: no answer, a refusal, or an answer that is none; says which option to look at.
        """
        over = threading.Event()  # set by the first request that fails: none is sent, or sent again, after it
        failures: list[BaseException] = []

        def ask(image: np.ndarray, own: dict[str, Any]) -> str:
            try:
                return self._ask(image, own, attempt, over)
            except BaseException as error:
                failures.append(error)
                over.set()
                raise

        with ThreadPoolExecutor(self.service.concurrency) as pool:
            try:
                asked = [pool.submit(ask, image, own) for image, own in zip(images, metadata, strict=True)]
                wait(asked)
            finally:
                over.set()  # Ctrl-C, too, sends no more
        if failures:
            raise failures[0]  # the later ones may only say that it was over
        return [one.result() for one in asked]

    def _ask(self, image: np.ndarray, metadata: dict[str, Any], attempt: int, over: threading.Event) -> str:
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
        answer = self._send("chat/completions", body, over)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            text = answer
        if text is None:
            return ""
        if not isinstance(text, str):
            raise ValueError(
                f"{self.source} answers {self._shown(json.dumps(answer))}, which is no chat completion: is --endpoint "
                f"that of an OpenAI-compatible server, with its version (.../v1)? {_GONE_ON}"
            )
        return text

    def _url(self, image: np.ndarray) -> str:
        buffer = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        picture.save(buffer, self.image_format, **({"quality": 95} if self.image_format == "jpeg" else {}))
        return f"data:image/{self.image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def _send(self, path: str, body: dict[str, Any] | None, over: threading.Event) -> Any:
        """Sends a request until it is answered, out of tries, or not wanted any more; the JSON of the answer."""
        service = self.service
        for attempt in range(service.tries):
            if over.is_set():
                raise CancelledError
            try:
                return self._send_once(path, body)
            except _Passing as error:
                failure = error
            if attempt + 1 < service.tries:
                seconds = min(FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * _chance.uniform(0.75, 1.25)
                over.wait(max(seconds, min(failure.asked, _LONGEST_ASKED)))
        raise ValueError(
            f"{self.source} gives no answer after {service.tries} tries ({failure}): see that the server runs and that "
            f"--endpoint is its address, or ask for less at once (--concurrency {service.concurrency}, --timeout "
            f"{service.timeout:g}); {_GONE_ON}"
        )

    def _send_once(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(self.service.api_key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.service.endpoint.rstrip('/')}/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
        )
        try:
            with urllib.request.urlopen(request, timeout=self.service.timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            said = self._shown(error.read().decode(errors="replace"))
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _Passing(f"{error.code} {error.reason} {said}".strip(), _asked_wait(error.headers)) from error
            raise _Refused(self.source, self.service.api_key_variable, error.code, said) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _Passing(str(reason) or type(error).__name__) from error
        try:
            return json.loads(content)
        except ValueError as error:
            raise ValueError(
                f"{self.source} answers {self._shown(content.decode(errors='replace'))}, which is no JSON: is "
                f"--endpoint that of an OpenAI-compatible server, with its version (.../v1)? {_GONE_ON}"
            ) from error

    def _shown(self, text: str) -> str:
        """The beginning of what a server said, without the key, should it repeat it."""
        key = os.environ.get(self.service.api_key_variable)
        text = " ".join((text.replace(key, "...") if key else text).split())
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _Passing(Exception):
    """A failure that may not last."""

    def __init__(self, message: str, asked: float = 0.0) -> None:
        super().__init__(message)
        self.asked = asked


class _Refused(ValueError):
    """A request that the server will not answer, however often it is sent."""

    def __init__(self, source: str, key_variable: str, status: int, said: str) -> None:
        self.status = status
        if status in (401, 403):
            advice = f"set the environment variable {key_variable} to the server's API key (--api-key-variable)"
        elif status == 404:
            advice = "see that --endpoint holds the version (.../v1) and --model is a model of the server"
        else:
            advice = "see that --model is one that takes images, and that --max-new-tokens fits its context"
        super().__init__(f"{source} refuses with {status} {said}: {advice}; {_GONE_ON}")


def _asked_wait(headers: Message | None) -> float:
    """Seconds that a server asks to wait (Retry-After), 0 where it does not say."""
    try:
        return max(0.0, float((headers.get("Retry-After") if headers else None) or 0))
    except ValueError:
        return 0.0
