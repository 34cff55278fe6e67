"""The captioner behind HTTP, against a real server on this machine that fails in many ways."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2ikit.cli import main
from t2ikit.prepare.captions import from_model as captions_model
from t2ikit.prepare.captions import service as services
from t2ikit.prepare.captions.caption_file import CaptionSet
from t2ikit.prepare.captions.captioner import CUTMIX_PROMPT, PROMPT, Decoding
from t2ikit.prepare.captions.http import HTTPCaptioner
from t2ikit.prepare.captions.service import Service
from t2ikit.prepare.images import prepare_images
from t2ikit.records.record_set import RecordSet

CPU = torch.device("cpu")
KEY = "sk-very-secret"
Reply = tuple[int, Any, dict[str, str]]


def completion(text: str | None) -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


class Server(ThreadingHTTPServer):
    """Answers as ``reply(body, number of the request)`` says; notes what came and how many at once."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most = 0
        self.block, self.pause, self.missing = 2**20, 0.0, 0  # bytes and seconds between them; bytes that never come
        self.models: Reply = (200, {"object": "list", "data": [{"id": "tiny"}, {"id": "large"}]}, {})
        self.reply: Callable[[dict[str, Any], int], Reply] = lambda body, number: completion("A dog.")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        self.send(self.server.models if self.path == "/v1/models" else (404, "no", {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.headers.append(dict(self.headers))
            number = len(self.server.requests)
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
        try:
            reply = self.server.reply(body, number) if self.path == "/v1/chat/completions" else (404, "no", {})
        finally:
            with self.server.lock:
                self.server.under_way -= 1
        if reply[0] == 0:  # hang up
            self.close_connection = True
            self.connection.close()
            return
        with suppress(BrokenPipeError, ConnectionResetError):  # the client may have enough
            self.send(reply)

    def send(self, reply: Reply) -> None:
        status, content, headers = reply
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) + self.server.missing))
        self.end_headers()
        for start in range(0, len(data), self.server.block):
            self.wfile.write(data[start : start + self.server.block])
            time.sleep(self.server.pause)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(services, "FIRST_WAIT", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def ask(server: Server, **options: Any) -> HTTPCaptioner:
    own = {"timeout": 60.0, "tries": 4, **options.pop("service", {})}
    return HTTPCaptioner(Service(server.endpoint, **own), options.pop("model", "tiny"), **options)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 8, 8), dtype=np.uint8)


def shown(body: dict[str, Any]) -> tuple[np.ndarray, str, str]:
    """Image, its type and the question of a request."""
    (message,) = body["messages"]
    url = next(part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url")
    text = next(part["text"] for part in message["content"] if part["type"] == "text")
    head, _, data = url.partition(",")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).transpose(2, 0, 1)
    return pixels, head, text


def keys(count: int) -> list[dict[str, Any]]:
    return [{"key": f"k{number}"} for number in range(count)]


def test_a_request_holds_image_prompt_and_decoding(server: Server) -> None:
    captioner = ask(server)
    captioner.setup(CPU)
    metadata = [{"key": "a"}, {"key": "b", "setting": "cm4", "rectangle": [0, 0, 4, 4]}]
    assert captioner.caption([image(0), image(1)], metadata) == ["A dog."] * 2
    by_question = {shown(body)[2]: body for body in server.requests}
    assert set(by_question) == {PROMPT, CUTMIX_PROMPT}
    for question, seed in ((PROMPT, 0), (CUTMIX_PROMPT, 1)):
        body = by_question[question]
        pixels, head, _ = shown(body)
        assert np.array_equal(pixels, image(seed)) and head == "data:image/png;base64"
        assert {name: body[name] for name in body if name != "messages"} == {
            "model": "tiny",
            "max_tokens": 200,
            "temperature": 0.0,
        }
    assert all("Authorization" not in headers for headers in server.headers)
    assert captioner.reference is None and captioner.source == server.endpoint


