"""Tables on an object store: a real S3 server on this machine."""

from __future__ import annotations

import socket

import pytest
from pyarrow.fs import S3FileSystem

from fewstep.storage.queries import front, leaderboard
from fewstep.storage.sql import query
from fewstep.storage.store import Store

server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    yield f"127.0.0.1:{port}"
    running.stop()


def test_a_study_on_s3_is_written_merged_and_asked_as_on_disk(address, tmp_path, evaluation, monkeypatch):
    keys = {"access_key": "key", "secret_key": "hunter22", "scheme": "http", "endpoint_override": address}
    S3FileSystem(**keys, region="us-east-1", allow_bucket_creation=True).create_dir("bucket")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")
    uri = f"s3://bucket/runs/one?scheme=http&endpoint_override={address}&region=us-east-1"
    store, local = Store(uri), Store(tmp_path)
    store.evaluations._small_parts = 3
    rows = [evaluation(i, nfe=3 + i % 2, value=float(9 - i)) for i in range(8)]
    for place in (store, local):
        for row in rows:
            place.evaluations.append([row])
    assert store.evaluations.compact()
    again = Store(uri)
    assert again.evaluations.records() == rows == local.evaluations.records()
    assert len(again.evaluations.directory.list()) == 1
    assert again.damaged() == []
    for ask in (leaderboard, front):
        assert ask(again, engine="dask").equals(ask(local, engine="dask"))
    text = "select nfe, min(value) best from evaluations group by nfe order by nfe"
    assert query(again, text).equals(query(local, text))
