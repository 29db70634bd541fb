"""What this machine has, what fits together, what is missing and how to get it.

Every finding is a `Check`. Heavy packages are asked for their version without being imported; torch and
torchvision are imported, since only that shows whether the two fit, and so is Ray.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fewstep.storage.masking import masked_argument

OLDEST_PYTHON = (3, 11)
FIRST_UNTESTED_PYTHON = (3, 14)
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
DATA_VARIABLE = "FEWSTEP_DATA"
NEEDED_FREE_GB = 2.0


@dataclass(frozen=True)
class Check:
    """One finding: `ok` is True, False (something fewstep needs) or None (nothing it must have).

    `found` says what is there, `advice` what to do; it is empty where nothing is to be done.
    """

    name: str
    ok: bool | None
    found: str
    advice: str = ""


def check_python(version: tuple[int, int, int] = sys.version_info[:3]) -> Check:
    """Whether fewstep was tested on this Python."""
    found = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON or version[:2] >= FIRST_UNTESTED_PYTHON:
        return Check("python", False, found, "install Python 3.11, 3.12 or 3.13 and run `make setup` with it")
    return Check("python", True, found)


def check_packages() -> list[Check]:
    """One check a package that fewstep depends on: the version that is here against the oldest that works."""
    try:
        declared = metadata.requires("fewstep") or []
    except metadata.PackageNotFoundError:
        return [Check("fewstep", False, "not installed", "run `make setup`, or `pip install -e .`")]
    requirements = [Requirement(line) for line in declared]
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [check_package(r.name, r.specifier) for r in sorted(needed, key=lambda r: r.name.lower())]


def check_package(name: str, specifier: SpecifierSet) -> Check:
    """Whether the package is installed in a version that the specifier allows."""
    found = _version(name)
    if found is None:
        return Check(name, False, "not installed", f'`pip install "{name}{specifier}"`')
    if not specifier.contains(found, prereleases=True):
        return Check(name, False, f"{found}, needed {specifier}", f'`pip install "{name}{specifier}"`')
    return Check(name, True, found)


def check_torch_pair() -> Check:
    """Whether torch and torchvision were made for each other, by importing both."""
    name = "torch with torchvision"
    found = f"{_version('torch') or 'no torch'} with {_version('torchvision') or 'no torchvision'}"
    advice = "install the two from the same place: `pip install --force-reinstall torch torchvision`"
    # A mismatched pair fails in many ways when its compiled operators are registered.
    try:
        importlib.import_module("torch")
        importlib.import_module("torchvision")
    except Exception as error:
        return Check(name, False, f"{found}: {type(error).__name__}: {_first_line(error)}", advice)
    torch_version = _version("torch") or ""
    for wanted in map(Requirement, metadata.requires("torchvision") or []):
        if wanted.name == "torch" and not wanted.specifier.contains(torch_version, prereleases=True):
            return Check(name, False, f"{found}, which wants torch{wanted.specifier}", advice)
    return Check(name, True, found)


def check_cuda() -> Check:
    """The GPUs that torch can use."""
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [torch.cuda.get_device_name(i) for i in range(count)]
    except Exception as error:
        return Check("cuda", None, f"cannot be asked: {type(error).__name__}: {_first_line(error)}")
    if not names:
        return Check("cuda", None, "no GPU; searches run on the CPU")
    return Check("cuda", True, f"{count} x {', '.join(sorted(set(names)))}")


def check_threads() -> Check:
    """The processors this process may use, and the threads torch takes of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        import torch

        threads = torch.get_num_threads()
    except Exception:
        return Check("cpu", True, f"{cores} cores")
    if threads > cores:
        return Check("cpu", None, f"{cores} cores, {threads} torch threads", f"set OMP_NUM_THREADS={cores} or lower")
    return Check("cpu", True, f"{cores} cores, {threads} torch threads")


def check_ray() -> Check:
    """Whether Ray imports and has the programs that a local start runs."""
    advice = "`pip install --force-reinstall ray`; searches with --executor in-process run without it"
    try:
        ray = importlib.import_module("ray")
    except Exception as error:
        return Check("ray starts", False, f"{type(error).__name__}: {_first_line(error)}", advice)
    core = Path(str(ray.__file__)).parent / "core" / "src" / "ray"
    missing = [p for p in ("gcs/gcs_server", "raylet/raylet") if not os.access(core / p, os.X_OK)]
    if missing:
        return Check("ray starts", False, f"{ray.__version__} without {', '.join(missing)}", advice)
    return Check("ray starts", True, str(ray.__version__))


