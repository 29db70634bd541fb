"""What a command that computes nothing does not wait for."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "optuna", "mlflow", "ray", "pandas", "diffusers", "transformers", "sklearn", "scipy", "matplotlib")
LIGHT = [
    ["--help"],
    ["zoo"],
    ["search", "--model", "digits-ddpm", "--print"],
    *(
        [*command, "--help"]
        for command in (["search"], ["grid"], ["report"], ["baseline"], ["export"], ["edit", "search"])
    ),
]
CODE = """
import json, sys
from contextlib import redirect_stdout
from io import StringIO
from fewstep.pipeline.cli import app

heavy, light = map(json.loads, sys.argv[1:])
for command in light:
    with redirect_stdout(StringIO()) as out:
        app(command, standalone_mode=False)
    assert out.getvalue(), command
    found = [name for name in heavy if name in sys.modules]
    assert not found, (command, found)
"""


def test_light_commands_import_no_heavy_library() -> None:
    command = [sys.executable, "-P", "-c", CODE, json.dumps(HEAVY), json.dumps(LIGHT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_is_run_as_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "fewstep", "zoo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "digits-ddpm" in done.stdout
