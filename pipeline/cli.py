"""The command line. Each command lives in `pipeline/commands`; this file joins them and prints errors."""

from __future__ import annotations

import os
import sys

import typer

from fewstep.errors import FewstepError

app = typer.Typer(
    name="fewstep",
    help="Find, for a pretrained diffusion model, the sampler that gives the best images in very few steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _register() -> None:
    from fewstep.pipeline.commands import (
        baseline,
        compare,
        doctor,
        edit,
        evaluate,
        explain,
        export,
        quantize,
        refine,
        report,
        sample,
        schedule,
        search,
        statistics,
        train,
        zoo,
    )

    for module in (
        search,
        baseline,
        evaluate,
        compare,
        sample,
        export,
        refine,
        explain,
        quantize,
        statistics,
        train,
        zoo,
        report,
        doctor,
    ):
        app.command(module.NAME)(module.command)
    app.add_typer(schedule.app, name=schedule.NAME)
    app.add_typer(edit.app, name=edit.NAME)


def main() -> None:
    """Entry point: a FewstepError becomes one line on stderr and exit code 2."""
    # Quiet start-up notes of libraries that the user can do nothing about.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _register()
    try:
        app()
    except FewstepError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; what is finished is on disk, go on with --resume", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
