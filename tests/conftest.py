"""Every test session runs in a home of its own, on one thread, and reports to nobody.

The settings stand at the top because libraries read them when they are first imported. Processes that
tests start inherit them.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_real_home = Path.home()
_home = Path(tempfile.mkdtemp(prefix="fewstep-home-"))
_owner = os.getpid()


def _remove_home() -> None:
    # A forked child leaves through the same door.
    if os.getpid() == _owner:
        shutil.rmtree(_home, ignore_errors=True)


atexit.register(_remove_home)

# What was downloaded before (Inception's weights) stays in reach; nothing new is fetched.
os.environ.setdefault("TORCH_HOME", str(_real_home / ".cache" / "torch"))
os.environ["HF_HUB_OFFLINE"] = "1"

os.environ["HOME"] = str(_home)
for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME", "MPLCONFIGDIR"):
    os.environ.pop(name, None)

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

# A local start would otherwise turn on token authentication and write a token under the home directory.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
for name in ("RAY_ADDRESS", "RAY_NAMESPACE"):
    os.environ.pop(name, None)

for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
    os.environ.pop(name, None)
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
os.environ["DO_NOT_TRACK"] = "true"

os.environ["MPLBACKEND"] = "Agg"
