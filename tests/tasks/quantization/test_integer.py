"""Integers on the CPU do what their floating-point imitation does, up to values at the edges of their grids."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, EvaluationError, ModelError
from fewstep.tasks.quantization.integer import IntegerNetwork
from fewstep.tasks.quantization.integer_graph import Body, check, replaced
from fewstep.tasks.quantization.network import caller

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Inputs = Callable[..., dict[str, Tensor]]
# Rounding makes the quantised networks jump where a sum ends a little higher or lower: about this much.
CLOSE = 0.03


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def build(network: Any, inputs: Inputs, kind: str = "unet", batches: tuple[int, ...] = (4,)) -> IntegerNetwork:
    # Not importorskip: the package is to be imported by our own code only, which keeps it from reporting.
    if find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    return IntegerNetwork.build(network, {name: value[4:8] for name, value in inputs(kind).items()}, batches)


_paper: list[Any] = []


@pytest.fixture
def paper(calibrated: Callable[..., Any], inputs: Inputs) -> tuple[Any, nn.Module, IntegerNetwork]:
    """A network that no test changes, its twin in full precision, and its integers; compiled once."""
    if not _paper:
        network, exact = calibrated("w8a8-naive-paper")
        _paper.extend([network, exact, build(network, inputs, batches=(1, 4))])
    network, exact, integers = _paper
    return network, exact, integers


def agrees(network: Any, exact: nn.Module, integers: IntegerNetwork, data: dict[str, Tensor]) -> None:
    """The integers follow the reference, and are no further from full precision than it is."""
    found = integers.run(**data)
    with torch.no_grad():
        reference, full = caller(network.module)(**data), caller(exact)(**data)
    assert relative(found, reference) < CLOSE
    assert relative(found, full) < 1.2 * relative(reference, full) + 1e-3


def test_agrees_with_the_reference(paper: Any, inputs: Inputs) -> None:
    agrees(*paper, inputs())


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("w8a8-naive-full", "unet", {}),
        ("w4a8-tfmq-released", "unet", {"fsc": "tib"}),
        ("w8a8-tfmq-full", "text", {"tib": "table", "fsc": "tib"}),
    ],
)
def test_agrees_for_other_coverages_and_kinds(
    calibrated: Callable[..., Any], inputs: Inputs, name: str, kind: str, changes: dict[str, Any]
) -> None:
    network, exact = calibrated(name, kind, **changes)
    before = caller(network.module)(**inputs(kind))
    agrees(network, exact, build(network, inputs, kind), inputs(kind))
    assert torch.equal(caller(network.module)(**inputs(kind)), before), "the reference was changed"


def test_the_graph_is_exact_before_it_is_compiled(paper: Any, inputs: Inputs) -> None:
    network, _, integers = paper
    data, widths = inputs(), integers.features.widths
    seen: dict[str, Tensor] = {}
    block = {network.layers[name]: lambda *_, name=name: seen[name] for name in widths}
    with torch.no_grad():
        body = Body(network, network.graph, widths)
        # The norm adds in another order, which would move codes.
        for norm in [module for module in body.stand_ins if isinstance(module, nn.GroupNorm)]:
            del body.stand_ins[norm]
        rows = integers.features(data["time"], data["labels"], len(data["x"]))
        seen.update(zip(widths, torch.split(rows, list(widths.values()), 1), strict=True))
        found = body(data["x"], rows)
        with replaced(block):
            assert relative(found, caller(network.module)(**data)) < 1e-5


def test_nothing_is_reported(paper: Any) -> None:
    assert sys.modules["openvino_telemetry"] is None


def test_images_do_not_depend_on_their_batch(paper: Any, inputs: Inputs) -> None:
    _, _, integers = paper
    x, labels = inputs()["x"], inputs()["labels"]
    whole = integers(x, 500.0, labels).sample
    for first, last in ((0, 1), (3, 9), (5, 16)):
        found = integers(x[first:last], torch.tensor(500.0), labels[first:last]).sample
        assert torch.equal(found, whole[first:last])
    assert torch.equal(integers.run(x, torch.full((len(x),), 500.0), labels), whole)


def test_features_are_computed_once(paper: Any, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, _, integers), data = paper, inputs()
    integers.run(**data)
    computed: list[float] = []
    compute = integers.features._compute
    monkeypatch.setattr(integers.features, "_compute", lambda *key: computed.append(key[0]) or compute(*key))
    integers.run(**data)
    assert not computed
    integers.run(data["x"], torch.tensor(123.0), data["labels"])
    assert computed == [123.0] * len(set(data["labels"].tolist()))


def test_without_a_trace_it_traces_itself(calibrated: Callable[..., Any], paper: Any, inputs: Inputs) -> None:
    network, _ = calibrated("w8a8-naive-paper")
    network.graph = None
    assert torch.equal(build(network, inputs).run(**inputs()), paper[2].run(**inputs()))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("w8a6-naive-paper", {}, "6-bit activations"),
        ("w8a32-naive-paper", {}, "32-bit activations"),
        ("w8a8-naive-paper", {"granularity": "token"}, "at run time"),
        ("w8a8-naive-paper", {"fsc": "all"}, "a grid for each timestep"),
    ],
)
def test_what_integers_do_not_hold_is_refused(
    calibrated: Callable[..., Any], name: str, changes: dict[str, Any], message: str
) -> None:
    network, _ = calibrated(name, **changes)
    with pytest.raises(ModelError, match=message):
        check(network, network.graph)


def test_a_network_without_ranges_is_refused(wrapped: Callable[..., Any]) -> None:
    network, _ = wrapped("w8a8-naive-paper")
    with pytest.raises(ModelError, match="calibrate the network"):
        check(network, network.graph)


def test_a_network_that_reads_the_timestep_elsewhere_is_refused(calibrated: Callable[..., Any], inputs: Inputs) -> None:
    network, _ = calibrated("w8a8-naive-paper")
    network.module.register_forward_hook(lambda _, given, output: _scaled(output, network.clock.time))
    with pytest.raises(ModelError, match="off its reference"):
        build(network, inputs)


def _scaled(output: Any, time: Tensor) -> Any:
    output.sample = output.sample * (1 + time.reshape(-1, 1, 1, 1) / 100)
    return output


def test_inputs_that_do_not_fit_are_refused(paper: Any, inputs: Inputs) -> None:
    (_, _, integers), data = paper, inputs()
    with pytest.raises(EvaluationError, match="takes labels"):
        integers(data["x"], 1.0)
    with pytest.raises(EvaluationError, match="3 labels for 4 images"):
        integers(data["x"][:4], 1.0, data["labels"][:3])


def test_batches_are_checked(calibrated: Callable[..., Any], inputs: Inputs) -> None:
    network, _ = calibrated("w8a8-naive-paper")
    with pytest.raises(ModelError, match="batch sizes"):
        build(network, inputs, batches=())


def test_says_what_to_install(calibrated: Callable[..., Any], inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = calibrated("w8a8-naive-paper")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigurationError, match="pip install"):
        IntegerNetwork.build(network, inputs())