def check_mlflow() -> Check:
    """The version of MLflow and where its runs go unless --tracking-uri says otherwise."""
    found = _version("mlflow")
    if found is None:
        return Check("tracking", False, "no MLflow", "`pip install mlflow`")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return Check(
        "tracking", True, f"MLflow {found}, " + (masked_argument(uri) if uri else "SQLite in the study's folder")
    )


def check_digits() -> Check:
    """The handwritten digits that scikit-learn carries."""
    name = "data: digits"
    try:
        distribution = metadata.distribution("scikit-learn")
    except metadata.PackageNotFoundError:
        return Check(name, False, "no scikit-learn", "`pip install scikit-learn`")
    path = Path(str(distribution.locate_file("sklearn/datasets/data/digits.csv.gz")))
    if not path.is_file():
        return Check(name, False, "scikit-learn without its data", "`pip install --force-reinstall scikit-learn`")
    return Check(name, True, f"in scikit-learn {distribution.version}")


def check_fashion() -> Check:
    """Fashion-MNIST, looked for where training looks."""
    from fewstep.tasks.data import fashion_folder

    name = "data: fashion"
    folder = fashion_folder()
    if folder is None:
        advice = f"`apt install dataset-fashion-mnist`, or set {DATA_VARIABLE} to the folder of its .gz files"
        return Check(name, None, "not installed (needed to train on it only)", advice)
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    missing = [part for part in parts if not (folder / f"{part}-ubyte.gz").is_file()]
    if missing:
        return Check(name, False, f"{folder} without {', '.join(missing)}", "put all four .gz files in that folder")
    return Check(name, True, str(folder))


def check_inception() -> Check:
    """The weights that pytorch-fid's network needs, in torch's download folder."""
    try:
        from torch.hub import get_dir

        path = Path(get_dir()) / "checkpoints" / INCEPTION_FILE
    except Exception as error:
        return Check("inception weights", None, f"torch cannot be asked: {_first_line(error)}")
    if path.is_file():
        return Check("inception weights", True, str(path))
    advice = (
        f"pytorch-fid downloads them at first use; without a network, put {INCEPTION_FILE} from its releases "
        f"into {path.parent}"
    )
    return Check("inception weights", None, "not there (needed for --features inception only)", advice)


def check_zoo() -> Check:
    """The models that come with the package."""
    from fewstep.tasks.models.files import zoo_names

    names = zoo_names()
    if not names:
        return Check("zoo", False, "no model", "install fewstep again, or train the models: `make train-zoo`")
    return Check("zoo", True, ", ".join(names))


def check_folder(folder: Path) -> Check:
    """Whether runs can be written in this folder."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".fewstep-"):
            pass
    except OSError as error:
        return Check("working folder", False, f"{folder}: {error.strerror}", "give a writable one with --out")
    return Check("working folder", True, str(folder))


def check_disk(folder: Path) -> Check:
    """Whether the disk under this folder has room for a search's tables and images."""
    try:
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return Check("free disk", False, f"{folder}: {error.strerror}", "give another folder with --out")
    if free < NEEDED_FREE_GB:
        return Check("free disk", False, f"{free:.1f} GB", f"free {NEEDED_FREE_GB:.0f} GB, or give --out")
    return Check("free disk", True, f"{free:.1f} GB")


def diagnose(folder: Path | None = None) -> list[Check]:
    """All checks, in reading order; `folder` (default: the working directory) is where runs would go.

    Raises nothing: a check that fails in a way it did not foresee is a finding too.
    """
    where = Path.cwd() if folder is None else folder
    single: list[Callable[[], Check]] = [
        check_torch_pair,
        check_cuda,
        check_threads,
        check_ray,
        check_mlflow,
        check_digits,
        check_fashion,
        check_inception,
        check_zoo,
        lambda: check_folder(where),
        lambda: check_disk(where),
    ]
    return [check_python(), *check_packages(), *(_guarded(check) for check in single)]


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        name = getattr(check, "__name__", "check").removeprefix("check_")
        return Check(name, False, f"{type(error).__name__}: {_first_line(error)}", "see the message")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
