"""A data root of a stranger that floods, or says nothing: limits of bytes and seconds, and a message meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from t2ikit import remote
from t2ikit.records.remote import RemoteFolder


class Strange(BaseHTTPRequestHandler):
    """``/flood`` never ends, ``/silent`` says a length and nothing more, ``/drip`` sends a byte now and then."""

    sent = 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        if "flood" not in self.path:
            self.send_header("Content-Length", "1000000")
        self.end_headers()
        try:
            while "silent" in self.path and not self.server.ended.wait(0.05):  # type: ignore[attr-defined]
                pass
            while not self.server.ended.wait(0.1 if "drip" in self.path else 0.001):  # type: ignore[attr-defined]
                block = b"x" * (1 if "drip" in self.path else 2**16)
                self.wfile.write(block)
                type(self).sent += len(block)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteFolder]:
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Strange)
    server.daemon_threads = True
    server.ended = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield RemoteFolder.at(f"http://127.0.0.1:{server.server_port}", tmp_path)
    server.ended.set()  # type: ignore[attr-defined]
    server.shutdown()


def test_a_flood_ends_at_the_size_that_is_known(root: RemoteFolder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="brings more than the 100,000 bytes"):
        root.get("flood", tmp_path / "target", 100_000)
    assert (tmp_path / "target").stat().st_size < 2**24


def test_silence_ends_and_is_said(
    root: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "STALLED", 0.4)
    monkeypatch.setattr(remote, "SAID", 0.2)
    begun = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"no byte for 0.4 s; 5 attempts"):
        root.get("silent", tmp_path / "target")
    assert time.monotonic() - begun < 20
    assert "0 bytes so far, the last 0 s ago" in capsys.readouterr().err


def test_a_drip_has_an_end(root: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TOTAL", 1.5)
    monkeypatch.setattr(remote, "SAID", 0.4)
    begun = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"was not complete after 1.5 s"):
        root.get("drip", tmp_path / "target")
    assert time.monotonic() - begun < 20
