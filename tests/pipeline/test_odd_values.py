"""Values that no option can have: refused before the work, in one line that names the option or the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.settings import SearchSettings
from fewstep.search_spaces.checked import LARGEST_SEED
from fewstep.tasks.worker import check_device

Run = Callable[..., Any]
SEARCH = "search --model digits-ddpm --dry-run"
EVALUATE = "evaluate --model digits-ddpm --schedule ddim@3"
REFINE = "refine ddim@3 --model digits-ddpm --dry-run"
TOO_LARGE = LARGEST_SEED + 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"{SEARCH} --nfe 6-3", "6-3"),
        (f"{SEARCH} --nfe 0", "0"),
        (f"{SEARCH} --nfe ²", "²"),
        (f"{SEARCH} --seed {TOO_LARGE}", TOO_LARGE),
        (f"{SEARCH} --seed -1", "-1"),
        (f"{SEARCH} --frechet-images 1", "frechet_images"),
        (f"{SEARCH} --report-images 1", "report_images"),
        (f"{SEARCH} --report-images 1000000000000", "report_images"),
        (f"{SEARCH} --set distance_images=1e12", "distance_images"),
        (f"{SEARCH} --set distance_images=0", "distance_images"),
        (f"{SEARCH} --set keep=nan", "keep"),
        (f"{SEARCH} --refine inf", "refine"),
        (f"{SEARCH} --budget nan", "budget"),
        (f"{SEARCH} --workers -1", "workers"),
        (f"{SEARCH} --device cuda:99", "cuda:99"),
        (f"{SEARCH} --device meta", "meta"),
        (f"{SEARCH} --decisions start,skips,start", "start"),
        (f"{SEARCH} --set grids=uniform-t-zero,uniform-t-zero", "uniform-t-zero"),
        (f"{SEARCH} --warm-start found.json,found.json", "found.json"),
        ("baseline --model digits-ddpm --out b --dry-run --presets ddim,ddim", "ddim"),
        (f"baseline --model digits-ddpm --out b --dry-run --seed {TOO_LARGE}", "seed"),
        (f"{REFINE} --parts times,times", "times"),
        (f"{REFINE} --seed {TOO_LARGE}", "seed"),
        (f"{REFINE} --limit 1000", "--limit"),
        (f"{REFINE} --distance moments --iterations 5", "--iterations"),
        (f"{REFINE} --distance moments --teacher ddim@9", "--teacher"),
        (f"{REFINE} --distance reference --images 64", "--images"),
        (f"{REFINE} --distance reference --teacher ddim@9", "--teacher"),
        ("edit apply --boundary b --out e --strengths nan", "nan"),
        ("edit apply --boundary b --out e --strengths 1,,2", "1,,2"),
        ("edit apply --boundary b --out e --strengths 1,1.0", "1,1.0"),
        ("edit fit --model digits-ddpm --data digits --attribute 3/8 --out e --svm-c nan", "C"),
        ("edit fit --model digits-ddpm --data digits --attribute 3/8 --out e --eta nan", "eta"),
        ("train digits-ddpm --device cuda:99", "cuda:99"),
    ],
)
def test_it_is_refused(run: Run, words: str, told: object) -> None:
    run(*words.split()).refused(told)


@pytest.mark.parametrize("words", [f"{EVALUATE} --seed {TOO_LARGE}", f"{EVALUATE} --images 1000000000000"])
def test_what_the_parser_refuses_names_the_option(run: Run, words: str) -> None:
    answer = run(*words.split())
    assert answer.code == 2
    assert f"'{words.split()[-2]}'" in answer.err


def test_the_largest_that_is_taken_fits_into_the_tables() -> None:
    """A report's seed is beyond the search's own, and a column of seeds has 64 bits."""
    assert SearchSettings.build(model="m", seed=LARGEST_SEED).report_seed < 2**63
    with pytest.raises(ConfigurationError):
        SearchSettings.build(model="m", seed=TOO_LARGE)


def test_a_device_that_computes_is_taken() -> None:
    check_device("cpu")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        check_device("meta")
