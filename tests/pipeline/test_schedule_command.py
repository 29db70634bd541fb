"""`fewstep schedule`: published files become our schedules, and nothing in a file is ever run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.errors import ConfigurationError, DataError, ScheduleError
from fewstep.pipeline import cli
from fewstep.pipeline.commands.schedule import import_schedules, load_safely, published_time
from fewstep.search_spaces.schedule import SolverSchedule, load_schedule
from fewstep.search_spaces.schedule.published import read_published
from fewstep.tasks.models.files import find_model
from fewstep.tasks.models.noise_families import EDM, FlowMatching
from fewstep.tasks.models.noise_schedule import ContinuousVP, DiscreteVP
from fewstep.tasks.sampling.compile import compile_schedule

VECTORS = Path(__file__).parents[1] / "data" / "usf_vectors.json"
NO_CORRECTOR = {"type": "no_corrector", "start_point": None, "taylor_order": None, "derivative_type": None}
MODEL = find_model("digits-ddpm")
Write = Callable[[Any], Path]


def estimate(*points: int, **more: Any) -> dict[str, Any]:
    return {"estimate": f"Difference_{len(points)}", "active_points": list(points), "relaxation": None} | more


def decisions(kind: str = "data_prediction", corrector: str = "pseudo", **changes: Any) -> dict[str, Any]:
    """Three steps as the published files have them: tensors, and NumPy's numbers here and there."""
    correction = {
        "type": corrector,
        "start_point": -2,
        "taylor_order": 3,
        "derivative_type": [estimate(-3, -1), estimate(-3, -1)],
    }
    return {
        "timesteps": torch.tensor([1.0, 0.6, 0.25, 0.001]),
        "orders": [1, 2, 2],
        "prediction_types": ["noise_prediction", kind, "data_prediction"],
        "start_points": [-1, -1, -1],
        "derivative_types": [
            [],
            [estimate(-2, relaxation="linear", relaxation_coefficient=np.float64(0.05))],
            [estimate(-2)],
        ],
        "corrector_types": [dict(NO_CORRECTOR), correction, dict(NO_CORRECTOR)],
        "afs": "no_afs",
        "skip_coefficients": torch.ones(12),
    } | changes


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def call(content: Any) -> Path:
        torch.save(content, tmp_path / "found.pth")
        return tmp_path / "found.pth"

    return call


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """The command line in this process, in a folder of its own: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["fewstep", "schedule", *map(str, arguments)])
        monkeypatch.setattr(cli.app, "registered_commands", [])
        monkeypatch.setattr(cli.app, "registered_groups", [])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def imported(path: Path, **choice: Any) -> list[SolverSchedule]:
    return import_schedules(path, MODEL.noise, "epsilon", **choice)


# -- what is read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: [d, np.float64(6.04)], lambda d: {"best": (d,)}])
def test_a_published_file_comes_back_with_every_decision(wrap: Callable[[Any], Any], write: Write) -> None:
    path = write(wrap(decisions("dpmsolver_v3_prediction", "implicit", afs="zero_x0")))
    (schedule,) = imported(path)
    assert [step.prediction for step in schedule.steps] == ["noise", "ems", "data"]
    assert schedule.lambdas[0] == MODEL.noise.lambda_start
    assert schedule.lambdas[-1] == MODEL.noise.lambda_end
    assert schedule.lambdas[1] == pytest.approx(MODEL.noise.lambda_at(599), abs=1e-5)
    assert schedule.steps[1].implicit
    assert schedule.steps[1].corrector is not None
    assert schedule.steps[1].corrector.derivatives[1].points == (-3, -1)
    assert schedule.steps[1].predictor.derivatives[0].coefficient == 0.05
    assert (schedule.first_call, schedule.skips, schedule.nfe) == ("zero_x0", (), 3)
    assert schedule.provenance["source"] == "found.pth"
    assert schedule.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert SolverSchedule.from_json(schedule.to_json()).provenance == schedule.provenance


def test_vectors_decisions_give_what_reading_them_gives() -> None:
    to_lambda = published_time(MODEL.noise)
    cases = json.loads(VECTORS.read_text())["cases"]
    found = imported(VECTORS)
    assert [s.hash for s in found] == [read_published(case["decisions"], to_lambda).hash for case in cases]
    assert [s.provenance["entry"] for s in found] == [f"cases[{i}].decisions" for i in range(len(cases))]
    assert [imported(VECTORS, index=i)[0].hash for i in range(len(cases))] == [s.hash for s in found]


def test_equal_schedules_count_once_and_one_can_be_chosen_by_its_calls(write: Write) -> None:
    path = write([decisions(), decisions(), decisions(afs="zero_x0")])
    assert [s.nfe for s in imported(path)] == [3, 2]
    assert [s.nfe for s in imported(path, nfe=2)] == [2]
    with pytest.raises(ConfigurationError, match=r"--nfe 7.*2, 3 calls"):
        imported(path, nfe=7)
    with pytest.raises(ConfigurationError, match="3 schedules, counted from 0"):
        imported(path, index=3)


def test_times_mean_what_the_models_noise_says() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    discrete = DiscreteVP(np.cumprod(1 - betas))
    at = published_time(discrete)
    for step in (0, 1, 499, 999):
        log_alpha = 0.5 * np.log1p(-betas[: step + 1]).sum()
        assert at((step + 1) / 1000) == pytest.approx(log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha)), abs=1e-9)
    continuous = ContinuousVP(scale=999.0)
    assert published_time(continuous)(0.3) == pytest.approx(continuous.lambda_at(0.3 * 999))
    assert published_time(continuous)(2e-4) > continuous.lambda_end
    edm = published_time(EDM(0.002, 80.0, 0.5))
    assert edm(float(np.float32(80.0))) == -np.log(80.0)
    assert edm(1.5) == pytest.approx(-np.log(1.5))
    with pytest.raises(ConfigurationError, match="FlowMatching"):
        published_time(FlowMatching())


@pytest.mark.parametrize("noise", [DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))), EDM(0.002, 80.0, 0.5)])
def test_a_hairs_breadth_from_an_end_is_that_end(noise: Any) -> None:
    low, high = (1e-3, 1.0) if isinstance(noise, DiscreteVP) else (0.002, 80.0)
    at = published_time(noise)
    for share in (1 - 1e-6, 1.0, 1 + 1e-6):
        assert at(high * share) == noise.lambda_start
        assert at(low * share) == noise.lambda_end
    assert at(0.97 * high) != noise.lambda_start


def test_what_needs_no_statistics_compiles(write: Write) -> None:
    (schedule,) = imported(write(decisions()))
    assert compile_schedule(schedule, MODEL.noise).nfe == schedule.nfe == 3


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timesteps": torch.tensor([80.0, 0.6, 0.25, 0.001])}, r"\[0\]: timesteps\[0\] = 80: outside.*0\.001 to 1"),
        ({"timesteps": torch.tensor([1.0, 0.6, 0.25, 0.0005])}, r"timesteps\[3\] = 0\.0005: outside"),
        ({"timesteps": torch.tensor([0.5, 0.4, 0.25, 0.001])}, r"timesteps\[0\].*for another model"),
        ({"timesteps": torch.tensor([1.0, 0.3, 0.29999, 0.001])}, "times out of order"),
        ({"orders": [1, 3, 2]}, r"orders\[1\] is 3"),
        ({"orders": torch.tensor([1.0, 2.5, 2.0])}, r"orders\[1\].*2\.5"),
        ({"corrector_types": None}, "corrector_types"),
        ({"afs": "warm"}, "afs is 'warm'"),
    ],
)
def test_an_entry_that_makes_no_schedule_is_named_with_its_place(
    changes: dict[str, Any], words: str, write: Write
) -> None:
    with pytest.raises(ScheduleError, match=words):
        imported(write([decisions(**changes), 1.0]))


def test_a_missing_key_is_named_with_its_place(write: Write) -> None:
    whole = decisions()
    del whole["orders"]
    with pytest.raises(ScheduleError, match=r"found\.pth at best\[0\]: .*'orders' is missing"):
        imported(write({"best": [whole]}))


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.recipe = function, arguments

    def __reduce__(self) -> Any:
        return self.recipe


@pytest.mark.parametrize("way", ["system", "exec", "eval", "getattr", "numpy object"])
def test_a_file_that_wants_to_run_something_is_refused_and_has_not_run(way: str, write: Write, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    harmful = {
        "system": Harmful(os.system, f"touch {mark}"),
        "exec": Harmful(exec, f"open({str(mark)!r}, 'w')"),
        "eval": Harmful(eval, f"open({str(mark)!r}, 'w')"),
        "getattr": Harmful(getattr, Harmful(__import__, "os"), "system"),
        "numpy object": np.array([Harmful(os.system, f"touch {mark}")], dtype=object),
    }[way]
    path = write(decisions(orders=[1, 2, harmful]))
    with pytest.raises(DataError, match=r"found\.pth asks for [\w.]+, which is neither .* nothing of it was run"):
        load_safely(path)
    with pytest.raises(DataError):
        imported(path)
    assert not mark.exists()
    # The same without torch's wrapping.
    path.write_bytes(pickle.dumps([decisions(), harmful]))
    with pytest.raises(DataError):
        imported(path)
    assert not mark.exists()
    # It is harmful: whoever trusts it runs it.
    if way == "system":
        pickle.loads(path.read_bytes())
        assert mark.exists()


def test_files_that_are_no_torch_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    with pytest.raises(DataError, match=r"bad\.pth"):
        imported(path)
    for content in (b"", b"no pickle at all", b"\x80\x04", pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.pth"):
            imported(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/other", "x")
    with pytest.raises(DataError, match=r"bad\.pth"):
        imported(path)


# -- the command line -----------------------------------------------------------------------------------


def test_import_writes_one_file_a_schedule_that_show_can_print(run: Any, write: Write, tmp_path: Path) -> None:
    path = write([decisions(), decisions(afs="zero_x0"), decisions("noise_prediction")])
    code, out, err = run("import", path, "--model", "digits-ddpm", "--out", "mine", "--json")
    assert code == 0, err
    shown = json.loads(out)["schedules"]
    assert [s["nfe"] for s in shown] == [3, 2, 3]
    files = [Path(s["file"]) for s in shown]
    assert [f.name for f in files[:2]] == ["nfe3.json", "nfe2.json"]
    assert len(set(files)) == 3
    assert [load_schedule(f).hash for f in files] == [s["hash"] for s in shown]
    code, out, _ = run("show", files[0])
    assert code == 0
    assert shown[0]["hash"] in out
    assert "pseudo corrector: order 3 from -2 (-3 -1, -3 -1)" in out
    assert "linear 0.05" in out
    assert "source: found.pth" in out
    code, out, _ = run("show", files[0], "--json")
    assert json.loads(out)["schedule"] == json.loads(files[0].read_text())


def test_one_output_file_takes_one_schedule(run: Any, write: Write) -> None:
    path = write([decisions(), decisions(afs="zero_x0", skip_coefficients=torch.full((12,), 0.9))])
    ask = ("import", path, "--model", "digits-ddpm", "--out", "one.json")
    code, _, err = run(*ask)
    assert code == 2
    assert "holds 2 schedules (of 3, 2 calls)" in err
    assert not Path("one.json").exists()
    assert run(*ask, "--nfe", 2)[0] == 0
    assert load_schedule("one.json").skips == pytest.approx((0.9,) * 12)
    assert run(*ask, "--index", 1, "--drop-skips")[0] == 0
    assert load_schedule("one.json").skips == ()


def test_errors_are_one_line(run: Any, write: Write) -> None:
    path = write(decisions(afs="warm"))
    for arguments in (
        ("import", path, "--model", "digits-ddpm"),
        ("import", "absent.pth", "--model", "digits-ddpm"),
        ("import", path, "--model", "absent"),
        ("show", path),
        ("show", "absent.json"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
