"""The real Hub client against a server on loopback; each case in a process of its own, with a cache of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import hub_server
from func.scans import hub

FILES = {hub.WEIGHTS_FILE: os.urandom(300_000), hub.ATLAS_FILE: os.urandom(2000)}

# Small chunks, so that a transfer breaks off after some of them; no waiting between the client's attempts.
FETCH = """
import sys, time
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 65536
time.sleep = lambda seconds: None
from func.errors import BabyAIError
from func.scans.hub import find_weights, fetch
try:
    print({call})
except BabyAIError as error:
    sys.exit(f"ERROR {{error}}")
"""


@pytest.fixture
def server():
    with hub_server.serve(hub.HUB_REPO, dict(FILES)) as running:
        yield running


@pytest.fixture
def client(tmp_path):
    """Call `fetch` or `find_weights` in a new process; returns the path it gave, or its sentence."""

    def call(endpoint, expression=f"fetch({hub.WEIGHTS_FILE!r})", **environment):
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf home"), "NO_PROXY": "*"} | environment
        done = subprocess.run(
            [sys.executable, "-c", FETCH.format(call=expression)],
            cwd=hub.REPO_ROOT / "scripts",
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode == 0:
            return done.stdout.strip()
        assert "ERROR" in done.stderr and "Traceback" not in done.stderr, done.stderr
        return done.stderr.split("ERROR ")[1].strip()

    return call


@pytest.fixture
def nobody():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


def content(path):
    with open(path, "rb") as stream:
        return stream.read()


def test_first_use_downloads_into_hf_home_and_the_second_asks_nobody(server, client, tmp_path, nobody):
    first = client(server.endpoint)
    assert first.startswith(str(tmp_path / "hf home")) and content(first) == FILES[hub.WEIGHTS_FILE]
    assert f"GET {hub.WEIGHTS_FILE}" in server.requests
    server.requests.clear()
    assert client(server.endpoint, "find_weights('babyai')") == first
    assert server.requests == []
    assert client(nobody) == client(nobody, HF_HUB_OFFLINE="1") == first


def test_a_broken_transfer_is_resumed_where_it_broke(server, client):
    server.cut_after = [150_000, 100_000]
    assert content(client(server.endpoint)) == FILES[hub.WEIGHTS_FILE]
    ranges = [request for request in server.requests if request.endswith("-")]
    assert len(ranges) == 2, server.requests


def test_a_transfer_that_never_succeeds_is_told_and_leaves_no_file(server, client, tmp_path):
    server.always_cut = True
    told = client(server.endpoint)
    assert "could not be downloaded" in told and "--weights bundled" in told
    assert not list((tmp_path / "hf home").rglob("*.pth")) and not list((tmp_path / "hf home").rglob("*incomplete"))
    server.always_cut = False
    assert content(client(server.endpoint)) == FILES[hub.WEIGHTS_FILE]


def test_a_file_damaged_on_its_way_is_not_used(server, client):
    server.flip = True
    assert "arrived damaged" in client(server.endpoint)


def test_a_damaged_cached_file_is_downloaded_again(server, client, nobody):
    path = client(server.endpoint)
    for damage in (b"", FILES[hub.WEIGHTS_FILE][:1000]):
        with open(path, "wb") as stream:
            stream.write(damage)
        assert client(server.endpoint) == path and content(path) == FILES[hub.WEIGHTS_FILE]
    with open(path, "r+b") as stream:
        stream.write(b"flipped")
    assert "could not be downloaded" in client(nobody)


def test_a_missing_file_is_told(server, client):
    del server.files[hub.ATLAS_FILE]
    told = client(server.endpoint, f"fetch({hub.ATLAS_FILE!r})")
    assert "is not to be found at" in told and "--atlas" in told


def test_a_missing_repository_is_told(server, client):
    server.repo = "some/other"
    assert "not open to you" in client(server.endpoint)


def test_a_revision_may_be_chosen_and_the_commit_is_known(server, client):
    path = client(server.endpoint, BABYAI_HUB_REVISION=hub_server.COMMIT)
    assert content(path) == FILES[hub.WEIGHTS_FILE] and hub.commit_of(Path(path)) == hub_server.COMMIT
    assert client(server.endpoint) == path, "main is at that commit"
    assert "revision v0" in client(server.endpoint, BABYAI_HUB_REVISION="v0")
    assert hub.commit_of(Path("weights/compact.pth")) is None


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_failing_server_is_told(server, client, status):
    server.status = status
    told = client(server.endpoint)
    assert str(status) in told and "--weights bundled" in told


def test_no_server_is_told_at_once(client, nobody):
    told = client(nobody)
    assert nobody in told and "--weights bundled" in told and "\n" not in told


def test_offline_is_told(client, server):
    told = client(server.endpoint, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in told and "--weights bundled" in told
    assert server.requests == []


def test_a_cache_that_cannot_be_written_is_told(client, server, tmp_path):
    (tmp_path / "file").touch()
    told = client(server.endpoint, HF_HOME=str(tmp_path / "file"))
    assert hub.WEIGHTS_FILE in told and "--weights bundled" in told


def test_paths_are_paths(tmp_path):
    (tmp_path / "my weights.pth").touch()
    assert hub.find_weights(tmp_path / "my weights.pth") == tmp_path / "my weights.pth"
    with pytest.raises(hub.BabyAIError, match="no weights file"):
        hub.find_weights(str(tmp_path / "other.pth"))
