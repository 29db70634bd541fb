"""What tests of editing share: the digits model's denoiser, and small subjects."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.tasks.editing.bench import Bench, make_bench
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model


@pytest.fixture(scope="session")
def digits() -> Denoiser:
    """The bundled model of 8x8 digits."""
    return Denoiser(find_model("digits-ddpm"))


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Nines against fours, with everything small."""
    subject = EditSubject.build(
        model="digits-ddpm",
        data="digits",
        attribute="nine",
        fit_way="dpm-solver-2m/uniform-t@8",
        examples=40,
        judge="train",
        judge_steps=120,
    )
    return make_bench(subject, Path(tmp_path_factory.mktemp("edits")))
