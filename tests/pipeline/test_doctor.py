"""What the doctor says of machines that lack something."""

from __future__ import annotations

import dataclasses
import gzip
import importlib
import os
import re
import shutil
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from fewstep.pipeline import doctor
from fewstep.pipeline.executors.base import AUTO, EXECUTORS, ExecutionSettings
from fewstep.tasks.data import bundled as data
from fewstep.tasks.models import files

MAKEFILE = Path(__file__).parents[2] / "Makefile"
FASHION_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def test_the_test_environment_is_healthy() -> None:
    checks = doctor.diagnose()
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    assert {"python", "torch", "torch with torchvision", "cuda", "cpu", "ray starts", "zoo"} <= set(names)
    failed = {check.name for check in checks if check.ok is False}
    assert failed <= {"zoo", "free disk", "data: fashion"}


def test_every_problem_comes_with_advice_and_a_check_is_frozen() -> None:
    for check in doctor.diagnose():
        assert check.found
        assert check.ok is not False or check.advice, check
        assert "\n" not in check.found + check.advice
    with pytest.raises(dataclasses.FrozenInstanceError):
        check.ok = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("version", "ok"),
    [((3, 10, 14), False), ((3, 11, 0), True), ((3, 13, 9), True), ((3, 14, 0), False), ((4, 0, 0), False)],
)
def test_python_versions(version: tuple[int, int, int], ok: bool) -> None:
    assert doctor.check_python(version).ok is ok


def test_a_package_that_is_old_or_missing_is_named_with_the_command_that_gets_it() -> None:
    assert doctor.check_package("numpy", SpecifierSet(">=1.0")).ok
    old = doctor.check_package("numpy", SpecifierSet(">=999"))
    assert old.ok is False
    assert metadata.version("numpy") in old.found
    assert old.advice == '`pip install "numpy>=999"`'
    missing = doctor.check_package("no-such-package-here", SpecifierSet(">=1"))
    assert (missing.ok, missing.found) == (False, "not installed")


def test_every_dependency_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {check.name for check in doctor.check_packages()}
    assert {"ray", "torch", "torchvision", "optuna", "mlflow", "dask", "pandas", "diffusers"} <= names
    assert "pytest" not in names  # an extra

    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    (only,) = doctor.check_packages()
    assert (only.name, only.ok) == ("fewstep", False)


def test_a_torchvision_that_wants_another_torch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy", "torch==0.1"])
    check = doctor.check_torch_pair()
    assert check.ok is False
    assert "wants torch==0.1" in check.found


def test_a_torchvision_that_does_not_import_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> types.ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist\nand a second line")

    monkeypatch.setattr(importlib, "import_module", broken)
    check = doctor.check_torch_pair()
    assert check.ok is False
    assert check.found.endswith("RuntimeError: operator torchvision::nms does not exist")


def test_a_ray_without_its_programs_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = types.SimpleNamespace(__file__=str(tmp_path / "__init__.py"), __version__="1.2.3")
    monkeypatch.setattr(importlib, "import_module", lambda name: fake)
    check = doctor.check_ray()
    assert check.ok is False
    assert "raylet" in check.found


def test_advice_names_only_executors_that_exist() -> None:
    named = re.findall(r"--executor ([\w-]+)", Path(doctor.__file__).read_text())
    assert named
    assert {ExecutionSettings(executor=name).executor for name in named} == set(named)


def test_a_tracking_address_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@runs.example.org")
    assert doctor.check_mlflow().found.endswith("https://***@runs.example.org")


def test_more_threads_than_cores_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    check = doctor.check_threads()
    assert check.ok is None
    assert "OMP_NUM_THREADS" in check.advice


def test_fashion_is_looked_for_where_training_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "FASHION_FOLDERS", ())
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    absent = doctor.check_fashion()
    assert absent.ok is None
    assert "apt install dataset-fashion-mnist" in absent.advice
    for part in FASHION_PARTS[:3]:
        (tmp_path / f"{part}-ubyte.gz").write_bytes(gzip.compress(b""))
    partial = doctor.check_fashion()
    assert partial.ok is False
    assert "t10k-labels-idx1" in partial.found
    (tmp_path / f"{FASHION_PARTS[3]}-ubyte.gz").write_bytes(gzip.compress(b""))
    assert doctor.check_fashion() == doctor.Check("data: fashion", True, str(tmp_path))


