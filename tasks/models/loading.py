"""How a model is held in memory: number format, weights' variant, offloading, compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    import torch

ENABLE = "enable_"


class Loading(BaseModel):
    """How to load a model. All but `offload` change bits of its images, and so count for what is an equal evaluation.

    `enable` are methods of the pipeline by name, with or without their `enable_`, as vae_tiling; `offload` moves parts
    of a pipeline to the device when they are needed. Both are for whole pipelines.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="number format of the weights")
    variant: str = Field("", description="variant of the weights' files, as fp16")
    compile: bool = Field(False, description="compile the network with torch.compile")
    channels_last: bool = Field(False, description="keep the network's weights with channels last")
    offload: Literal["", "model", "sequential"] = Field(
        "", description="for pipelines: keep on the CPU what is not in use, by whole models or layer by layer"
    )
    enable: tuple[str, ...] = Field((), description="for pipelines: what to enable of them, as vae_tiling,vae_slicing")

    @field_validator("enable")
    @classmethod
    def _plain(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.replace("-", "_").removeprefix(ENABLE) for name in names)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The number format as torch names it."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def files(self) -> dict[str, str]:
        """What tells `from_pretrained` which files to read."""
        return {"variant": self.variant} if self.variant else {}

    @property
    def of_pipelines(self) -> bool:
        """Whether something is asked for that only a whole pipeline does."""
        return bool(self.offload or self.enable)

    @property
    def identity(self) -> str:
        """What counts for an evaluation; empty for the usual."""
        changed: dict[str, Any] = self.model_dump(exclude_defaults=True, exclude={"offload"})
        return repr(sorted(changed.items())) if changed else ""

    def prepared(self, module: Any) -> Any:
        """A network with this layout, compiled where that is asked for."""
        import torch

        if self.channels_last:
            module.to(memory_format=torch.channels_last)
        if self.compile:
            module.compile()
        return module
