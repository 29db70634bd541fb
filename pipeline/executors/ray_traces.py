"""What a worker said before it died, for the record of a candidate that ends every worker it meets."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import state as ray_state
from ray._private import worker as ray_worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fewstep.tasks.faults import without_folders

SECONDS = 20.0


def last_words(actor: Any, pid: int, error: BaseException) -> str:
    """The traceback of what ended an actor: what its task raised, else what its process printed, else what Ray says.

    A process that was killed prints none. On another machine its log is read by a task there, while that answers.
    """
    raised: str = getattr(error, "trace", "")
    if raised:
        return raised
    printed = ""
    with suppress(Exception):
        # A log of this machine's, or else of the node that Ray remembers.
        printed = _printed(ray_worker._global_node.get_session_dir_path(), pid) or _elsewhere(actor, pid)
    return without_folders("\n".join(filter(None, (str(error), printed))))


def _printed(session: str, pid: int) -> str:
    files = [*Path(session, "logs").glob(f"worker-*-{pid}.err"), *Path(session, "logs").glob(f"worker-*-{pid}.out")]
    return "\n".join(file.read_text(errors="replace")[-2000:].strip() for file in files)


def _elsewhere(actor: Any, pid: int) -> str:
    node = ray_state.actors(actor._actor_id.hex())["Address"]["NodeID"]
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    asked = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_in_its_session).remote(pid)
    found: str = ray.get(asked, timeout=SECONDS)
    return found


def _in_its_session(pid: int) -> str:
    return _printed(ray_worker._global_node.get_session_dir_path(), pid)
