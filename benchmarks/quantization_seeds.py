"""The table of quantised networks over calibration seeds: `python -m benchmarks.quantization_seeds LINES.jsonl [...]
--csv docs/results`, of what `benchmarks.quantization_schedules` has measured.

A row is a model and a method: means over the seeds with the 95% interval of Student's t, so that it holds the noise of
calibration. `own` is the schedule that networks were calibrated on, `stock` the mean of three stock ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quantization_schedules import summaries
from benchmarks.tables.engine import Sheet
from fewstep.files import write_text

NAME = "quantization_seeds"
FIGURES = {
    "pixel own": "pixel_own",
    "pixel stock": "pixel_stock",
    "feature own": "feature_own",
    "feature stock": "feature_stock",
    "temporal own": "temporal_own",
    "temporal stock": "temporal_stock",
}
NOTES = {
    "interval": "95%, Student's t over the calibration seeds",
    "own": "the schedule of 8 calls that networks were calibrated on; stock: mean of three stock schedules of 8 calls",
    "pixel": "root mean square difference to full precision from the same noise; feature: the distance in features",
}


def rows(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table."""
    by_model = defaultdict(list)
    for line in lines:
        by_model[line["model"]].append(dict(line))
    made = []
    for model, own in by_model.items():
        for summary in summaries(own):
            row = {"model": model, "method": summary["method"], "seeds": summary["seeds"], "images": own[0]["images"]}
            for figure, name in FIGURES.items():
                mean, half = summary["figures"][figure]
                row |= {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
            seconds = summary["figures"].get("cpu_seconds", ("", ""))[0]
            made.append(row | {"cpu_seconds": seconds, "bytes": summary["figures"]["bytes"][0]})
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the CSV file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization_seeds", description="See the module.")
    parser.add_argument("lines", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("docs/results"))
    given = parser.parse_args(arguments)
    lines = [json.loads(text) for path in given.lines for text in path.read_text().splitlines()]
    seeds = {"calibration": min(line["seed"] for line in lines), "report": 1_000_003}
    command = f"python -m benchmarks.quantization_seeds {' '.join(path.name for path in given.lines)}"
    path = write_text(given.csv / f"{NAME}.csv", Sheet(NAME, rows(lines), seeds, NOTES).csv(command))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
