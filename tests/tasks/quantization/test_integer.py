"""Integers on the CPU do what their floating-point imitation does, up to values at the edges of their grids."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, EvaluationError, ModelError
from fewstep.tasks.quantization.integer import Features, IntegerNetwork
from fewstep.tasks.quantization.integer_graph import Body, check
from fewstep.tasks.quantization.network import caller

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Inputs = Callable[..., dict[str, Tensor]]
# Rounding makes the quantised networks jump where a sum ends a little higher or lower: about this much.
CLOSE = 0.03


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def build(network: Any, inputs: Inputs, kind: str = "unet", batches: tuple[int, ...] = (4,)) -> IntegerNetwork:
    pytest.importorskip("openvino")
    return IntegerNetwork.build(network, {name: value[4:8] for name, value in inputs(kind).items()}, batches)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("w8a8-naive-paper", "unet"),
        ("w8a8-naive-full", "unet"),
        ("w8a8-tfmq-full", "unet"),
        ("w4a8-naive-full", "unet"),
        ("w8a8-naive-released", "unet"),
        ("w8a8-naive-paper", "text"),
        ("w8a8-naive-full", "text"),
    ],
)
def test_agrees_with_the_reference(calibrated: Callable[..., Any], inputs: Inputs, name: str, kind: str) -> None:
    network, exact = calibrated(name, kind)
    data = inputs(kind)
    found = build(network, inputs, kind).run(**data)
    with torch.no_grad():
        reference, full = caller(network.module)(**data), caller(exact)(**data)
    assert relative(found, reference) < CLOSE
    # Not merely near: no further from full precision than the reference is.
    assert relative(found, full) < 1.2 * relative(reference, full) + 1e-3


@pytest.mark.parametrize(("name", "kind"), [("w8a8-naive-full", "unet"), ("w8a8-tfmq-paper", "unet")])
def test_the_graph_is_exact_before_it_is_compiled(
    calibrated: Callable[..., Any], inputs: Inputs, name: str, kind: str
) -> None:
    network, _ = calibrated(name, kind)
    example = inputs(kind)
    with torch.no_grad():
        features = Features(network, network.graph)
        body = Body(network, network.graph, features.widths)
        # Without the norm's other order of sums, every code has to be the same.
        for norm in [module for module in body.stand_ins if isinstance(module, nn.GroupNorm)]:
            del body.stand_ins[norm]
        rows = features(example["time"], example["labels"], len(example["x"]))
        assert relative(body(example["x"], rows), caller(network.module)(**example)) < CLOSE


def test_the_module_is_as_it_was(calibrated: Callable[..., Any], inputs: Inputs) -> None:
    network, _ = calibrated("w8a8-naive-full")
    data = inputs()
    with torch.no_grad():
        before = caller(network.module)(**data)
        build(network, inputs)
        assert torch.equal(caller(network.module)(**data), before)


def test_images_do_not_depend_on_their_batch(calibrated: Callable[..., Any], inputs: Inputs) -> None:
    network, _ = calibrated("w8a8-naive-paper")
    data = inputs()
    x, labels = data["x"], data["labels"]
    integers = build(network, inputs, batches=(1, 4))
    whole = integers(x, 500.0, labels).sample
    for first, last in ((0, 1), (3, 9), (5, 16)):
        found = integers(x[first:last], torch.tensor(500.0), labels[first:last]).sample
        assert torch.equal(found, whole[first:last])
    assert torch.equal(integers.run(x, torch.full((len(x),), 500.0), labels), whole)


def test_features_are_computed_once(calibrated: Callable[..., Any], inputs: Inputs) -> None:
    network, _ = calibrated("w8a8-tfmq-paper")
    integers, data = build(network, inputs), inputs()
    integers.run(**data)
    computed: list[float] = []
    compute = integers.features._compute
    integers.features._compute = lambda *key: computed.append(key[0]) or compute(*key)  # type: ignore
    integers.run(**data)
    assert not computed
    integers.run(data["x"], torch.tensor(123.0), data["labels"])
    assert computed == [123.0] * len(set(data["labels"].tolist()))


def test_without_a_trace_it_traces_itself(calibrated: Callable[..., Any], inputs: Inputs) -> None:
    network, _ = calibrated("w8a8-naive-paper")
    data = inputs()
    expected = build(network, inputs).run(**data)
    network.graph = None
    assert torch.equal(build(network, inputs).run(**data), expected)


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


def test_inputs_that_do_not_fit_are_refused(calibrated: Callable[..., Any], inputs: Inputs) -> None:
    network, _ = calibrated("w8a8-naive-paper")
    integers, data = build(network, inputs), inputs()
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
