"""A URL of a stranger for ``prepare --source``: bytes without end, silence, and a server without parts of files."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from t2ikit import remote
from t2ikit.prepare.sources.files import SourceLost
from t2ikit.prepare.sources.remote import RemoteFiles

CONTENT = bytes(range(256)) * 4


class Strange(BaseHTTPRequestHandler):
    """``/flood`` never ends, ``/silent`` says nothing, ``/whole`` ignores ranges, ``/parts`` serves them."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self) -> None:
        ended: threading.Event = self.server.ended  # type: ignore[attr-defined]
        if "silent" in self.path:
            ended.wait()
            return
        asked = self.headers.get("Range", "")
        content = CONTENT
        if asked and "whole" not in self.path:
            first, last = asked.removeprefix("bytes=").split("-")
            content = CONTENT[int(first) : int(last) + 1]
        self.send_response(206 if asked and "whole" not in self.path else 200)
        if "flood" not in self.path:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content)
            while "flood" in self.path and not ended.is_set():
                self.wfile.write(b"x" * 2**16)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Strange)
    server.daemon_threads = True
    server.ended = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.ended.set()  # type: ignore[attr-defined]
    server.shutdown()


def test_a_flood_ends_at_the_limit(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_AT_ONCE", 2**20)
    files = RemoteFiles(url)
    with pytest.raises(OSError, match="brings more than 1,048,576 bytes"):  # a bad photo: work goes on
        files.read(f"{url}/flood")
    with pytest.raises(SourceLost, match="brings more than 1,048,576 bytes"):
        files.read_part(f"{url}/flood", 0, 100)
    with pytest.raises(SourceLost, match="brings more than 1,048,576 bytes"):
        list(files.entries(f"{url}/flood"))


def test_silence_is_said_and_has_an_end(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "TOTAL", 1.5)
    monkeypatch.setattr(remote, "SAID", 0.4)
    begun = time.monotonic()
    with pytest.raises(SourceLost, match=r"was not complete after 1.5 s"):
        RemoteFiles(url).read(f"{url}/silent")
    assert time.monotonic() - begun < 60
    assert "silent: no answer yet" in capsys.readouterr().err


def test_a_server_without_parts_of_files_gives_no_wrong_photo(url: str) -> None:
    with pytest.raises(SourceLost, match=r"gives 1,024 bytes where 100 are asked for: does it serve parts of files"):
        RemoteFiles(url).read_part(f"{url}/whole", 10, 100)


def test_parts_and_a_file_from_front_to_back(url: str, tmp_path: Path) -> None:
    files = RemoteFiles(url)
    assert files.read_part(f"{url}/parts", 10, 100) == CONTENT[10:110]
    with files.open(f"{url}/parts") as stream:
        assert stream.read(3) == CONTENT[:3]
        assert stream.seek(-4, 2) == len(CONTENT) - 4
        assert stream.read() == CONTENT[-4:]
