"""Datasets behind s3:// and http://, from servers on this machine: every format, changes, and whatever can be wrong with a server."""

import functools
import http.server
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import boto3
import fsspec
import numpy as np
import pytest
import requests
import torch
from fsspec.registry import _registry
from moto.server import ThreadedMotoServer

from mimicvideo.data import remote
from mimicvideo.data.episodes import Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.modules import ClipData
from mimicvideo.data.open import open_episodes
from mimicvideo.data.remote import fetched, files_below, local_folder
from tests.every_format import FORMATS, lerobot_v21

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def s3(server: str) -> Iterator[fsspec.AbstractFileSystem]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": server}.items():
            patch.setenv(name, value)
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        yield system
    forget()


def forget() -> None:
    """The next use of s3:// looks at the environment again."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL at which a plain web server shows it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = tmp_path / "web"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def compare(here: Episodes, there: Episodes) -> None:
    assert here.fingerprint == there.fingerprint
    for one, other in zip(here.episodes, there.episodes, strict=True):
        assert one.instructions == other.instructions
        np.testing.assert_array_equal(here.frames(one, [0, 3]), there.frames(other, [0, 3]))
        np.testing.assert_array_equal(here.actions(one), there.actions(other))
    assert len({there.picture_key(episode) for episode in there.episodes}) == len(there.episodes)


@pytest.mark.parametrize("name", ["lerobot_v3.0", "lerobot_v2.1_images", "zarr_v2", "zarr_zips", "hdf5", "rlds", "videos"])
def test_every_format_from_s3(tmp_path: Path, s3: fsspec.AbstractFileSystem, name: str) -> None:
    spec = FORMATS[name][0](tmp_path / "local")
    s3.put(f"{tmp_path / 'local'}/", f"bucket/{name}/", recursive=True)
    here, there = open_episodes(tmp_path / "local", spec=spec), open_episodes(f"s3://bucket/{name}", spec=spec)
    compare(here, there)


@pytest.mark.parametrize("name", ["lerobot_v2.1", "zarr_v3", "hdf5", "rlds"])
def test_every_format_from_a_web_server(web: tuple[Path, str], name: str) -> None:
    spec = FORMATS[name][0](web[0] / "data")
    compare(open_episodes(web[0] / "data", spec=spec), open_episodes(f"{web[1]}/data", spec=spec))


def test_data_workers_read_from_s3(tmp_path: Path, s3: fsspec.AbstractFileSystem) -> None:
    lerobot_v21(tmp_path / "local")
    s3.put(f"{tmp_path / 'local'}/", "bucket/workers/", recursive=True)
    options = {"observed": 5, "future": 4, "batch_size": 4, "validation_fraction": 0.0}
    data = ClipData(root="s3://bucket/workers", num_workers=2, ram_cache_gb=0.0, **options)
    local = ClipData(root=str(tmp_path / "local"), **options)
    for one, other in zip(islice(iter(data.train_dataloader()), 4), islice(iter(local.train_dataloader()), 4), strict=True):
        assert torch.equal(one["video"], other["video"])


def test_what_changes_on_s3_is_noticed(s3: fsspec.AbstractFileSystem) -> None:
    s3.pipe({"bucket/changing/a.txt": b"old", "bucket/changing/b.mp4": b"video", "bucket/changing/c.txt": b"gone soon"})
    folder = local_folder("s3://bucket/changing")
    s3.pipe("bucket/changing/b.mp4", b"other")  # of the same size, and not fetched yet
    with pytest.raises(DatasetError, match=r"changing/b.mp4 cannot be fetched .* it changed since the dataset was opened"):
        fetched(folder / "b.mp4")
    assert not (folder / "b.mp4").exists()
    s3.pipe("bucket/changing/a.txt", b"new")
    s3.rm("bucket/changing/c.txt")
    assert local_folder("s3://bucket/changing") == folder
    assert (folder / "a.txt").read_bytes() == b"new" and not (folder / "c.txt").exists()
    assert fetched(folder / "b.mp4").read_bytes() == b"other"


def test_names_on_s3(s3: fsspec.AbstractFileSystem, server: str) -> None:
    client = boto3.client("s3", endpoint_url=server, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1")
    for key in ("names/", "names/in/", "names/in/a?b #1 100%20 ä.txt"):  # consoles leave empty objects where a folder is made
        client.put_object(Bucket="bucket", Key=key, Body=b"1" if key.endswith("txt") else b"")
    folder = local_folder("s3://bucket/names")
    assert files_below(folder) == ["in/a?b #1 100%20 ä.txt"] and (folder / "in/a?b #1 100%20 ä.txt").read_bytes() == b"1"


def test_names_and_changes_on_a_web_server(web: tuple[Path, str]) -> None:
    place = web[0] / "data/in ner"
    place.mkdir(parents=True)
    (place / "ä #1 100%.txt").write_text("old")
    os.utime(place / "ä #1 100%.txt", (1e9, 1e9))
    folder = local_folder(f"{web[1]}/data")
    assert (folder / "in ner/ä #1 100%.txt").read_text() == "old"
    (place / "ä #1 100%.txt").write_text("new")
    assert local_folder(f"{web[1]}/data") == folder
    assert (folder / "in ner/ä #1 100%.txt").read_text() == "new"


@pytest.mark.parametrize(
    ("url", "environment", "message"),
    [
        ("s3://nosuchbucket/data", {}, "no dataset at s3://nosuchbucket/data.*The specified bucket does not exist"),
        ("s3://bucket/nothing", {}, "no dataset at s3://bucket/nothing: the folder is missing or empty"),
        ("s3://bucket/file.txt", {}, "s3://bucket/file.txt is a file: give the folder of the dataset"),
        ("s3://bucket/data", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "check the network and the address .*Could not connect"),
        ("s3://bucket/data", {"AWS_ENDPOINT_URL": "http://no.such.invalid"}, "check the network and the address .*Could not connect"),
        ("http://127.0.0.1:9/data", {}, "http://127.0.0.1:9/data cannot be listed: check the network and the address"),
    ],
)
def test_what_is_wrong_is_said_at_once(
    s3: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str], message: str
) -> None:
    s3.pipe("bucket/file.txt", b"1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    forget()
    with pytest.raises(DatasetError, match=message):  # else it would say that nothing answered in time
        open_episodes(url)
    forget()


def test_wrong_credentials(s3: fsspec.AbstractFileSystem, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.pipe("bucket/data/file.txt", b"1")
    requests.post(f"{server}/moto-api/reset-auth", data="0", timeout=10)
    try:
        with pytest.raises(DatasetError, match="check the credentials and what they allow .PermissionError"):
            open_episodes("s3://bucket/data")
    finally:
        requests.post(f"{server}/moto-api/reset-auth", data="inf", timeout=10)
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "HOME"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget()
    with pytest.raises(DatasetError, match="check the credentials .*NoCredentialsError"):
        open_episodes("s3://bucket/data")
    forget()


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_server_that_says_nothing(s3: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(remote, "ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as patch:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        patch.setenv("AWS_ENDPOINT_URL", address)
        forget()
        start = time.monotonic()
        with pytest.raises(DatasetError, match="did not answer within 1 s: check the network, the address and the credentials"):
            open_episodes("s3://bucket/data" if kind == "s3" else f"{address}/data")
        assert time.monotonic() - start < 60, "not after the file system's own attempts, which take minutes"
    forget()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(DatasetError, match=r"s3://bucket/data cannot be read: Install s3fs to access S3 \(pip install s3fs\)"):
        open_episodes("s3://bucket/data")
