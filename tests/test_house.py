"""The house holds together: packages, wheel, import names, Makefile, cluster file."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("dashboards", "pipeline", "search_spaces", "storage", "tasks")
ZOO = ROOT / "tasks" / "models" / "zoo"


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _python_folders(package: Path) -> list[Path]:
    """The package's folder and those in it that hold Python files, links followed, zoo data left out."""
    found = [package]
    for child in sorted(package.iterdir()):
        if child.is_dir() and child.name not in ("__pycache__", "zoo"):
            found += _python_folders(child)
    return [folder for folder in found if any(folder.glob("*.py"))]


def _run(*command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_the_package_list_equals_the_folders() -> None:
    folders = _python_folders(ROOT / "fewstep")
    names = sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)
    assert sorted(_project()["tool"]["setuptools"]["packages"]) == names
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_working_folders_are_linked_into_the_package() -> None:
    for name in FOLDERS:
        link = ROOT / "fewstep" / name
        assert link.is_symlink(), f"{link} must be a link to ../{name}"
        assert os.readlink(link) == f"../{name}"


def test_bare_folder_names_are_no_modules() -> None:
    code = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) for n in sys.argv[1:]))"
    _run(sys.executable, "-P", "-c", code, *FOLDERS, cwd=Path("/"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that nothing of an earlier build is in it."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("fewstep", *FOLDERS):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy)
    out = tmp_path_factory.mktemp("wheel")
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    _run(sys.executable, "-P", "-m", "pip", "wheel", *flags, "-w", str(out), str(copy), cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_adds_only_fewstep(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"fewstep"}
    assert "fewstep/py.typed" in names
    for package in _project()["tool"]["setuptools"]["packages"]:
        assert package.replace(".", "/") + "/__init__.py" in names
    packed = {name for name in names if name.endswith(".py")}
    sources = {
        str(path.relative_to(ROOT)) for folder in _python_folders(ROOT / "fewstep") for path in folder.glob("*.py")
    }
    assert packed == sources


def test_the_wheel_carries_the_data_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    zoo = [p for p in ZOO.rglob("*") if p.is_file()] if ZOO.is_dir() else []
    templates = [p for p in (ROOT / "dashboards" / "templates").glob("*") if p.is_file()]
    recipes = list((ROOT / "pipeline" / "recipes").glob("*.toml"))
    assert recipes
    data = zoo + templates + recipes
    expected = {"fewstep/" + str(path.relative_to(ROOT)) for path in data if path.name[0] != "."}
    assert expected - names == set()


def test_the_wheel_imports_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(place)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import fewstep, fewstep.errors, fewstep.search_spaces, fewstep.storage, fewstep.pipeline.doctor;"
        "print(fewstep.__file__); print(fewstep.__version__)"
    )
    result = _run(sys.executable, "-P", "-c", code, cwd=elsewhere, PYTHONPATH=str(place))
    file, version = result.stdout.split()
    assert Path(file).is_relative_to(place)
    assert wheel.name.startswith(f"fewstep-{version}-")


def test_every_dependency_has_a_fixed_version() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    fixed = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            fixed[canonicalize_name(requirement.name)] = specifier.version
    project = _project()["project"]
    extras = project["optional-dependencies"]
    for text in project["dependencies"] + extras["dev"] + extras["docs"]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in fixed, f"{name} has no line in constraints.txt"
        assert requirement.specifier.contains(fixed[name]), f"{text} refuses the fixed {fixed[name]}"
    assert not [name for name in fixed if name.startswith(("nvidia-", "cuda-")) or name == "triton"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_every_make_target_in_the_help_exists() -> None:
    listed = re.findall(r"^  make ([a-z-]+) ", _run("make", "help", cwd=ROOT).stdout, re.MULTILINE)
    wanted = {"setup", "demo", "docs", "test", "check", "bench", "train-zoo", "clean", "help"}
    assert wanted <= set(listed)
    _run("make", "--dry-run", *listed, cwd=ROOT)


def _arrows(package: str) -> dict[str, set[str]]:
    """Which modules of a folder each of its modules imports when it runs, inside functions too."""
    paths = {".".join(("fewstep", *path.relative_to(ROOT).with_suffix("").parts)): path for path in _modules(package)}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    arrows: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        tree = ast.parse(path.read_text())
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing_only:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
                arrows[name] |= inner or {node.module} & modules.keys()
        arrows[name].discard(name)
    return arrows


def _modules(package: str) -> list[Path]:
    return [path for folder in _python_folders(ROOT / package) for path in folder.glob("*.py")]


@pytest.mark.parametrize("package", FOLDERS)
def test_no_folder_has_a_circle(package: str) -> None:
    sorter = graphlib.TopologicalSorter(_arrows(package))
    assert len(list(sorter.static_order())) == len(_arrows(package))


def test_the_pipeline_has_few_floors() -> None:
    arrows = _arrows("pipeline")
    floors: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(arrows).static_order():
        floors[name] = 1 + max((floors[other] for other in arrows[name]), default=0)
    assert max(floors.values()) <= 8, sorted(floors.items(), key=lambda entry: entry[1])[-5:]


def test_tests_are_no_package() -> None:
    assert sorted((ROOT / "tests").rglob("__init__.py")) == []
