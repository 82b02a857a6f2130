"""A fetched file is whole and right, or not there at all."""

from __future__ import annotations

import functools
import hashlib
import http.server
import pathlib
import threading
import time
from collections.abc import Iterator

import pytest

from nftk_jax.datasets import DataError
from nftk_jax.datasets.download import DownloadError, fetch

BODY = bytes(range(256)) * 1024
_FETCH = functools.partial(fetch, sha256=hashlib.sha256(BODY).hexdigest(), size=len(BODY), timeout=0.3)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "missing":
            self.send_error(404)
            return
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/good/file")
            self.end_headers()
            return
        body = {"wrong": BODY[::-1], "short": BODY[:-9], "long": BODY * 2}.get(kind, BODY)
        self.send_response(200)
        if kind != "unannounced":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            if kind in ("stalled", "interrupted"):
                self.wfile.write(body[:1000])
                self.wfile.flush()
                if kind == "stalled":
                    self.server.stop.wait(5)  # pyright: ignore[reportAttributeAccessIssue]
            elif kind == "slow":
                for position in range(50):
                    self.wfile.write(body[position : position + 1])
                    if self.server.stop.wait(0.05):  # pyright: ignore[reportAttributeAccessIssue]
                        return
            else:
                self.wfile.write(body)
        except OSError:
            pass  # the client has gone, as it should

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def mirror() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.stop = threading.Event()  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.stop.set()  # pyright: ignore[reportAttributeAccessIssue]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["good", "moved", "unannounced"])
def test_a_file_arrives_whole_with_progress(mirror: str, tmp_path: pathlib.Path, kind: str) -> None:
    calls: list[tuple[str, int, int]] = []
    target = tmp_path / "new" / "folder" / "file"
    served = _FETCH([f"{mirror}/{kind}/file"], target, report=lambda *call: calls.append(call))
    assert served == f"{mirror}/{kind}/file"
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert calls[-1] == ("fetching file", len(BODY), len(BODY))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert len(done) > 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "Not Found"),
        ("wrong", "wrong contents: SHA-256"),
        ("short", f"interrupted after {len(BODY) - 9} of {len(BODY)} bytes"),
        ("interrupted", f"interrupted after 1000 of {len(BODY)} bytes"),
        ("long", f"more than the expected {len(BODY)} bytes"),
        ("stalled", "timed out"),
        ("slow", "too slow"),
    ],
)
def test_a_mirror_that_fails_leaves_nothing_and_the_next_is_tried(
    mirror: str, tmp_path: pathlib.Path, kind: str, reason: str
) -> None:
    start = time.monotonic()
    with pytest.raises(DownloadError, match=reason) as caught:
        _FETCH([f"{mirror}/{kind}/file"], tmp_path / "file")
    assert time.monotonic() - start < 3
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert _FETCH([f"{mirror}/{kind}/file", f"{mirror}/good/file"], tmp_path / "file") == f"{mirror}/good/file"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_server_that_is_not_there_is_named_and_leaves_no_folder(tmp_path: pathlib.Path) -> None:
    urls = ["http://127.0.0.1:1/a/file", "http://127.0.0.1:1/b/file"]
    with pytest.raises(
        DownloadError, match=r"file could not be fetched \(.*1/a/file: .*refused; .*1/b/file: .*refused\)"
    ):
        _FETCH(urls, tmp_path / "new" / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_file_already_there_survives_a_failed_fetch(mirror: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(DataError):
        _FETCH([f"{mirror}/wrong/file"], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_target_that_cannot_be_written_is_a_data_error(mirror: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "occupied").write_bytes(b"")
    with pytest.raises(DataError, match="occupied"):
        _FETCH([f"{mirror}/good/file"], tmp_path / "occupied" / "file")


def test_an_interruption_by_the_user_leaves_nothing(mirror: str, tmp_path: pathlib.Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _FETCH([f"{mirror}/good/file"], tmp_path / "file", report=interrupt)
    assert list(tmp_path.iterdir()) == []
