"""The command line: one line a command, grouped by what it is for. Each lives in `pipeline/commands`.

A command is imported when it runs: `fewstep --help` waits for none of them.
"""

from __future__ import annotations

import os
import stat
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from fewstep.errors import FewstepError, StorageError
from fewstep.pipeline import stopping

# Group -> command -> what it does. A command is `command` (or, with commands of its own, `app`) of the module of its
# name, with _ for -.
COMMANDS: dict[str, dict[str, str]] = {
    "find": {
        "search": "Search solver schedules, quantised networks or both for a model.",
        "refine": "Tune one schedule, by gradient or on feature moments.",
        "quantize": "Quantise a model's network for a schedule.",
        "baseline": "See what stock samplers reach: what there is to beat.",
    },
    "measure": {
        "evaluate": "Frechet distance of a schedule or an ODE solver, with its interval.",
        "grid": "Evaluate a grid of models, schedules, calls, bits, guidance, seeds and metrics.",
        "compare": "Difference of two schedules or two fronts on the same noise.",
        "explain": "Which decision of a schedule bought what.",
    },
    "use": {
        "sample": "Write images of a model under a schedule.",
        "export": "Write a scheduler that diffusers pipelines load.",
        "schedule": "Import published schedules, show what a schedule decides.",
        "edit": "Move images across an attribute's boundary, and search the edit.",
    },
    "look": {
        "report": "What a study found: table, page, tracking server.",
        "dashboard": "Studies in a browser, while searches write into them.",
        "query": "Ask a study's tables in SQL.",
    },
    "more": {
        "statistics": "Measure what some schedules need to know of a model.",
        "train": "Train a bundled model from its recipe.",
        "convert": "Turn a published checkpoint into a model directory.",
        "zoo": "List the bundled models.",
        "doctor": "Check what is installed.",
    },
}

# The exit status where nobody reads on, as a shell tells of other programs.
GONE = 128 + 13
# Libraries whose errors are about files and servers that they were given.
FOREIGN = ("pyarrow", "sqlite3", "sqlalchemy", "pydantic", "pydantic_core")


class Commands(TyperGroup):
    """Commands that are imported when they are asked for, listed in their groups."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every command's name, in the help's order."""
        return [name for group in COMMANDS.values() for name in group]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, None where there is none."""
        if cmd_name not in self.list_commands(ctx):
            return None
        if cmd_name not in self.commands:
            module = import_module(f"fewstep.pipeline.commands.{cmd_name.replace('-', '_')}")
            self.commands[cmd_name] = _made(module)
        return self.commands[cmd_name]

    def invoke(self, ctx: Any) -> Any:
        """Run the command; where it is stopped, say how to go on."""
        try:
            return super().invoke(ctx)
        except BaseException as error:
            if isinstance(error, BrokenPipeError) and _is_piped():
                _silence()
                raise typer.Exit(GONE) from None
            # What closing raised after a signal is the signal's doing.
            if not isinstance(error, KeyboardInterrupt) and not stopping.asked():
                raise
            raise typer.Exit(stopping.stopped()) from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """One table a group."""
        for title, group in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(list(group.items()))


def _made(module: Any) -> Any:
    if hasattr(module, "app"):
        return typer.main.get_command(module.app)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(module.NAME)(module.command)
    return typer.main.get_command(alone)


app = typer.Typer(
    name="fewstep",
    cls=Commands,
    help="Find, for a pretrained diffusion model, the sampler that gives the best images in very few steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _fewstep() -> None:
    """A group, though it has no command of its own."""


def main() -> None:
    """Entry point. A FewstepError becomes one line on stderr and exit code 2; a signal, 128 and its number."""
    # Quiet start-up notes of libraries that the user can do nothing about.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with stopping.stoppable():
        try:
            try:
                app()
            finally:
                if not _flushed():
                    sys.exit(GONE)
        except Exception as error:
            text = _told(error)
            if text is None:
                raise
            print(f"error: {' '.join(text.split())}", file=sys.stderr)
            sys.exit(2)


def _told(error: Exception) -> str | None:
    """What went wrong outside this program, in a line; None for what is a fault of its own."""
    if isinstance(error, FewstepError):
        return str(error)
    if isinstance(error, OSError):
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        where = f"cannot use {' and '.join(places)}: " if places else ""
        return f"{where or 'cannot read or write: '}{error.strerror or str(error) or type(error).__name__}"
    if type(error).__module__.partition(".")[0] in FOREIGN:
        return f"{type(error).__name__}: {error}"
    return None


def _flushed() -> bool:
    """Whether stdout took what was printed; False where its reader is gone, as under `head`."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _silence()
        if isinstance(error, BrokenPipeError):
            return False
        raise StorageError(f"cannot write to stdout: {error.strerror}") from None
    return True


def _is_piped() -> bool:
    mode = os.fstat(sys.stdout.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _silence() -> None:
    """Let the rest of stdout go nowhere: the interpreter flushes it again at its end, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