def test_jpeg_and_sampled_answers(server: Server) -> None:
    captioner = ask(server, image_format="jpeg", decoding=Decoding(50, temperature=0.7, top_p=0.9, seed=4))
    captioner.caption([image(0)], keys(1))
    (body,) = server.requests
    assert shown(body)[1] == "data:image/jpeg;base64" and shown(body)[0].shape == (3, 8, 8)
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (50, 0.7, 0.9)
    assert body["seed"] == captioner.decoding.seed_of({"key": "k0"}, 0)


def test_answers_are_in_order_and_requests_at_once(server: Server) -> None:
    images = [image(number) for number in range(24)]
    numbers = {one.tobytes(): number for number, one in enumerate(images)}
    everyone = threading.Barrier(6)

    def reply(body: dict[str, Any], number: int) -> Reply:
        everyone.wait(60)  # passes when six requests are under way, and not before
        return completion(f"Image {numbers[shown(body)[0].astype(np.uint8).tobytes()]}.")

    server.reply = reply
    captioner = ask(server, service={"concurrency": 6})
    assert captioner.caption(images, keys(24)) == [f"Image {number}." for number in range(24)]
    assert server.most == 6


@pytest.mark.parametrize("failure", [(429, "slow down", {}), (500, "oh", {}), (503, "", {}), (0, "", {})])
def test_passing_failures_are_tried_again(server: Server, failure: Reply) -> None:
    server.reply = lambda body, number: failure if number <= 3 else completion("A cat.")
    assert ask(server).caption([image(0)], keys(1)) == ["A cat."]
    assert len(server.requests) == 4
    server.reply = lambda body, number: failure
    with pytest.raises(ValueError, match=r"no answer after 2 tries.*--endpoint.*give the same command again"):
        ask(server, service={"tries": 2}).caption([image(0)], keys(1))


def test_a_server_may_ask_to_wait(server: Server) -> None:
    server.reply = lambda body, number: (
        (429, "", {"Retry-After": "0.3"})
        if number == 1
        else (503, "", {"Retry-After": "soon"})
        if number == 2
        else completion("A cat.")
    )
    begun = time.monotonic()
    assert ask(server).caption([image(0)], keys(1)) == ["A cat."]
    assert time.monotonic() - begun >= 0.3


def test_a_slow_answer_is_given_up(server: Server) -> None:
    answered = threading.Event()

    def reply(body: dict[str, Any], number: int) -> Reply:
        if number == 1:
            answered.wait(60)  # longer than the client waits
        return completion("A cat.")

    server.reply = reply
    assert ask(server, service={"timeout": 0.5}).caption([image(0)], keys(1)) == ["A cat."]
    assert len(server.requests) >= 2
    answered.set()


def test_an_answer_that_trickles_in_is_given_up_after_the_timeout(server: Server) -> None:
    """Every byte comes in time, all of them do not."""
    server.block, server.pause = 1, 0.05
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer after 2 tries \(the answer was not complete after --timeout 0.3"):
        ask(server, service={"timeout": 0.3, "tries": 2}).caption([image(0)], keys(1))
    assert 0.6 <= time.monotonic() - begun < 3


def test_so_is_the_text_of_an_error(server: Server) -> None:
    server.block, server.pause = 1, 0.05
    server.reply = lambda body, number: (400, "no images here", {})
    with pytest.raises(ValueError, match=r"no answer after 1 tries \(the answer was not complete after --timeout 0.3"):
        ask(server, service={"timeout": 0.3, "tries": 1}).caption([image(0)], keys(1))


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [bytes([byte]) for byte in HEAD + b"X-Long: " + b"x" * 200],
        [b"HTTP/1.1 100 Continue\r\n\r\n"] * 200,
        [CHUNKED, *[b"0"] * 200],
        [CHUNKED + b"1\r\n{\r\n0\r\n", *[b"X-Trailer: x\r\n"] * 200],
        [b"", b"", b"", b"", HEAD + b"Content-Length: 2\r\n\r\n", b"", b"", b"", b"", b"", b"", b"", b"", b"{}"],
    ],
    ids=["header", "continue", "chunk size", "trailer", "late header, late body"],
)
def test_no_part_of_an_answer_gets_around_the_timeout(pieces: list[bytes], server: Server) -> None:
    """Something comes every 0.05 seconds, or one half of the answer in time and the other one too late."""
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def serve() -> None:
            for _ in range(2):
                connection, _ = slow.accept()
                with connection, suppress(OSError):  # the client has hung up
                    connection.recv(2**16)
                    for piece in pieces:
                        time.sleep(0.05)
                        connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        service = Service(f"http://127.0.0.1:{slow.getsockname()[1]}/v1", timeout=0.3, tries=2)
        begun = time.monotonic()
        with pytest.raises(ValueError, match=r"after 2 tries \(the answer was not complete after --timeout 0.3 sec"):
            service.send("chat/completions", {}, threading.Event())
        assert 0.6 <= time.monotonic() - begun < 1.5
        thread.join()


