"""What is measured of edits, as numbers by name."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.tasks.metrics.interval import Interval


@dataclass(frozen=True)
class EditFigures:
    """What `Bench.evaluate` found; intervals are of 95%. `difference` is the root mean square one to the originals.

    The Frechet distance, to real images that have the attribute, is there for the report alone; the two parts of
    identity for the built-in measure.
    """

    success: Interval
    identity: Interval
    identity_pixels: Interval | None
    identity_features: Interval | None
    frechet: Interval | None
    difference: float
    nfe: int
    images: int
    accuracy_z: float
    accuracy_h: float
    denoiser_calls: int

    def metrics(self) -> dict[str, float]:
        """As numbers by name, for a record."""
        found = {
            "nfe": float(self.nfe),
            "images": float(self.images),
            "accuracy_z": self.accuracy_z,
            "accuracy_h": self.accuracy_h,
            "difference": self.difference,
        }
        for name in ("success", "identity", "identity_pixels", "identity_features", "frechet"):
            interval: Interval | None = getattr(self, name)
            if interval is None:
                continue
            found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return found
