"""A server that speaks the chat completions of OpenAI: requests with tries, and limits on time, size and redirects.

Why not huggingface_hub's InferenceClient (tried with 2.4): its HTTP client is one for the whole process, follows
redirects and limits neither bytes nor seconds of an answer; without a key it sends the user's Hub token to any server.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from email.message import Message
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any

from t2ikit.files import parse_json

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FIRST_WAIT = 1.0
"""Seconds before the second try of a request; doubled before every further one, with a little chance in it."""
MOST_BYTES = 2**24
"""Bytes of the longest answer that is read; a longer one cannot be a caption."""

KEPT = "what is finished is kept: give the same command again to continue"

_SHOWN = 200  # characters of an answer in a message
_LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
_LONGEST_ASKED = 600.0
_chance = random.Random()  # waiting leaves the random numbers of the process alone


@dataclass(frozen=True)
class Service:
    """How requests reach a server. None of this decides the captions: work may continue with other values.

    Attributes:
        endpoint: address of the server up to the version, such as http://127.0.0.1:8000/v1.
        api_key_variable: environment variable that holds the API key, if the server wants one; the key is read for
            each request, and written nowhere.
        concurrency: requests sent at the same time.
        timeout: seconds that an answer may take in all, from the connection to the last byte; each try has as many.
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

    def send(self, path: str, body: dict[str, Any] | None, stop: threading.Event) -> Any:
        """Sends a request, again after a passing failure, until ``stop`` is set; returns the JSON of the answer.

        Raises:
            CancelledError: ``stop`` was set.
            Refused: the server will not answer this request.
            ValueError: no answer after all tries, or one that is too long or no JSON.
        """
        for attempt in range(self.tries):
            if stop.is_set():
                raise CancelledError
            try:
                return self._send_once(path, body)
            except _Passing as error:
                failure = error
            if attempt + 1 < self.tries:
                seconds = min(FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * _chance.uniform(0.75, 1.25)
                stop.wait(max(seconds, min(failure.asked, _LONGEST_ASKED)))
        raise ValueError(
            f"{self.endpoint} gives no answer after {self.tries} tries ({failure}): see that the server runs and that "
            f"--endpoint is its address, or ask for less at once (--concurrency {self.concurrency}, --timeout "
            f"{self.timeout:g}); {KEPT}"
        )

    def _send_once(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(self.api_key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.endpoint.rstrip('/')}/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
        )
        try:
            try:
                response = _opener().open(request, timeout=self.timeout)
            except urllib.error.HTTPError as error:  # is a response, too
                response = error
            with response:
                content = self._content(response)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _Passing(str(reason) or type(error).__name__) from error
        status, text = int(response.status), self.shown(content.decode(errors="replace"))
        if status in (408, 425, 429) or status >= 500:
            raise _Passing(f"{status} {response.reason} {text}".strip(), _asked_wait(response.headers))
        if 300 <= status < 400:
            text = f"and redirects to {response.headers.get('Location')}"
        if status >= 300:
            raise Refused(self.endpoint, self.api_key_variable, status, text)
        try:
            return parse_json(content)
        except ValueError as error:
            raise ValueError(
                f"{self.endpoint} answers {text}, which is no JSON: is --endpoint that of an OpenAI-compatible server, "
                f"with its version (.../v1)? {KEPT}"
            ) from error

    def _content(self, response: Any) -> bytes:
        """The bytes of an answer, within the limit of size."""
        content = bytearray()
        while block := response.read1(2**16):
            content += block
            if len(content) > MOST_BYTES:
                raise ValueError(
                    f"{self.endpoint} answers with more than {MOST_BYTES:,} bytes: is --endpoint that of an "
                    f"OpenAI-compatible server? If so, ask for shorter answers with --max-new-tokens; {KEPT}"
                )
        if response.length:  # bytes that were announced and have not come
            raise http.client.IncompleteRead(bytes(content), response.length)
        return bytes(content)

    def shown(self, text: str) -> str:
        """The beginning of an answer, for a message; without the API key, which a server may repeat."""
        key = os.environ.get(self.api_key_variable)
        text = " ".join((text.replace(key, "...") if key else text).split())
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would send the API key to wherever it leads."""

    def redirect_request(self, *details: Any) -> None:
        """None stands for an error with the status of the redirect."""


class _Limited(http.client.HTTPConnection):
    """A connection with one deadline for everything; a timeout of a socket begins anew with every byte that comes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self.timeout is not None
        self._limit = self.timeout
        self._deadline = time.monotonic() + self._limit
        self.response_class = partial(_Answer, limited=self.limited)  # type: ignore[assignment]

    def connect(self) -> None:
        super().connect()
        self.limited(self.sock)  # before the handshake of TLS, and before the request is sent

    def limited(self, connected: socket.socket) -> None:
        """Lowers the timeout of a socket to the seconds that are left.

        Raises:
            TimeoutError: there are none.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"the answer was not complete after --timeout {self._limit:g} seconds")
        connected.settimeout(left)


class _LimitedTLS(http.client.HTTPSConnection, _Limited):
    """The same with TLS; ``HTTPSConnection.connect`` calls that of ``_Limited`` before the handshake."""


class _Answer(http.client.HTTPResponse):
    """An answer that looks at the deadline before it waits for bytes: of its head, its body, or a chunk's size."""

    def __init__(self, sock: socket.socket, *args: Any, limited: Callable[[socket.socket], None], **options: Any):
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_LimitedStream(self.fp, sock, limited))


class _LimitedStream(io.RawIOBase):
    def __init__(self, stream: Any, sock: socket.socket, limited: Callable[[socket.socket], None]) -> None:
        self._stream, self._socket, self._limited = stream, sock, limited

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._limited(self._socket)
        try:
            count: int | None = self._stream.raw.readinto(buffer)
        except TimeoutError:
            self._limited(self._socket)  # says which limit
            raise
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class _HTTP(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Limited, request)


class _HTTPS(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_LimitedTLS, request)


@cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirect, _HTTP, _HTTPS)


class _Passing(Exception):
    """A failure that may not last."""

    def __init__(self, message: str, asked: float = 0.0) -> None:
        super().__init__(message)
        self.asked = asked


class Refused(ValueError):
    """A request that the server will not answer, however often it is sent."""

    def __init__(self, source: str, key_variable: str, status: int, text: str) -> None:
        self.status = status
        if status in (401, 403):
            advice = f"set the environment variable {key_variable} to the server's API key (--api-key-variable)"
        elif status < 400:
            advice = "no redirect is followed; give that address as --endpoint if it may have the API key"
        elif status == 404:
            advice = "see that --endpoint holds the version (.../v1) and --model is a model of the server"
        else:
            advice = "see that --model is one that takes images, and that --max-new-tokens fits its context"
        super().__init__(f"{source} refuses with {status} {text}: {advice}; {KEPT}")


def _asked_wait(headers: Message | None) -> float:
    """Seconds that a server asks to wait (Retry-After), 0 where it does not say."""
    try:
        return max(0.0, float((headers.get("Retry-After") if headers else None) or 0))
    except ValueError:
        return 0.0
