"""Every family of diffusers pipelines: loaded, searched, exported, and sampled by the pipeline itself.

    python -m benchmarks.families [NAME[@STRENGTH] ...] [--csv docs/results]

Each is a tiny pipeline of diffusers' own classes with random weights. A search with smaller sizes finds a
schedule; the exported scheduler goes into a fresh pipeline, which is called with the noise of `fewstep sample`.
Compared are the images: the largest difference of a pixel, of 0 to 1. The weights are random, so distances say nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import fewstep
from benchmarks.tables.engine import Sheet
from fewstep.errors import FewstepError
from fewstep.files import write_text
from fewstep.pipeline.view import StudyView
from fewstep.search_spaces.point import as_point
from fewstep.tasks.models.classifier import SmallClassifier
from fewstep.tasks.sampling.noise import starting_noise
from fewstep.tasks.work import WorkerSettings
from fewstep.tasks.worker import Worker

TINY = Path(__file__).parents[1] / "tests" / "tasks" / "models" / "families.py"
NFE, SEED, IMAGES = 3, 0, 2
SIZES = {"frechet_images": 40, "look_images": 8, "report_images": 40, "finalist_images": 40, "refine": 0.2}
BUDGET = 1_500
# Of pipelines that begin with an image, besides all noise.
STRENGTH = 0.6
REFERENCE_IMAGES = 64


def families() -> Any:
    """The module of tiny pipelines."""
    name = "fewstep_tiny_families"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TINY)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def judged_by(root: Path, channels: int, size: int) -> dict[str, str]:
    """An untrained feature network and images of noise, for models of that size."""
    features, reference = root / f"features-{channels}-{size}", root / f"reference-{channels}-{size}"
    if not reference.is_dir():
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            SmallClassifier(channels, size, 10).eval().save(features)
        reference.mkdir()
        draw = np.random.default_rng(SEED)
        for i in range(REFERENCE_IMAGES):
            pixels = draw.integers(0, 256, (size, size, channels), np.uint8)
            Image.fromarray(pixels.squeeze()).save(reference / f"{i}.png")
    return {"features": str(features), "reference": str(reference)}


@contextmanager
def drawing(pipe: Any, noise: torch.Tensor) -> Iterator[None]:
    """While a pipeline draws its starting noise: this one."""
    module = sys.modules[type(pipe).__module__]
    own = module.randn_tensor

    def drawn(*arguments: Any, **named: Any) -> torch.Tensor:
        own(*arguments, **named)
        return noise.clone()

    with patch.object(module, "randn_tensor", drawn):
        yield


def own_images(
    family: Any, pipe: Any, noise: torch.Tensor, said: dict[str, float]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What a pipeline makes of the noise by its own call; of videos frame i mod F of video i."""
    takes = inspect.signature(pipe.__call__).parameters
    more: dict[str, Any] = {"generator": [torch.Generator().manual_seed(i) for i in range(IMAGES)], **said}
    if "class_labels" in takes:
        more["class_labels"] = list(range(IMAGES))
    if "guidance_scale" in takes and "guidance_scale" not in family.arguments():
        more["guidance_scale"] = 1.0
    if "latents" in takes and not said:
        made = families().run(family, pipe, NFE, latents=noise.clone(), **more)
    else:
        with drawing(pipe, noise):
            made = families().run(family, pipe, NFE, **more)
    if made.ndim == 5:
        made = np.stack([video[i % len(video)] for i, video in enumerate(made)])
    return np.asarray(made, np.float32)


def row(name: str, root: Path) -> dict[str, Any]:
    """One family: what happened to it."""
    tiny = families()
    name, _, strength = name.partition("@")
    said = {"strength": float(strength)} if strength else {}
    family, pipe, folder = tiny.FAMILIES[name], tiny.build(name), root / f"{name}{strength}"
    found: dict[str, Any] = {"family": name, "pipeline": type(pipe).__name__, "strength": strength}
    found |= dict.fromkeys(("sampled_by", "found", "exported", "largest_difference", "refused"), "")
    pipe.save_pretrained(folder)
    try:
        asked = tiny.conditions(family, root, **said)
        worker = Worker(WorkerSettings(fewstep_subject(folder, asked)))
        files = worker.files
        found["sampled_by"] = "pipeline" if files.piped else "executor"
        study = searched(folder, asked, root, judged_by(root, files.channels, files.size))
        best = study.best(NFE)
        found["found"] = best.origin
        ours = worker.render(as_point(best.schedule), SEED, 0, IMAGES)
        fresh = DiffusionPipeline.from_pretrained(str(folder))
        fresh.scheduler = best.scheduler(fresh.scheduler)
        found["exported"] = best.schedule.nfe
        theirs = own_images(family, fresh, starting_noise(SEED, 0, IMAGES, worker.shape), said)
        found["largest_difference"] = float(np.abs((ours.permute(0, 2, 3, 1).numpy() + 1) / 2 - theirs).max())
    except FewstepError as error:
        found["refused"] = str(error)
    return found


def fewstep_subject(folder: Path, asked: Any) -> Any:
    """The model under its conditions."""
    from fewstep.tasks.work import Subject

    return Subject(str(folder), "inception", conditions=asked)


def searched(folder: Path, asked: Any, root: Path, judges: dict[str, str]) -> StudyView:
    """A search with few evaluations."""
    return fewstep.search(
        folder,
        nfe=NFE,
        budget=BUDGET,
        out=root / "studies" / folder.name,
        executor="in-process",
        progress=False,
        conditions=asked,
        **judges,
        **SIZES,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and with --csv write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="families [all]")
    parser.add_argument("--csv", type=Path, help="folder for families.csv")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        known = families().FAMILIES
        every = [*known, *(f"{name}@{STRENGTH}" for name, family in known.items() if family.strength)]
        for name in given.names or every:
            rows.append(row(name, Path(root)))
            print(rows[-1], flush=True)
    if given.csv:
        text = Sheet("families", rows, {"search": SEED}).csv("python -m benchmarks.families")
        print(write_text(given.csv / "families.csv", text))


if __name__ == "__main__":
    main()
