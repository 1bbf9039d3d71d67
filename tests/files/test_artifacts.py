"""Downloads from a local server, caches, and checks that a folder is writable."""

import fcntl
import hashlib
import http.server
import os
import socket
import threading

import numpy as np
import pytest

from rome_jax.files import downloads
from rome_jax.files.artifacts import cache_directory, trim_directory
from rome_jax.files.downloads import DownloadError, download
from rome_jax.files.places import check_writable

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /file; other paths ignore Range, omit the length, cut the content or do not exist."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        wanted = self.headers.get("Range")
        begin = int(wanted[6:-1]) if wanted and "no-range" not in self.path else 0
        if self.path == "/absent":
            self.send_error(404)
            return
        if begin >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        body = CONTENT[begin:]
        if "no-length" not in self.path:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if "cut" in self.path else body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(server, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server.asked.clear()


@pytest.mark.parametrize("path", ["/file", "/no-length"])
def test_a_file_is_fetched_whole(server, tmp_path, path):
    target = tmp_path / "new" / "file.bin"
    assert download(server.url + path, target, size=len(CONTENT), sha256=SHA256) == target
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["file.bin"]
    # The file exists, so the server is not asked again.
    download(server.url + path, target, size=len(CONTENT), sha256=SHA256)
    assert len(server.asked) == 1


def test_an_interrupted_download_resumes(server, tmp_path, capfd):
    target = tmp_path / "file.bin"
    with pytest.raises(DownloadError, match=r"stopped after 1500000 of 3000000 bytes: run the"):
        download(f"{server.url}/cut", target)
    assert not target.exists()
    download(f"{server.url}/file", target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked[1] == ("/file", "bytes=1500000-")
    assert "file.bin" in capfd.readouterr().err  # the bar


def test_a_server_without_ranges_sends_the_whole_file_again(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"old" * 1000)
    download(f"{server.url}/no-range", tmp_path / "file.bin", sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_partial_file_as_long_as_the_file_is_replaced(server, tmp_path, extra):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + extra)
    download(f"{server.url}/file", tmp_path / "file.bin", sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_complete_part_of_known_size_is_not_fetched_again(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    download(f"{server.url}/file", tmp_path / "file.bin", size=len(CONTENT), sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == []


def test_the_progress_bar_can_be_turned_off(server, tmp_path, capfd):
    download(f"{server.url}/file", tmp_path / "file.bin", progress=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("path", "expected", "message"),
    [
        ("/absent", {}, "HTTP 404"),
        ("/file", {"size": 7}, "has 3000000 bytes instead of 7"),
        ("/no-length", {"size": 7}, "has 3000000 bytes instead of 7"),
        ("/file", {"sha256": "0" * 64}, "has SHA-256 .* instead of 0000"),
    ],
)
def test_a_wrong_file_is_an_error_and_does_not_stay(server, tmp_path, path, expected, message):
    with pytest.raises(DownloadError, match=message):
        download(server.url + path, tmp_path / "file.bin", **expected)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_from_an_earlier_download_is_an_error_and_stays(server, tmp_path):
    target = tmp_path / "file.bin"
    target.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="has 4 bytes instead of 3000000: remove it"):
        download(f"{server.url}/file", target, size=len(CONTENT))
    assert target.read_bytes() == b"mine"


def test_offline_is_one_sentence_with_a_command(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # no server listens there
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/stats.npz"
        with pytest.raises(DownloadError) as caught:
            download(url, tmp_path / "stats.npz")
    message = str(caught.value)
    assert f"`curl -L -C - -o stats.npz {url}`" in message
    assert str(tmp_path / "stats.npz") in message and "\n" not in message


def test_silence_is_an_error_too(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(DownloadError, match=r"cannot be reached \(.*timed out"):
            download(url, tmp_path / "file")


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ROME_JAX_CACHE", raising=False)
    assert cache_directory() == tmp_path / "rome_jax"
    monkeypatch.setenv("ROME_JAX_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"


def test_a_cache_is_trimmed_from_its_oldest_files(tmp_path):
    for number in range(4):
        path = tmp_path / str(number)
        path.write_bytes(b"x" * 10)
        os.utime(path, (1000 + number, 1000 + number))
    trim_directory(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    trim_directory(tmp_path / "absent", 0)


def test_places_are_checked_before_they_are_made(tmp_path):
    assert check_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"--output_dir=.*file is a file: give a folder"):
        check_writable(tmp_path / "file" / "b", "--output_dir")
    if os.path.exists("/proc"):  # where even root cannot write
        with pytest.raises(PermissionError, match=r"--output_dir=.*/proc is not writable: give"):
            check_writable("/proc/x", "--output_dir")


def test_a_download_in_progress_is_not_joined(server, tmp_path):
    path = tmp_path / "file.bin"
    with open(tmp_path / "file.bin.part", "wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match=r"another process is downloading .*: wait for it"):
            download(f"{server.url}/file", path, progress=False)
    assert download(f"{server.url}/file", path, progress=False).read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_download_leaves_no_empty_file(server, tmp_path):
    with pytest.raises(DownloadError, match="HTTP 404"):
        download(f"{server.url}/absent", tmp_path / "file.bin", progress=False)
    assert not list(tmp_path.iterdir())
