"""`python -m benchmarks.tables NAME`: make one of the documentation's tables again, or another with changed settings.

python -m benchmarks.tables fashion_guidance --out runs/guidance --csv docs/results --set images=500
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables.engine import ExecutionSettings, make
from fewstep.errors import FewstepError
from fewstep.plugins import Registry

# Names are those of the published files in docs/results.
TABLES = Registry(
    "table",
    {
        "fashion_guidance": "benchmarks.tables.guidance:FASHION",
        "fashion_flow": "benchmarks.tables.flow:FASHION",
        "digits_rungs": "benchmarks.tables.rungs:DIGITS",
        "fashion_rungs": "benchmarks.tables.rungs:FASHION",
        "flow_bound": "benchmarks.tables.bound:MIXTURES",
        "flow_bound_fashion": "benchmarks.tables.bound:FASHION",
        "digits_peers": "benchmarks.tables.peers:DIGITS",
        "digits_transfer": "benchmarks.tables.peers:TRANSFER",
        "digits_transfer_anew": "benchmarks.tables.peers:ANEW",
        "fashion_front": "benchmarks.tables.peers:FASHION",
        "digits_methods": "benchmarks.tables.front:DIGITS",
        "digits_edm_methods": "benchmarks.tables.front:DIGITS_EDM",
        "digits_cost": "benchmarks.tables.cost:DIGITS",
        "digits_edits": "benchmarks.tables.edits:DIGITS",
        "fashion_edits": "benchmarks.tables.edits:FASHION",
        "fashion_quantization": "benchmarks.tables.quantization:FASHION",
        "digits_joint": "benchmarks.tables.joint:DIGITS",
        "fashion_conditions": "benchmarks.tables.conditions:FASHION",
    },
)


def main(arguments: Sequence[str]) -> int:
    """Make a table; 2, with one line on stderr, where that cannot be."""
    # Quiet start-up notes of Ray that the user can do nothing about; nothing is sent.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.partition("\n")[0])
    parser.add_argument("name", help=", ".join(TABLES.names))
    parser.add_argument("--out", type=Path, help="keeps every result; the same command goes on [runs/tables/NAME]")
    parser.add_argument("--csv", type=Path, help="folder to copy the CSV files and pictures to, as docs/results")
    parser.add_argument("--executor", default="in-process", help="in-process or ray")
    parser.add_argument("--workers", type=int, default=0, help="Ray actors; 0: one a core, or one a GPU")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a published setting")
    given = parser.parse_args(arguments)
    try:
        table = TABLES.load(given.name).changed(given.set)
        execution = ExecutionSettings.build(executor=given.executor, workers=given.workers, device=given.device)
        root = given.out or Path("runs/tables") / given.name
        command = f"python -m benchmarks.tables {' '.join(arguments)}"
        for path in make(given.name, table, root, execution, given.csv, command, tell=print):
            print(path)
    except FewstepError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
