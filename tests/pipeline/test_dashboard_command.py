"""`fewstep dashboard`: what it refuses before it serves anything, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

STORED = Path(__file__).parent.parent / "fixtures" / "studies"
Run = Callable[..., Any]


def test_what_cannot_be_served_is_refused_in_a_line(run: Run, tmp_path: Path) -> None:
    run("dashboard").refused("runs is not there")
    run("dashboard", "nowhere").refused("nowhere is not there", "give folders of studies")
    (tmp_path / "file").write_text("")
    run("dashboard", "file").refused("file is no folder")
    run("dashboard", "").refused("a path is empty")
    run("dashboard", ".", "--host", "").refused("--host is empty")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run("dashboard", ".", "--port", port).refused(f"cannot listen on 127.0.0.1 port {port}", "--port")


def test_it_serves_on_loopback_and_ends_with_a_signal(tmp_path: Path) -> None:
    shutil.copytree(STORED / "evaluations", tmp_path / "runs" / "evaluations")
    command = [sys.executable, "-P", "-m", "fewstep.pipeline.cli", "dashboard", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            address = line.removeprefix("dashboard: ").strip()
            assert address.startswith("http://127.0.0.1:"), line
            with urllib.request.urlopen(address, timeout=60) as page:
                assert "evaluations" in page.read().decode()
            # A page that listens for news must not keep it from ending.
            with urllib.request.urlopen(f"{address}/events", timeout=60) as events:
                assert events.readline().startswith(b"retry")
                server.send_signal(signal.SIGTERM)
                assert server.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            server.kill()