def test_inception_weights_are_looked_for_in_the_download_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch.hub

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    absent = doctor.check_inception()
    assert absent.ok is None
    assert str(tmp_path / "checkpoints") in absent.advice
    weights = tmp_path / "checkpoints" / doctor.INCEPTION_FILE
    weights.parent.mkdir()
    weights.touch()
    assert doctor.check_inception().ok


def test_the_name_of_the_inception_weights_is_pytorch_fids() -> None:
    from pytorch_fid import inception

    assert inception.FID_WEIGHTS_URL.endswith("/" + doctor.INCEPTION_FILE)


def test_the_zoo_lists_complete_entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "ZOO", tmp_path / "absent")
    assert doctor.check_zoo().ok is False
    monkeypatch.setattr(files, "ZOO", tmp_path)
    (tmp_path / "unfinished").mkdir()
    assert doctor.check_zoo().ok is False
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "model_index.json").write_text("{}")
    assert doctor.check_zoo() == doctor.Check("zoo", True, "toy")


def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    assert doctor.check_folder(tmp_path).ok
    assert list(tmp_path.iterdir()) == []
    missing = doctor.check_folder(tmp_path / "missing")
    assert missing.ok is False
    assert "--out" in missing.advice


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert doctor.check_folder(tmp_path).ok is False
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.check_disk(tmp_path / "missing").ok is False
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1_000_000))
    assert doctor.check_disk(tmp_path).ok is False


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_zoo() -> doctor.Check:
        raise OSError("the disk is gone")

    monkeypatch.setattr(doctor, "check_zoo", check_zoo)
    (zoo,) = [check for check in doctor.diagnose() if check.name == "zoo"]
    assert zoo.ok is False
    assert "the disk is gone" in zoo.found


# -- what it advises exists -------------------------------------------------------------------------------


def _options() -> dict[str, set[str]]:
    """Every option of every command, with the values that it takes where these are listed."""
    import typer

    from fewstep.pipeline import cli

    found: dict[str, set[str]] = {}
    group: Any = typer.main.get_command(cli.app)
    commands = [group.get_command(None, name) for name in group.list_commands(None)]
    commands += [inner for command in commands for inner in getattr(command, "commands", {}).values()]
    for command in commands:
        for option in command.params:
            for name in option.opts:
                found.setdefault(name, set())
    return found | {"--executor": {AUTO, *EXECUTORS.names}, "--features": {"auto", "inception"}}


def test_all_that_it_advises_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Options and their values, variables, commands and make's targets, of a machine where everything is amiss."""
    import torch
    import torch.hub

    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(metadata, "distribution", absent)
    monkeypatch.setattr(importlib, "import_module", absent)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(data, "FASHION_FOLDERS", ())
    monkeypatch.setattr(files, "ZOO", tmp_path / "absent")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1_000_000))
    checks = [doctor.check_python((3, 9, 0)), *doctor.diagnose(tmp_path / "missing")]
    told = [f"{check.found} {check.advice}" for check in checks if check.ok is not True]
    assert len(told) > 10
    options, targets = _options(), set(re.findall(r"^([\w-]+):", MAKEFILE.read_text(), re.MULTILINE))
    spoken = []
    for text in told:
        fewsteps = re.sub(r"`(pip|apt) [^`]*`", "", text)
        for option, value in re.findall(r"(--[\w-]+)(?: ([\w-]+))?", fewsteps):
            spoken.append(option)
            assert option in options, text
            assert not options[option] or value in options[option], text
        for target in re.findall(r"`make ([\w-]+)`", text):
            spoken.append(target)
            assert target in targets, text
    assert {"--out", "--executor", "--features", "setup", "train-zoo"} <= set(spoken)
