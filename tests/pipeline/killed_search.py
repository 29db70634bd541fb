"""Run searches, killed again and again. Standard input: a JSON list of [root, settings, rules, execution].

Every rule is a life of the driver: a forked child opens the study in the root, goes on with it, and dies at
the first record that the rule names. A rule is `WHERE:RUNG:TRIAL`: the rung's first record of a trial numbered
TRIAL or higher. WHERE says how: `after` kills when the record is on disk, `between` when its moments are on
disk and itself is not, `raise` lets an exception through at that point. Last comes a life that ends well. Before a
life ends as `after` says, its tables are copied to `ROOT-before`. `execution` says where they run: in process
unless it says otherwise.
Prints the exit codes of a search's lives on one line. One start of the interpreter serves them all.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
from diffusers import DDPMScheduler, UNet2DModel  # noqa: F401

# Imported before the forks, or every life would import them anew.
import fewstep.pipeline.executors.in_process
import fewstep.tasks.quantization.build  # noqa: F401
from fewstep.pipeline.executors.base import ExecutionSettings
from fewstep.pipeline.proposers.surrogate.encoder import warm_up
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study import Study
from fewstep.storage.records import EvaluationRecord


def die() -> None:
    """End as `kill -9` ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)


def one_life(root: Path, settings: SearchSettings, rule: str, execution: ExecutionSettings) -> None:
    """Go on with the study until the rule strikes, or to its end."""
    study = Study(root, settings)
    where, rung, trial = rule.split(":") if rule else ("", "", "0")

    def due(record: EvaluationRecord) -> bool:
        return record.rung == rung and record.trial >= int(trial)

    def on_record(record: EvaluationRecord) -> None:
        if where == "after" and due(record):
            shutil.rmtree(f"{root}-before", ignore_errors=True)
            shutil.copytree(root / "tables", f"{root}-before/tables")
            die()

    append = study.store.evaluations.append

    def stumbling(records: Sequence[EvaluationRecord]) -> None:
        if where in ("between", "raise") and due(records[0]):
            if where == "between":
                die()
            raise OSError("the disk is full")
        append(records)

    study.store.evaluations.append = stumbling  # type: ignore[method-assign]
    study.run(execution, "test", on_record)


def lives(root: Path, settings: SearchSettings, rules: Sequence[str], execution: ExecutionSettings) -> Iterator[int]:
    """One child a rule, one after the other; their exit codes."""
    for rule in (*rules, ""):
        child = os.fork()
        if child == 0:
            try:
                one_life(root, settings, rule, execution)
            except OSError as error:
                os._exit(3 if "disk is full" in str(error) else 1)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        yield os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    warm_up()
    for folder, chosen, ends, *where in json.load(sys.stdin):
        execution = ExecutionSettings(**({"executor": "in-process"} | (where[0] if where else {})))
        print(*lives(Path(folder), SearchSettings.model_validate(chosen), ends, execution), flush=True)
