"""The files of a front: each member in the form that it is used in, and the same noise under all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.files import write_text
from fewstep.pipeline.reports.pictures import COLUMNS, Picture, write_pictures
from fewstep.search_spaces.point import as_point, quantization_of

if TYPE_CHECKING:
    from fewstep.pipeline.problems.base import Publication
    from fewstep.pipeline.problems.networks import Member, NetworkProblem
    from fewstep.pipeline.search import Search

EXACT, PICTURES = "full precision", 8


def publish_front(problem: NetworkProblem, search: Search, to: Publication) -> dict[str, Path]:
    """Point, config and, where it was searched, schedule of every member, what they share, and pictures."""
    calibration = write_text(to.root / "calibration.json", problem.calibration.to_json(indent=2) + "\n")
    listed = []
    for member in problem.members(search):
        candidate = member.trial.candidate
        if problem.moves_schedule:
            update = {"name": f"fewstep-{member.stem}", "provenance": to.identity}
            schedule = candidate.schedule.model_copy(update=update)
            write_text(to.root / "schedules" / f"{member.stem}.json", schedule.to_json(indent=2) + "\n")
        write_text(to.root / "points" / f"{member.stem}.json", candidate.point.to_json() + "\n")
        entry = _listed(problem, search, member)
        if (config := quantization_of(candidate.point)) is not None:
            write_text(to.root / "configs" / f"{member.stem}.json", config.model_dump_json(indent=2) + "\n")
            folder = problem.network_path(to.root, config)
            entry |= {"network": str(folder.relative_to(to.root))} if folder.is_dir() else {}
        listed.append(entry)
    text = json.dumps({"notes": problem.notes, "calibrated_with": calibration.name, "members": listed}, indent=2)
    files = {"front.json": write_text(to.root / "front.json", text + "\n"), "calibration.json": calibration}
    grid = _pictures(problem, search, to)
    return files | ({"images.png": grid} if grid else {})


def _listed(problem: NetworkProblem, search: Search, member: Member) -> dict[str, Any]:
    candidate, rungs = member.trial.candidate, (search.ladder.finals, search.ladder.main, search.ladder.screen)
    record = next(member.trial.records[r.name] for r in rungs if r.name in member.trial.records)
    config, figures = quantization_of(candidate.point), record.metrics
    entry: dict[str, Any] = {
        "method": member.method,
        "point": f"points/{member.stem}.json",
        "schedule": f"schedules/{member.stem}.json" if problem.moves_schedule else "calibration.json",
        "origin": candidate.origin,
        "nfe": candidate.nfe,
        "rung": record.rung,
        "value": record.value,
    }
    if config is not None:
        entry |= {
            "config": f"configs/{member.stem}.json",
            "size_bytes": int(figures["size_bytes"]),
            "bit_operations": int(figures["bit_operations_a_call"]) * record.nfe,
            "quantization": config.name,
        }
    return entry


def _pictures(problem: NetworkProblem, search: Search, to: Publication) -> Path | None:
    """The same noise under the first members, in full precision, and under the teacher."""
    exact = [Picture(f"exact, {c.nfe} calls", c.point) for m, c in problem.contenders(search) if m == EXACT]
    shown = [
        Picture(f"{m.method}, {m.trial.candidate.nfe} calls", m.trial.candidate.point) for m in problem.members(search)
    ]
    rows = [*shown[:PICTURES], *exact, Picture(f"teacher, {problem.teacher.nfe}", as_point(problem.teacher))]
    seed = problem.settings.report_seed
    return write_pictures(to.executor, rows, seed, COLUMNS, to.root / "images.png", to.warn)
