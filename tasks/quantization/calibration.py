"""Calibrate: round the weights, find the ranges, and keep every finished part on disk.

Order: the temporal information block (TIAR), then units in forward order on inputs of the already quantised
part, then the ranges of activations. A killed calibration goes on after the last unit that was finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import DataError, EvaluationError, ModelError
from fewstep.search_spaces.quantization import FULL_PRECISION, QuantizationConfig
from fewstep.tasks.quantization.kept import Kept
from fewstep.tasks.quantization.memory import BATCH
from fewstep.tasks.quantization.network import QuantizedNetwork
from fewstep.tasks.quantization.rounding import RoundingPlan, learn_rounding
from fewstep.tasks.quantization.sequential import Sequential
from fewstep.tasks.quantization.shelf import Shelf
from fewstep.tasks.quantization.table import TimeTable
from fewstep.tasks.quantization.time_block import BlockFit
from fewstep.tasks.quantization.tracing import TimeBlock, layer_of
from fewstep.tasks.quantization.trajectories import Batch, batches, moments_of_block
from fewstep.tasks.quantization.units import Unit, find_units, passes, unit_loss

Progress = Callable[[str, int, int], None]
# Rows of TIAR's batches where the domain has more.
TIAR_ROWS = 256
SCHEMA_VERSION = 2


def rounding_key(config: QuantizationConfig, identity: str) -> str:
    """Names what the rounding of weights depends on: activations have no part in it."""
    same = config.model_copy(
        update={
            "activation_bits": FULL_PRECISION,
            "activation_range": "ema",
            "granularity": "tensor",
            "momentum": 0.95,
            "percentile": 99.9,
            "matmuls": False,
            "fsc": "none",
        }
    )
    return _key(same, identity)


def _key(config: QuantizationConfig, identity: str) -> str:
    return hashlib.sha256(f"{SCHEMA_VERSION}\n{identity}\n{config.model_dump_json()}".encode()).hexdigest()[:16]


class Calibration:
    """The calibration of one network on given data. `folder` keeps what is finished; `identity` names the data.

    `domain` is all that the temporal information block is fitted on, time (R,) and labels (R,) if any; without it, what
    the data hold. `batch` rows go through the network at a time.

    Raises EvaluationError for data that are not finite, DataError where what the folder keeps is damaged.
    """

    def __init__(
        self,
        network: QuantizedNetwork,
        data: Batch,
        folder: Path | None = None,
        identity: str = "",
        progress: Progress | None = None,
        domain: Batch | None = None,
        batch: int = BATCH,
    ) -> None:
        self.network, self.config, self.data, self.batch = network, network.config, data, batch
        self.domain = moments_of_block(data) if domain is None else domain
        self.progress = progress or (lambda _, __, ___: None)
        self.losses: dict[str, float] = {}
        if not all(bool(torch.isfinite(value).all()) for value in data.values()):
            raise EvaluationError("the calibration data are not finite: use a schedule that does not explode")
        solver = self.config.solver
        # Fitted layers know their activations too: there everything in the config counts.
        fitted = self._file(folder, f"descent-{_key(self.config, identity)}")
        self._fitted = Kept(fitted if solver != "adaround" else None)
        alone = rounding_key(self.config, identity) if solver == "adaround" else _key(self.config, identity)
        rounded = self._file(folder, f"rounding-{alone}")
        self._kept = Kept(rounded if solver != "descent" else None)
        self._restore()

    def run(self) -> None:
        """Everything; the network is then quantised, switched on and ready."""
        self.rounding()
        self.ranges()

    # -- weights --------------------------------------------------------------------------------------

    def rounding(self) -> None:
        """Learn the rounding of all weights, unit by unit."""
        config, network = self.config, self.network
        if config.solver == "descent":
            self._descend()
            return
        units = []
        if config.reconstruction != "none" and config.weight_bits != FULL_PRECISION:
            units = find_units(network, config.reconstruction == "block", config.tib == "layers")
        count, done = len(units) + 1, 0
        network.detach()
        network.switch(weights=False, activations="off")
        if config.tib in ("tiar", "table") and network.time_layers:
            if config.solver == "hybrid":
                Sequential(network, self._mixed(), self._fitted, self.batch).fit_time_block(self.domain)
            else:
                self._tiar()
                self._keep(network.time_layers)
        if config.tib == "table" and network.time_layers:
            self._tabulate()
        if config.tib != "layers":
            network.switch(weights=True, names=network.time_layers)
        done += 1
        self.progress("rounding", done, count)
        for unit in units:
            if not all(name in self._kept for name in self._names(unit)):
                self._reconstruct(unit)
                self._keep(self._names(unit))
            for layer in unit.layers:
                layer.on = True
            done += 1
            self.progress("rounding", done, count)
        network.switch(weights=True)

    def _descend(self) -> None:
        """The same by integer least squares, layer after layer; ranges of activations are found with it."""
        config, network = self.config, self.network
        network.detach()
        network.switch(weights=False, activations="off")
        fit, apart = Sequential(network, self._mixed(), self._fitted, self.batch), config.tib != "layers"
        rest = [name for name in fit.order if not apart or network.plans[name].role != "time"]
        rest = rest if config.reconstruction != "none" else []
        done, count = 0, len(rest) + 1

        def show() -> None:
            nonlocal done
            done += 1
            self.progress("rounding", done, count)

        table = None
        if apart and network.time_layers:
            if config.tib == "table":
                self._tabulate()
                table = network.table
                network.detach()
            if config.tib != "nearest":
                fit.fit_time_block(self.domain)
            network.switch(weights=True, names=network.time_layers)
        show()
        fit.fit_layers(rest, show)
        if table is not None:
            network.attach(table)
        network.switch(weights=True)

    def _tiar(self) -> None:
        """TIAR (section 4.2) on every timestep and label of the domain, in one batch or in random ones of TIAR_ROWS."""
        network, config, given = self.network, self.config, self.domain
        assert network.graph is not None
        learned = {n: network.layers[n] for n in network.time_layers if network.plans[n].bits != FULL_PRECISION}
        if not learned or all(name in self._kept for name in learned):
            return
        block, rows = TimeBlock(network.graph, network.layers), len(given["time"])
        target = self.time_features(block, given)
        network.switch(weights=True, names=learned)

        def loss(iteration: int) -> Tensor:
            wanted, inputs = target, given
            if rows > TIAR_ROWS:
                rng = torch.Generator().manual_seed(config.seed * 1_000_003 + iteration)
                index = torch.randint(0, rows, (TIAR_ROWS,), generator=rng).to(given["time"].device)
                wanted, inputs = ({k: v[index] for k, v in found.items()} for found in (target, given))
            found = block(inputs)
            return torch.stack([(found[n] - wanted[n]).square().sum(1).mean() for n in wanted]).sum()

        plan = RoundingPlan(config.tiar_iterations, config.tiar_rate, config.rounding_weight, config.warmup)
        losses = learn_rounding(list(learned.values()), loss, plan)
        self.losses["time"] = losses[-1] if losses else float("nan")

    @torch.no_grad()
    def time_features(self, block: TimeBlock, given: Batch) -> dict[str, Tensor]:
        """The block's outputs in full precision."""
        self.network.switch(weights=False, activations="off", names=self.network.time_layers)
        return block(given)

    def _tabulate(self) -> None:
        network = self.network
        assert network.graph is not None
        block, given = TimeBlock(network.graph, network.layers), moments_of_block(self.data)
        outputs: dict[str, Tensor] = {}
        for call, value in self.time_features(block, given).items():
            known = outputs.setdefault(layer_of(call), value)
            if not torch.equal(known, value):
                raise ModelError(f"layer {layer_of(call)} gives two temporal features: write tib tiar, not table")
        network.attach(TimeTable(given["time"], given.get("labels"), outputs))

    def _reconstruct(self, unit: Unit) -> None:
        network, config = self.network, self.config
        states = {name: layer.on for name, layer in network.layers.items()}
        rows = min(self.batch, len(self.data["x"]))
        with Shelf(None if self._kept.path is None else self._kept.path.parent) as shelf:
            inputs = shelf.joined("inputs", passes(network, unit, self.data, self.batch, outputs=False), rows)
            network.switch(weights=False)
            for output in passes(network, unit, self.data, self.batch, outputs=True):
                shelf.put("outputs", output[0] if isinstance(output, tuple) else output)
            for name, layer in network.layers.items():
                layer.on = states[name]
            for layer in unit.layers:
                layer.on = True
            seed = config.seed + int(hashlib.sha256(unit.name.encode()).hexdigest()[:6], 16)
            loss = unit_loss(network, unit, inputs, shelf.rows("outputs"), self.data, config.batch, seed)
            plan = RoundingPlan(config.iterations, config.rate, config.rounding_weight, config.warmup)
            losses = learn_rounding(unit.layers, loss, plan)
        self.losses[unit.name] = losses[-1] if losses else float("nan")

    # -- activations ----------------------------------------------------------------------------------

    def ranges(self) -> None:
        """Find all ranges of activations on the network with quantised weights."""
        network, config = self.network, self.config
        if network.quantizers:
            fitted = {name: q for name, q in network.quantizers.items() if q.scale.numel()}
            grids = {name: (q.scale, q.zero, q.times) for name, q in fitted.items()}
            # Where every grid is one timestep's, that timestep's images are best seen together.
            network.observe(batches(self.data if config.fsc == "all" else self._mixed(), self.batch))
            for name, quantizer in fitted.items():
                quantizer.set_grids(*grids[name])
            if config.fsc != "none" and not fitted.keys() & set(network.time_layers):
                table = network.table
                network.detach()
                BlockFit(network, self.domain).ranges()
                if table is not None:
                    network.attach(table)
        self.progress("ranges", 1, 1)

    def _mixed(self) -> Batch:
        """The data interleaved, so that a moving average does not remember the last timesteps alone."""
        order = torch.randperm(len(self.data["x"]), generator=torch.Generator().manual_seed(self.config.seed))
        order = order.to(self.data["x"].device)
        return {name: value[order] for name, value in self.data.items()}

    # -- disk -----------------------------------------------------------------------------------------

    @staticmethod
    def _file(folder: Path | None, name: str) -> Path | None:
        return None if folder is None else folder / f"{name}.safetensors"

    def _names(self, unit: Unit) -> list[str]:
        ours = {id(layer): name for name, layer in self.network.layers.items()}
        return [ours[id(layer)] for layer in unit.layers]

    def _keep(self, names: Iterable[str]) -> None:
        for name in names:
            parts = self.network.layers[name].parts
            self._kept.keep(name, {str(i): part.codes for i, part in enumerate(parts)})

    def _restore(self) -> None:
        """Put back the codes that AdaRound found before; DataError, and nothing changed, where they do not fit."""
        found = {}
        try:
            for name in self._kept:
                parts = self._kept[name]
                layer = self.network.layers[name]
                found[layer] = [parts[str(i)] for i in range(len(parts))]
                layer.check_codes(found[layer])
        except (KeyError, ValueError) as error:
            raise DataError(f"{self._kept.path} is damaged ({error}): delete it to calibrate anew") from error
        for layer, pieces in found.items():
            layer.set_codes(pieces)
