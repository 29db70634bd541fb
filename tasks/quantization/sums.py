"""What the outputs of layers are added to, seen while a network runs.

At the end of a residual branch a layer's output is added to the stream. What the stream has gone wrong by then, the
layer can make good in part, if it is fitted to the sum instead of to its own output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

ADDS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
SHAPES = {"reshape", "view", "flatten", "contiguous", "dropout"}
# A layer's name, the other summand in the shape of the layer's output.
Seen = Callable[[str, Tensor], None]


class Sums(TorchFunctionMode):
    """While it lasts, `seen(name, other)` is told what each tracked output is first added to."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen
        # By id, with the tensor itself, so that no other takes its id; and the way back to the layer's shape.
        self._tracked: dict[int, tuple[Tensor, str, Callable[[Tensor], Tensor]]] = {}

    def track(self, name: str, output: Tensor) -> None:
        """Look for what this output is added to."""
        self._tracked[id(output)] = output, name, lambda other: other

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; follow tracked outputs through it."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not self._tracked or not args or not isinstance(result, Tensor):
            return result
        if name in ADDS:
            self._added(args, result)
        elif name in SHAPES | {"transpose", "permute"} and (found := self._tracked.get(id(args[0]))):
            self._follow(name, args, result, found)
        return result

    def _follow(self, name: str, args: Any, result: Tensor, found: Any) -> None:
        before, layer, back = found
        if name in SHAPES and result.numel() == before.numel():
            shape = before.shape
            self._tracked[id(result)] = result, layer, lambda other: back(other.reshape(shape))
        elif name == "transpose" and len(args) == 3:
            self._tracked[id(result)] = result, layer, lambda other: back(other.transpose(*args[1:]))
        elif name == "permute":
            order = list(args[1]) if isinstance(args[1], list | tuple) else list(args[1:])
            inverse = [order.index(i) for i in range(len(order))]
            self._tracked[id(result)] = result, layer, lambda other: back(other.permute(inverse))

    def _added(self, args: Any, result: Tensor) -> None:
        for mine, other in ((args[0], args[1]), (args[1], args[0])):
            found = self._tracked.get(id(mine)) if isinstance(mine, Tensor) else None
            if found is None or not isinstance(other, Tensor):
                continue
            _, layer, back = found
            self._tracked = {key: entry for key, entry in self._tracked.items() if entry[1] != layer}
            # The first summand is not to be the one that is stretched.
            if result.shape == mine.shape:
                self._seen(layer, back(other.expand_as(mine)))
            return