def test_an_answer_that_is_cut_short_is_asked_for_again(server: Server) -> None:
    def reply(body: dict[str, Any], number: int) -> Reply:
        server.missing = 7 if number == 1 else 0
        return completion("A cat.")

    server.reply = reply
    assert ask(server).caption([image(0)], keys(1)) == ["A cat."]
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_huge_answer_is_not_read(server: Server, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MOST_BYTES", 1000)
    server.reply = lambda body, number: (status, "x" * 10**7, {})
    with pytest.raises(ValueError, match=r"more than 1,000 bytes.*--endpoint.*--max-new-tokens"):
        ask(server).caption([image(0)], keys(1))
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(server: Server, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API key goes to the endpoint and to nobody else, not even to another path there."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    elsewhere = f"{server.endpoint}/elsewhere"
    server.models = (status, "", {"Location": elsewhere})
    server.reply = lambda body, number: (status, "", {"Location": elsewhere})
    refused = f"refuses with {status} and redirects to {elsewhere}: no redirect is followed.*--endpoint"
    with pytest.raises(ValueError, match=refused):
        ask(server).caption([image(0)], keys(1))
    with pytest.raises(ValueError, match=refused):
        ask(server).setup(CPU)
    assert len(server.headers) == 2


@pytest.mark.parametrize("empty", [None, "", " \n"])
def test_an_empty_answer_is_asked_for_once_more_with_sampling(server: Server, empty: str | None) -> None:
    server.reply = lambda body, number: completion(empty if number == 1 else "A cat.")
    assert ask(server).caption([image(0)], keys(1)) == ["A cat."]
    first, second = server.requests
    assert first["temperature"] == 0 and "seed" not in first
    assert second["temperature"] == 1 and "seed" in second
    server.reply = lambda body, number: completion(empty)
    assert ask(server).caption([image(0)], keys(1)) == [""]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((400, "this model takes no images", {}), "refuses with 400 this model takes no images.*--model"),
        ((404, "no such model", {}), "refuses with 404.*/v1"),
        ((401, "who is there?", {}), "refuses with 401.*OPENAI_API_KEY.*--api-key-variable"),
        ((200, "<html>Welcome to nginx", {}), "<html>Welcome to nginx, which is no JSON.*--endpoint"),
        ((200, {"detail": "fine"}, {}), "which is no chat completion.*--endpoint"),
        ((200, {"choices": []}, {}), "which is no chat completion"),
        ((200, [1], {}), "which is no chat completion"),
    ],
)
def test_refusals_and_nonsense_end_at_once(server: Server, reply: Reply, message: str) -> None:
    server.reply = lambda body, number: reply
    with pytest.raises(ValueError, match=message):
        ask(server, service={"concurrency": 1}).caption([image(k) for k in range(5)], keys(5))
    assert len(server.requests) == 1


def test_no_try_follows_another_request_s_refusal(server: Server) -> None:
    """One request is refused while the others wait for their next try, which would be 30 seconds away."""
    others = threading.Semaphore(0)

    def reply(body: dict[str, Any], number: int) -> Reply:
        if shown(body)[0][0, 0, 0] != image(0)[0, 0, 0]:
            others.release()
            return 503, "busy", {"Retry-After": "30"}
        for _ in range(3):
            assert others.acquire(timeout=60)
        return 400, "no images", {}

    server.reply = reply
    begun = time.monotonic()
    with pytest.raises(ValueError, match="refuses with 400 no images"):
        ask(server, service={"concurrency": 4, "timeout": 100.0}).caption([image(k) for k in range(9)], keys(9))
    assert len(server.requests) == 4 and time.monotonic() - begun < 25


