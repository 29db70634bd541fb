"""The table of the searches: `python -m benchmarks.unseen RESULTS.jsonl [...] [--csv docs/results]`.

A row is a checkpoint, budget, NFE, way of searching and metric: the median over the search seeds, with the least and
the most, of what was found to the best preset on any grid, with or without an analytic first call.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.tables.engine import Sheet
from benchmarks.unseen.judging import METRICS
from benchmarks.unseen.searches import METHODS, known_lines
from benchmarks.unseen.yardstick import ANALYTIC, PRESET
from fewstep.files import write_text

NOTES = {
    "ratio": "distance of what was found to that of the best preset at as many calls, median over the search seeds, "
    "low and high the least and the most of them",
    "best": "the preset with the least distance on the very images that it is reported on, with or without an analytic "
    "first call",
    "own": "the model's own scheduler, walked by diffusers; the better of two where it draws noise and DDIM does not",
    "spent": "denoiser calls of the whole search but its report, to those asked: the one furthest from 1",
    "features": "what was searched by; judge: a network that no search saw",
}


def rows(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table."""
    grouped = defaultdict(list)
    for line in lines:
        grouped[line["checkpoint"], line["method"], line["budget"], line["nfe"]].append(line)
    at_most_calls: dict[tuple[str, str], tuple[int, float]] = {}
    for (checkpoint, _, _, nfe), held in grouped.items():
        for metric in METRICS:
            at_most_calls[checkpoint, metric] = max(
                at_most_calls.get((checkpoint, metric), (0, 0.0)), (nfe, _least(held[0][metric]))
            )
    made = []
    for key in sorted(grouped, key=lambda key: (key[0], list(METHODS).index(key[1]), *key[2:])):
        checkpoint, method, budget, nfe = key
        held = grouped[key]
        spent = [line["study_spent"] / line["study_asked"] for line in held]
        for metric in METRICS:
            ratios = [line[metric]["ratio"] for line in held]
            found = median(line[metric]["found"][0] for line in held)
            most, least = at_most_calls[checkpoint, metric]
            made.append(
                {
                    "checkpoint": checkpoint,
                    "budget": budget,
                    "nfe": nfe,
                    "method": method,
                    "metric": metric,
                    "ratio": median(ratios),
                    "low": min(ratios),
                    "high": max(ratios),
                    "seeds": len(held),
                    "found": found,
                    "best": _least(held[0][metric]),
                    "best_name": held[0][metric]["best"],
                    "best_preset": held[0][metric][PRESET][0],
                    "best_analytic": held[0][metric][ANALYTIC][0],
                    "own": min(own[0] for own in held[0][metric]["own"].values()),
                    f"to_best_of_{most}": found / least,
                    "spent": max(spent, key=lambda share: abs(share - 1)),
                    "origins": " ".join(sorted({line["origin"].partition(":")[0] for line in held})),
                    "images": held[0]["images"],
                }
            )
    return made


def _least(figures: Mapping[str, Any]) -> float:
    return float(min(figures[PRESET][0], figures[ANALYTIC][0]))


def markdown(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same for a terminal, one line a checkpoint, way and budget, with a column an NFE and metric."""
    columns = [(nfe, metric) for nfe in sorted({row["nfe"] for row in table}) for metric in METRICS]
    found = {(r["checkpoint"], r["method"], r["budget"], r["nfe"], r["metric"]): r for r in table}
    heads = ["model", "by", "budget", *(f"{nfe}, {metric}" for nfe, metric in columns), "spent"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for key in dict.fromkeys(key[:3] for key in found):
        held = [found.get((*key, *column)) for column in columns]
        cells = ["" if r is None else f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in held]
        spent = next(f"{r['spent']:.3f}" for r in held if r is not None)
        lines.append(f"| {key[0]} | {key[1]} | {key[2]:,} | {' | '.join(cells)} | {spent} |")
    return lines


def sheet(lines: Sequence[Mapping[str, Any]], command: str) -> str:
    """The table as CSV, under lines that say how it was made."""
    dates = sorted({line["conditions"]["date"] for line in lines})
    machines = sorted({f"{line['conditions']['cpus']} cores, {line['conditions']['machine']}" for line in lines})
    seeds = {"report": lines[0]["report_seed"]}
    searched = ", ".join(str(seed) for seed in sorted({line["seed"] for line in lines}))
    made = {"date": ", ".join(dates), "machine": "; ".join(machines), "interval": f"range over search seeds {searched}"}
    return Sheet("unseen", rows(lines), seeds, made | NOTES).csv(command)


def main(arguments: Sequence[str]) -> None:
    """Print the table, and with --csv write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unseen", description=__doc__.partition("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="files that benchmarks.unseen.searches wrote")
    parser.add_argument("--csv", type=Path, help="folder for unseen.csv")
    given = parser.parse_args(arguments)
    lines = [line for path in given.results for line in known_lines(path)]
    print(*markdown(rows(lines)), sep="\n")
    if given.csv:
        command = f"python -m benchmarks.unseen {' '.join(path.name for path in given.results)}"
        print(write_text(given.csv / "unseen.csv", sheet(lines, command)))


if __name__ == "__main__":
    main(sys.argv[1:])
