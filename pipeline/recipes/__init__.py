"""Named searches and grids: files that come with fewstep, to be run as they are or copied and changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.errors import ConfigurationError
from fewstep.pipeline.grid.settings import read_grid_file
from fewstep.pipeline.settings import SearchSettings
from fewstep.pipeline.study_file import read_study_file, search_settings

FOLDER = Path(__file__).parent
RECIPES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def recipe_fields(name: str) -> dict[str, Any]:
    """What the recipe of that name sets; ConfigurationError names the valid ones."""
    if name not in RECIPES:
        raise ConfigurationError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return read_study_file(FOLDER / f"{name}.toml")


def grid_recipe(name: str) -> dict[str, Any]:
    """What the grid of that name sets; ConfigurationError names the valid ones."""
    known = sorted(path.stem for path in (FOLDER / "grids").glob("*.toml"))
    if name not in known:
        raise ConfigurationError(f"unknown grid {name!r}: choose one of {', '.join(known)}")
    return read_grid_file(FOLDER / "grids" / f"{name}.toml")


def search_recipe(name: str) -> SearchSettings:
    """The settings of that recipe."""
    return search_settings(recipe_fields(name))