def test_setup_sees_the_server(server: Server) -> None:
    with pytest.raises(ValueError, match="has no model 'huge': --model can be tiny, large"):
        ask(server, model="huge").setup(CPU)
    server.models = (404, "no listing here", {})
    ask(server, model="huge").setup(CPU)
    server.models = (403, "key, please", {})
    with pytest.raises(ValueError, match="403 key, please: set the environment variable OPENAI_API_KEY"):
        ask(server).setup(CPU)
    address = server.endpoint
    server.shutdown()
    server.server_close()
    gone = HTTPCaptioner(Service(address, tries=2), "tiny")
    with pytest.raises(
        ValueError, match=f"{address} gives no answer after 2 tries .*refused.*see that the server runs"
    ):
        gone.setup(CPU)


def test_the_key_is_sent_and_shown_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    captioner = ask(server, service={"api_key_variable": "MY_KEY"})
    captioner.setup(CPU)
    captioner.caption([image(0)], keys(1))
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 2
    assert KEY not in repr(captioner.service) + repr(vars(captioner)) + captioner.identity
    server.reply = lambda body, number: (401, f"the key {KEY} is wrong", {})
    with pytest.raises(ValueError, match="401 the key ... is wrong"):
        captioner.caption([image(0)], keys(1))
    with pytest.raises(ValueError, match="no user, password"):
        Service("http://me:secret@127.0.0.1/v1")


def test_identity_does_not_follow_the_address(server: Server) -> None:
    captioner = ask(server)
    elsewhere = HTTPCaptioner(Service("https://example.org/v1", concurrency=2), "tiny")
    assert captioner.identity == elsewhere.identity
    assert captioner.identity != ask(server, model="large").identity
    assert captioner.identity != ask(server, image_format="jpeg").identity


def test_the_command_goes_on_when_the_server_is_back(
    server: Server, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "data"
    prepare_images(str(photos), root, 16)
    monkeypatch.setattr(captions_model, "SHARD", 4)
    server.reply = lambda body, number: (
        (500, "out of memory", {}) if number > 9 else completion(f"Mean {shown(body)[0].mean():.3f}. And")
    )
    command = ["prepare", "captions", "--out", str(root), "--kind", "http", "--endpoint", server.endpoint]
    options = ["--model", "tiny", "--concurrency", "2", "--batch-size", "4", "--tries", "1", "--sets", "train"]
    assert main([*command, *options]) == 2
    said = capsys.readouterr().err
    assert "after 1 tries (500 Internal Server Error out of memory)" in said and "give the same command again" in said
    first, done = len(server.requests), {shown(body)[0].tobytes() for body in server.requests[:8]}
    server.reply = lambda body, number: completion(f"Mean {shown(body)[0].mean():.3f}. And")
    assert main([*command, *options]) == 0
    again = [shown(body)[0].tobytes() for body in server.requests[first:]]
    assert len(again) == 4 and not done & set(again)  # two shards of four lay on the disk
    captions = CaptionSet(root, "train")
    for (_, texts), record in zip(captions, RecordSet(root / "images" / "train"), strict=True):
        assert texts == (f"Mean {record.image.mean():.3f}.",)
    (column,) = captions.header.columns
    assert (column.kind, column.model, column.source, column.captioner) == ("http", "tiny", server.endpoint, None)


def test_bad_options() -> None:
    for endpoint in ("127.0.0.1:8000", "ftp://host/v1", "http://", "http://host/v1?key=1"):
        with pytest.raises(ValueError, match="--endpoint"):
            Service(endpoint)
    with pytest.raises(ValueError, match="--concurrency and --tries"):
        Service("http://host/v1", concurrency=0)
    with pytest.raises(ValueError, match="--timeout"):
        Service("http://host/v1", timeout=0)
    with pytest.raises(ValueError, match="--image-format is one of png, jpeg"):
        HTTPCaptioner(Service("http://host/v1"), "tiny", image_format="gif")
