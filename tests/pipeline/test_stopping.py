"""A command that is told to stop says how to go on; one that nobody reads says nothing."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pydantic
import pytest

from fewstep.errors import FewstepError
from fewstep.pipeline import stopping
from fewstep.storage.store import Store

Run = Callable[..., Any]
SIGNALS = stopping.SIGNALS


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals as they were: a stopped command leaves none of its own. The tests may run under nohup."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _told(number: int) -> Callable[..., Any]:
    """What gets a signal instead of working."""

    def told(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)
        raise AssertionError("the signal was not heeded")

    return told


def _line(answer: Any, number: int) -> str:
    """The command that a stopped one says, on the one line of its stderr."""
    assert answer.code == 128 + number, answer
    (line,) = answer.err.splitlines()
    assert line.startswith("stopped, resume with: fewstep ")
    return str(line.partition(": ")[2])


COMMANDS: list[tuple[str, list[object]]] = [
    ("fewstep.pipeline.api.evaluate_subject", ["evaluate", "--model", "digits-ddpm", "--schedule", "ddim@3"]),
    (
        "fewstep.pipeline.campaign.evaluate",
        ["compare", "--model", "digits-ddpm", "--first", "ddim@3", "--second", "ddim@4"],
    ),
    ("fewstep.pipeline.baseline.run", ["baseline", "--model", "digits-ddpm", "--out", "a folder"]),
    ("fewstep.pipeline.refinement.refine", ["refine", "ddim@3", "--model", "digits-ddpm"]),
    (
        "fewstep.tasks.quantization.build.quantize",
        ["quantize", "--model", "digits-ddpm", "--schedule", "ddim@3", "--out", "q"],
    ),
    ("fewstep.tasks.training.entry.train_entry", ["train", "digits-ddpm", "--out", "m"]),
    ("fewstep.pipeline.explain.explain", ["explain", "ddim@3", "--model", "digits-ddpm"]),
    ("fewstep.pipeline.study.Study.load", ["report", "--out", "it's here"]),
    ("fewstep.pipeline.editing.boundaries.load_fit", ["edit", "apply", "--boundary", "b", "--out", "e"]),
    ("fewstep.pipeline.api.run_study", ["search", "--model", "digits-ddpm", "--out", "s", "--workers", "2"]),
]


@pytest.mark.parametrize(("place", "words"), COMMANDS, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_a_stopped_command_says_what_to_type(
    run: Run, monkeypatch: pytest.MonkeyPatch, place: str, words: list[object]
) -> None:
    """Nothing is on disk: to go on is to type the same again."""
    monkeypatch.setattr(place, _told(signal.SIGINT))
    answer = run(*words)
    assert shlex.split(_line(answer, signal.SIGINT)) == ["fewstep", *map(str, words)]


@pytest.mark.parametrize(("number", "lost"), [*((number, False) for number in SIGNALS), (signal.SIGTERM, True)])
def test_a_search_that_is_on_disk_goes_on_with_resume(
    run: Run, toy: Path, monkeypatch: pytest.MonkeyPatch, number: int, lost: bool
) -> None:
    """Where it is `lost`, too: what it raises is ignored, as in a finalizer."""
    small = ("--frechet-images", 4, "--set", "look_images=4", "--report-images", 3, "--refine", 0)
    ask = ("search", "--model", toy, "--nfe", 1, "--teacher", "ddim@2", "--budget", 200, *small)
    found = {"out": "my runs/first", "executor": "in-process", "tracking_uri": "https://me:secret@runs.example.org"}
    given = [word for name, value in found.items() for word in (f"--{name.replace('_', '-')}", value)]
    done: list[object] = []

    def on_record(self: object, record: object) -> None:
        done.append(record)
        if len(done) == 3:
            with suppress(KeyboardInterrupt) if lost else nullcontext():
                signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr("fewstep.pipeline.display.SearchDisplay.on_record", on_record)
        command = _line(run(*ask, *given, "--json"), number)
    assert shlex.split(command) == [
        "fewstep",
        "search",
        "--resume",
        *given[:-1],
        "https://***@runs.example.org",
        "--json",
    ]
    assert len(Store(Path("my runs/first")).evaluations.records()) == 3
    assert signal.getsignal(number) == signal.SIG_DFL


def test_an_error_while_it_closes_does_not_hide_that_it_was_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def closing(*arguments: object, **options: object) -> None:
        try:
            _told(signal.SIGTERM)()
        finally:
            raise RuntimeError("the workers are gone")

    monkeypatch.setattr("fewstep.pipeline.api.evaluate_subject", closing)
    _line(run("evaluate", "--model", "digits-ddpm", "--schedule", "ddim@3"), signal.SIGTERM)


def _python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-c", code], text=True, capture_output=True, timeout=60, **options)


def test_a_second_signal_ends_at_once_and_an_ignored_one_stays_ignored() -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from fewstep.pipeline.stopping import stoppable, stopped\n"
        "with stoppable():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)\n"
        "    except KeyboardInterrupt:\n"
        "        stopped()\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
    )
    done = _python(code)
    assert done.returncode == 130
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("stopped, resume with: ")


def test_handlers_are_taken_back_and_given_back() -> None:
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    with stopping.stoppable():
        ours = signal.getsignal(signal.SIGTERM)
        assert ours is not mine
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        stopping.watch()
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) is not ours


# -- a command that nobody reads, and one whose libraries fail ---------------------------------------------


def test_a_reader_that_is_gone_is_no_error_and_a_full_disk_is_one_line() -> None:
    code = (
        "import os, sys\n"
        "from fewstep.pipeline.cli import main\n"
        "sys.argv = ['fewstep', 'search', '--model', 'digits-ddpm', '--print']\n"
        "if os.fork():\n"
        "    os.wait(); reads, writes = os.pipe(); os.close(reads); os.dup2(writes, 1)\n"
        "else:\n"
        "    os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        "main()\n"
    )
    done = _python(code)
    assert done.returncode == 141
    assert done.stderr == "error: cannot read or write: No space left on device\n"


def test_a_stdout_that_takes_no_json_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("typer.echo", full)
    run("zoo", "--json").refused("cannot write to stdout: No space left on device")


class _Table(pydantic.BaseModel):
    rows: int


def _of_pyarrow() -> None:
    import pyarrow.parquet

    pyarrow.parquet.read_table("/etc/hostname")


def _of_sqlite() -> None:
    import sqlite3

    sqlite3.connect("/proc/none/mlflow.db")


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (lambda: Path("/proc/none/x").read_text(), ("/proc/none/x", "No such file")),
        (lambda: Path("/etc").read_text(), ("/etc", "Is a directory")),
        (lambda: os.rename("/proc/version", "/tmp/version"), ("/proc/version", "/tmp/version")),
        (_of_pyarrow, ("Parquet",)),
        (_of_sqlite, ("unable to open database file",)),
        (lambda: _Table(rows="many"), ("rows", "many")),  # type: ignore[arg-type]
    ],
)
def test_what_fails_outside_of_the_program_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, fails: Callable[[], object], words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("fewstep.pipeline.api.evaluate_subject", lambda *arguments, **options: fails())
    run("evaluate", "--model", "digits-ddpm", "--schedule", "ddim@3").refused(*words)


def test_a_fault_of_the_program_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: object, **options: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("fewstep.pipeline.api.evaluate_subject", wrong)
    with pytest.raises(KeyError):
        run("evaluate", "--model", "digits-ddpm", "--schedule", "ddim@3")
    assert not issubclass(KeyError, FewstepError)


# -- the real thing ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "number"), [("in-process", signal.SIGINT), ("ray", signal.SIGTERM)])
def test_a_process_group_that_gets_a_signal_ends_with_one_line(
    executor: str, number: int, toy: Path, tmp_path: Path
) -> None:
    """As from a terminal: the driver's workers get it too."""
    words = ["search", "--model", str(toy), "--nfe", "3", "--budget", "30000000", "--json", "--executor", executor]
    words += ["--workers", "1"]
    out = tmp_path / "study"
    command = [sys.executable, "-P", "-m", "fewstep.pipeline.cli", *words, "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        until = time.monotonic() + 120
        while time.monotonic() < until and len(list(out.glob("tables/evaluations/*"))) < 3:
            time.sleep(0.1)
        os.killpg(process.pid, number)
        try:
            told, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, told) == (128 + number, "")
    resume = f"fewstep search --resume --out {out} --executor {executor} --workers 1 --json"
    assert said == f"stopped, resume with: {resume}\n"
