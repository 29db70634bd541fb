"""`fewstep doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

from dataclasses import asdict

import typer

from fewstep.pipeline.commands.options import AsJson, print_json

NAME = "doctor"


def command(as_json: AsJson = False) -> None:
    """Check the environment. Exit code 1 where something needed is broken."""
    from fewstep.pipeline.doctor import diagnose

    checks = diagnose()
    broken = any(check.ok is False for check in checks)
    if as_json:
        print_json({"checks": [asdict(check) for check in checks], "ok": not broken})
    else:
        for check in checks:
            mark = {True: "ok", False: "FAIL", None: "note"}[check.ok]
            advice = f"  -> {check.advice}" if check.advice and check.ok is not True else ""
            typer.echo(f"{mark:5} {check.name:24} {check.found}{advice}")
    if broken:
        raise typer.Exit(1)
