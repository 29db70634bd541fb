"""One driver at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from fewstep.errors import LeaseError, StorageError
from fewstep.storage.lease import Lease

HOLDER = """
import os, sys, time
from fewstep.storage.lease import Lease
with Lease(sys.argv[1]):
    child = os.fork() if sys.argv[2] == "fork" else 1
    os.write(1, f"{child}\\n".encode())
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    started = []

    def start(mode="plain"):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", HOLDER, str(tmp_path), mode], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        lines = [process.stdout.readline() for _ in range(2 if mode == "fork" else 1)]
        return process, max(int(line) for line in lines)

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_driver_is_refused_at_once_and_told_who_holds_it(tmp_path, holder):
    process, _ = holder()
    begin = time.monotonic()
    with pytest.raises(LeaseError, match=rf"in use by process {process.pid} on .+ since 20"), Lease(tmp_path):
        pass
    assert time.monotonic() - begin < 1.0


def test_kill_9_frees_the_lease(tmp_path, holder):
    process, _ = holder()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Lease(tmp_path):
        assert str(os.getpid()) in (tmp_path / "driver.lock").read_text()


def test_a_forked_child_does_not_keep_the_lease_of_a_killed_driver(tmp_path, holder):
    process, child = holder("fork")
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        with Lease(tmp_path):
            os.kill(child, 0)  # it still runs
    finally:
        os.kill(child, signal.SIGKILL)


def test_leaving_frees_the_lease_also_after_an_error(tmp_path):
    lease = Lease(tmp_path / "new" / "study")
    for _ in range(2):
        with pytest.raises(KeyError), lease:
            raise KeyError
    with lease, pytest.raises(LeaseError, match=f"process {os.getpid()} "), Lease(lease.path.parent):
        pass


def test_waiting_for_a_lease(tmp_path, holder):
    process, _ = holder()
    begin = time.monotonic()
    with pytest.raises(LeaseError), Lease(tmp_path, wait=0.5):
        pass
    assert time.monotonic() - begin >= 0.5
    process.kill()
    with Lease(tmp_path, wait=5.0):
        pass


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot open the lock"), Lease(tmp_path / "file"):
        pass


def test_a_full_disk_keeps_nobody_from_holding_the_lease(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    monkeypatch.setattr(os, "ftruncate", refuse)
    with Lease(tmp_path), pytest.raises(LeaseError, match="in use by another process"), Lease(tmp_path):
        pass
    with Lease(tmp_path):
        pass
