"""Run tasks on jobs of Slurm: each of `--workers` jobs is a worker of a Dask scheduler in this process.

Jobs are handed in by submitit; partition, account, time and whatever else a site wants are Slurm's own variables
(SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, ...), which sbatch reads. A job that ends, as at its limit of
time, is handed in again, and the search goes on with the others. What jobs and scheduler say to each other is
encrypted, and nobody else can take part; their keys lie in a folder that only its owner reads, while they run.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from fewstep.errors import ConfigurationError
from fewstep.pipeline.executors.base import ExecutionSettings, ExecutorEvent
from fewstep.pipeline.executors.dask import DaskExecutor
from fewstep.tasks.work import WorkerSettings

try:
    import submitit
    from distributed import LocalCluster, Nanny
    from distributed.security import Security
    from distributed.utils import get_ip
except ImportError:
    raise ConfigurationError("jobs of Slurm need: pip install 'fewstep[slurm]'") from None

# Jobs that may end one after the other without a worker coming up.
FAILURES = 3
# Minutes that a job may take where SBATCH_TIMELIMIT does not say; seconds that it outlives its scheduler.
MINUTES, ORPHANED = 24 * 60, 60


def work(address: str, security: Any, host: Callable[[], str], name: str) -> None:
    """A job: one worker of the scheduler, in a process that is started again when it dies, until the scheduler ends."""

    async def serve() -> None:
        options: dict[str, Any] = {"nthreads": 1, "memory_limit": None, "death_timeout": ORPHANED, "dashboard": False}
        async with Nanny(address, name=name, host=host(), security=security, **options) as nanny:
            await nanny.finished()

    asyncio.run(serve())


class SlurmExecutor(DaskExecutor):
    """`kind` is submitit's kind of cluster, `host` tells a process on which address it listens."""

    kind = "slurm"
    host = staticmethod(get_ip)

    def __init__(self, settings: WorkerSettings, execution: ExecutionSettings) -> None:
        if self.kind == "slurm" and shutil.which("sbatch") is None:
            raise ConfigurationError("there is no sbatch on this machine: run --executor slurm where Slurm is")
        self._jobs: dict[str, Any] = {}
        self._failed = 0
        # Jobs read it: on the disk that they share with the search.
        within = Path(settings.cache or Path.cwd())
        within.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="slurm-", dir=within))
        super().__init__(settings, execution)

    def cluster(self, execution: ExecutionSettings) -> Any:
        """A scheduler in this process, and the jobs."""
        untyped: Any = LocalCluster
        security = cast(Any, Security).temporary()
        scheduler = untyped(
            n_workers=0, host=self.host(), protocol="tls://", security=security, dashboard_address="127.0.0.1:0",
            silence_logs="CRITICAL",
        )  # fmt: skip
        submitter = submitit.AutoExecutor(folder=self._folder, cluster=self.kind)
        device = {"gpus_per_node": 1} if execution.device.startswith("cuda") else {}
        submitter.update_parameters(
            name="fewstep", timeout_min=MINUTES, tasks_per_node=1, cpus_per_task=execution.cpus, **device
        )
        self._submit = partial(submitter.submit, work, scheduler.scheduler_address, security, self.host)
        names = [f"job-{index}" for index in range(max(1, execution.workers))]
        with submitter.batch():
            jobs = [self._submit(name) for name in names]
        self._jobs = dict(zip(names, jobs, strict=True))
        return scheduler

    def follow(self) -> None:
        """Hand in again the jobs that ended; ConfigurationError where they end at once."""
        self._failed = 0 if self._names else self._failed
        silent = {name: job for name, job in self._jobs.items() if name not in self._names}
        for name in self._over(silent) if silent else ():
            job, self._failed = self._jobs[name], self._failed + 1
            words = _last_words(job)
            if self._failed >= FAILURES * len(self._jobs):
                raise ConfigurationError(f"Slurm's jobs end before they work: {words}")
            self._events.append(ExecutorEvent("job_ended", f"{name} (job {job.job_id}): {words}; handed in again"))
            self._jobs[name] = self._submit(name)

    def _over(self, jobs: Mapping[str, Any]) -> list[str]:
        """Those that wait and run no more; squeue knows it where a site keeps no accounts, too."""
        if self.kind != "slurm":
            return [name for name, job in jobs.items() if job.done()]
        listed = subprocess.run(
            ("squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i"),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        known = set(listed.stdout.split())
        return [] if listed.returncode else [name for name, job in jobs.items() if job.job_id not in known]

    def close(self) -> None:
        """End jobs and scheduler."""
        super().close()
        while self._jobs:
            with suppress(Exception):
                self._jobs.popitem()[1].cancel()
        shutil.rmtree(self._folder, ignore_errors=True)


def _last_words(job: Any) -> str:
    """The end of what a job said on stderr."""
    said = ""
    with suppress(OSError):
        said = Path(job.paths.stderr).read_text(errors="replace").strip()
    return said.splitlines()[-1][-300:] if said else f"it said nothing, in {os.fspath(job.paths.stderr)}"
