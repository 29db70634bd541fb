"""OpenVINO, which turns a graph on quantised values into integer kernels.

Its low-precision passes look for products of activations on a grid of unsigned 8 bits and weights on a grid of
signed 8 bits. ONNX Runtime needs quantised outputs for its fast convolutions, which the reference has not; with
float outputs its integer convolution, like torch's own in a compiled graph, was slower than OpenVINO's.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, ModelError


def backend() -> Any:
    """The openvino package; ConfigurationError where it is not installed."""
    # The package reports to its makers when it is imported, unless it finds the part that does so missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        raise ConfigurationError(
            "integer inference needs OpenVINO, which is not installed: pip install 'fewstep[int8]'"
        ) from None
    return openvino


class Compiled:
    """A module for inputs of fixed shapes; ModelError where it cannot be converted."""

    def __init__(self, body: nn.Module, inputs: Sequence[Tensor], threads: int) -> None:
        model = _convert(body, inputs)
        settings = {
            # Otherwise some machines round the float operations between the products to 16 bits.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Pinned threads of several processes would share one core.
            "ENABLE_CPU_PINNING": False,
        }
        self._request = backend().Core().compile_model(model, "CPU", settings).create_infer_request()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output for inputs of the compiled shapes; a view that the next call overwrites."""
        arrays = [value.contiguous().numpy() for value in inputs]
        outputs = self._request.infer(arrays, share_inputs=True, share_outputs=True)
        return torch.from_numpy(next(iter(outputs.values())))


def _convert(body: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """The module as an OpenVINO model."""
    # These are the steps of `openvino.convert_model` without its reports.
    openvino = backend()
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        with warnings.catch_warnings(), torch.no_grad():
            # Python values become constants of the graph: that is what is wanted here.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(body, tuple(inputs), check_trace=False)  # type: ignore[no-untyped-call]
            # Named, since the front end keeps no reference to it.
            decoder = TorchScriptPythonDecoder(traced)
            front = FrontEndManager().load_by_framework("pytorch")
            model = front.convert(front.load(decoder))
        for port, value in zip(model.inputs, inputs, strict=True):
            port.get_node().set_partial_shape(openvino.PartialShape(list(value.shape)))
        model.validate_nodes_and_infer_types()
        # Without these the weights would be unfolded to floats. No constant folding, for the same reason.
        apply_moc_transformations(model, cf=False, smart_reshape=True)
    except Exception as error:  # The front end's errors have no class of their own.
        last = (str(error).strip() or type(error).__name__).split("\n")[-1]
        raise ModelError(f"the network cannot be converted for OpenVINO: {last}") from error
    return model
