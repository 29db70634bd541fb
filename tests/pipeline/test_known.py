"""What others have evaluated is found by its key, whoever still writes there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import ConfigurationError
from fewstep.pipeline.known import Known
from fewstep.storage.store import Store


def test_complete_evaluations_of_others_are_known(tmp_path: Path, make_evaluation: Callable[..., Any]) -> None:
    own, other = Store(tmp_path / "own"), Store(tmp_path / "other")
    ours, beside = make_evaluation(0, study="mine"), make_evaluation(1, study="beside")
    own.evaluations.append([ours])
    own.evaluations.append([beside])
    away = [make_evaluation(i) for i in range(2, 8)]
    failed = make_evaluation(8, status="failed", value=None, error="no")
    for record in [*away, failed]:
        other.evaluations.append([record])
    known = Known(own, "mine", (str(tmp_path / "oth*"), str(tmp_path / "own")))
    keys = [r.key for r in (ours, beside, *away, failed)]
    expected = {r.key: r for r in (beside, *away)}
    assert known.records([*keys, "nobody's"]) == expected
    # Its writer merges files after they were listed, and goes on.
    assert other.evaluations.compact()
    assert known.records(keys) == expected
    seconds, calls = sum(r.seconds for r in [*away, failed]), sum(r.denoiser_calls for r in [*away, failed])
    assert known.paces() == {("model-1", "frechet"): (pytest.approx(seconds), calls)}


def test_a_folder_without_evaluations_is_refused(tmp_path: Path) -> None:
    for folder in ("nowhere", str(tmp_path), str(tmp_path / "*")):
        with pytest.raises(ConfigurationError, match="holds no evaluations"):
            Known(Store(tmp_path / "own"), "mine", (folder,))
