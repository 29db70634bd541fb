"""Everything that one attribute's edits need, made when it is first asked for: examples, boundaries, originals, judge.

The three parts of the data never mix: boundaries see `fit`, a search sees `search`, and `report` is for what is told.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.errors import ConfigurationError, DataError
from fewstep.search_spaces.edit import BoundaryConfig, EditConfig, Way
from fewstep.search_spaces.schedule import MIN_GAP
from fewstep.tasks.data import Dataset
from fewstep.tasks.editing.asked import conditions_of, find_edited
from fewstep.tasks.editing.attributes import (
    Attribute,
    Part,
    joined,
    load_part,
    load_unlabelled,
    parse_attribute,
    side,
)
from fewstep.tasks.editing.boundary import MIN_EXAMPLES, Boundary, Place, fit_boundary
from fewstep.tasks.editing.edit import Editor
from fewstep.tasks.editing.figures import EditFigures
from fewstep.tasks.editing.identity import PairedDistance, make_identity
from fewstep.tasks.editing.inversion import Inverter, LatentCache, content_of
from fewstep.tasks.editing.judge import PROMPTED, PROMPTED_CLASSES, Judge, check_named, judge_of, make_judge
from fewstep.tasks.editing.judge_training import trained_scores
from fewstep.tasks.editing.measures import (
    Identities,
    Identity,
    MeasuredIdentities,
    SurroundingIdentities,
    Surroundings,
    frechet,
    mean,
    proportion,
)
from fewstep.tasks.editing.path import segment, towards_noise
from fewstep.tasks.editing.prompted import PromptedImages
from fewstep.tasks.editing.radius import Radius, radius
from fewstep.tasks.editing.subject import TRAIN, EditSubject
from fewstep.tasks.metrics.extractor import make_extractor
from fewstep.tasks.metrics.features import FeatureExtractor
from fewstep.tasks.metrics.frechet import FrechetReference
from fewstep.tasks.metrics.interval import Interval
from fewstep.tasks.metrics.moments import Moments
from fewstep.tasks.models.decoder import load_decoder, load_encoder
from fewstep.tasks.models.denoiser import Denoiser

PIXELS_PER_BATCH = 50_000
# Sampled images of each part come from seeds that no other part uses.
SEEDS: dict[Part, int] = {"fit": 2_000_000, "search": 3_000_000, "report": 4_000_000}
REFERENCE_IMAGES = 3000


@dataclass(frozen=True, eq=False)
class Originals:
    """What is edited, and numbers it: clean images (N, C, H, W) that lack the attribute, and their places in a part."""

    images: Tensor
    places: tuple[int, ...]


class Bench:
    """One subject on one device. Results follow from the subject and what is asked, not from what is cached."""

    def __init__(
        self,
        subject: EditSubject,
        denoiser: Denoiser,
        decode: Callable[[Tensor], Tensor],
        cache: Path | None,
        batch: int = 0,
    ) -> None:
        self.subject, self.files, self.cache = subject, denoiser.files, cache
        pixels = self.files.channels * self.files.size**2
        scale = 1 if denoiser.device == "cpu" else 8
        self.batch = batch or max(8, min(250, scale * PIXELS_PER_BATCH // pixels))
        self._decode, self._base = decode, denoiser
        self._denoisers: dict[tuple[str, float], Denoiser] = {}
        self._latents = LatentCache(None if cache is None else cache / "latents")
        self._boundaries: dict[tuple[str, float, str], Boundary] = {}
        self._originals: dict[tuple[Part, int], Originals] = {}
        self._identities: dict[tuple[Part, int], Identities] = {}

    # -- denoisers ------------------------------------------------------------------------------------

    def denoiser(self, prompt: str = "", guidance: float = 1.0) -> Denoiser:
        """The denoiser, under a prompt where the model takes one; all share one network."""
        key = (prompt, guidance) if self.files.text else ("", 1.0)
        if key not in self._denoisers:
            own = copy.copy(self._base)
            own.conditions, own.calls = conditions_of(self.files, *key), 0
            self._denoisers[key] = own
        return self._denoisers[key]

    @property
    def calls(self) -> int:
        """Denoiser calls so far, those of a text model too."""
        return sum(d.calls for d in self._denoisers.values()) + (self._text_images.calls if self._text_images else 0)

    def editor(self, prompt: str | None = None) -> Editor:
        """The editor under a prompt, by default under the subject's."""
        given = self.subject.prompt if prompt is None else prompt
        return Editor(self.denoiser(given, self.subject.guidance if given else 1.0), self._decode, self.batch)

    def inverter(self) -> Inverter:
        """What inverts images, under the subject's prompt without guidance, which would not come back."""
        return Inverter(self.denoiser(self.subject.prompt), self._latents, self.batch)

    # -- data -----------------------------------------------------------------------------------------

    def part(self, part: Part) -> Dataset:
        """One part of the subject's data."""
        return load_part(self.subject.data, part, self.files.channels, self.files.size)

    @cached_property
    def _fit_data(self) -> Dataset:
        return self.part("fit")

    @cached_property
    def attribute(self) -> Attribute:
        """The attribute; of two prompts, class 1 of two: what the positive one makes."""
        if self.subject.prompted:
            return Attribute(self.subject.attribute or PROMPTED.name, PROMPTED.positive, PROMPTED.negative)
        return parse_attribute(self.subject.attribute, self.subject.data, self._fit_data.classes)

    def examples(self, positive: bool) -> Tensor:
        """Images of one side that boundaries are fitted to."""
        if self.subject.prompted:
            return self._prompted(positive, "fit", self.subject.examples)
        labels = self.attribute.positive if positive else self.attribute.negative
        return side(self._fit_data, labels, self.subject.examples, self.attribute.name, MIN_EXAMPLES).images

    def _prompt(self, positive: bool) -> str:
        return self.subject.positive_prompt if positive else self.subject.negative_prompt

    def _prompted(self, positive: bool, part: Part, count: int) -> Tensor:
        """Images of one of the two prompts, by the text model where there is one."""
        if self._text_images is not None:
            return self._text_images(self._prompt(positive), self.subject.seed + SEEDS[part], count)
        return self._samples(self._prompt(positive), part, count)

    @cached_property
    def _text_images(self) -> PromptedImages | None:
        if not self.subject.text_model:
            return None
        return PromptedImages(self.subject, self.files, self._latents, self._base.device)

    def _samples(self, prompt: str, part: Part, count: int) -> Tensor:
        """Samples of a prompt, all the way to images: through the middle, as an edit that moves nothing."""
        noise, way = self.files.noise, self.subject.fit_way
        config = EditConfig(step=0.5 * (noise.lambda_start + noise.lambda_end), inversion=way, generation=way)
        z = self._sampled(config.step, way, prompt, part, count)
        return self.editor(prompt).reconstructed(z, config, self.subject.seed + SEEDS[part])

    def _sampled(self, step: float, way: Way, prompt: str, part: Part, count: int) -> Tensor:
        # Several seeds would make one image of one number; the prompts' sides share theirs on purpose.
        seed = self.subject.seed + SEEDS[part]
        editor = self.editor(prompt)
        named = way if isinstance(way, str) else way.hash
        text = f"sampled {self.files.hash} {editor.denoiser.conditions.hash} {seed} {count} {step} {named}"
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self._latents.get(key, lambda: editor.sampled_latents(step, way, seed, 0, count))

    # -- latents and boundaries -----------------------------------------------------------------------

    def example_latents(self, positive: bool, latent: str, step: float) -> Tensor:
        """z or h (examples, ...) of one side at a step."""
        if self.subject.source == "text":
            prompt = self._prompt(positive)
            z = self._sampled(step, self.subject.fit_way, prompt, "fit", self.subject.examples)
            own = Inverter(self.denoiser(prompt, self.subject.guidance), self._latents, self.batch)
            return z if latent == "z" else own.h(z, step)
        z = self.inverter().z(self.encode(self.examples(positive)), step, self.subject.fit_way)
        return z if latent == "z" else self.inverter().h(z, step)

    @cached_property
    def _encoder(self) -> Callable[[Tensor], Tensor]:
        return load_encoder(self.files, self._base.device)

    def encode(self, images: Tensor) -> Tensor:
        """What the network denoises, of images (N, C, H, W)."""
        device = self._base.device
        with torch.inference_mode():
            return torch.cat([self._encoder(part.to(device)).cpu() for part in torch.split(images, self.batch)])

    def boundary(self, latent: str, step: float, config: BoundaryConfig) -> Boundary:
        """The boundary in one latent at one step, fitted when it is first asked for."""
        key = (latent, step, config.model_dump_json())
        if key not in self._boundaries:
            if config.images > self.subject.examples:
                raise ConfigurationError(
                    f"a boundary of {config.images} images a side needs as many examples, there are "
                    f"{self.subject.examples}: give --examples"
                )
            with_it, without = (self.example_latents(side, latent, step)[: config.images] for side in (True, False))
            place = Place(
                self.attribute.name,
                latent,
                step,
                self.files.noise.time(step),
                self.files.name,
                self.files.hash,
                self.subject.fit_way if isinstance(self.subject.fit_way, str) else self.subject.fit_way.hash,
            )
            self._boundaries[key] = fit_boundary(with_it, without, config, place)
        return self._boundaries[key]

    def boundaries(self, config: EditConfig) -> dict[str, Boundary]:
        """The boundaries that a config uses, by latent."""
        used = [latent for latent, on in (("z", config.uses_z), ("h", config.uses_h)) if on]
        return {latent: self.boundary(latent, config.step, config.boundary) for latent in used}

    def use(self, boundaries: Mapping[str, Boundary], config: EditConfig) -> None:
        """Move along boundaries that were fitted before; DataError where they are of another network."""
        for latent, boundary in boundaries.items():
            if boundary.facts.model_hash != self.files.hash:
                raise DataError(
                    f"the boundary of {latent} was fitted in model {boundary.facts.model} "
                    f"({boundary.facts.model_hash}), {self.files.name} is another ({self.files.hash}): fit it again"
                )
            self._boundaries[latent, config.step, config.boundary.model_dump_json()] = boundary

    # -- what is edited -------------------------------------------------------------------------------

    def originals(self, part: Part, count: int) -> Originals:
        """Up to `count` images of a part that lack the attribute; DataError where there are fewer than 2."""
        key = (part, count)
        if key not in self._originals:
            self._originals[key] = self._find_originals(part, count)
        return self._originals[key]

    def _find_originals(self, part: Part, count: int) -> Originals:
        name = self.attribute.name
        if self.subject.source == "images" and not self.subject.prompted:
            images = side(self.part(part), self.attribute.negative, count, name, 2).images
            return Originals(images, tuple(range(len(images))))
        # These are of any class: those that the judge already gives the attribute are left out.
        if self.subject.source == "images":
            images = load_unlabelled(self.subject.data, part, self.files.channels, self.files.size, 2 * count)
        else:
            images = self._samples(self.subject.prompt, part, 2 * count)
        lacks = self.judge.lacks(images) if self.subject.judge else np.ones(len(images), np.bool_)
        places = np.flatnonzero(lacks)[:count]
        if len(places) < 2:
            raise DataError(
                f"{name}: the judge says of {len(places)} of {len(images)} images that they lack the attribute, at "
                "least 2 are needed: give more images, or another --judge"
            )
        return Originals(images[torch.from_numpy(places)], tuple(int(i) for i in places))

    def latents(self, originals: Originals, part: Part, config: EditConfig) -> Tensor:
        """z (N, ...) of the originals at the config's step, by its `inversion`."""
        if self.subject.source == "images":
            return self.inverter().z(self.encode(originals.images), config.step, config.inversion)
        most = max(originals.places) + 1
        z = self._sampled(config.step, config.inversion, self.subject.prompt, part, most)
        return z[list(originals.places)]

    def radii(self, steps: Sequence[float], count: int) -> list[Radius]:
        """Radii of sampled latents and of inverted images of every class, of the fit's part, at some steps."""
        if self.subject.source == "text":
            raise ConfigurationError("radii compare inverted images with samples: text has none to invert, give --step")
        images = self.encode(self._fit_images(count))
        noise, way, prompt = self.files.noise, self.subject.fit_way, self.subject.prompt
        return [
            radius(s, noise, self._sampled(s, way, prompt, "fit", len(images)), self.inverter().z(images, s, way))
            for s in steps
        ]

    def _fit_images(self, count: int) -> Tensor:
        if not self.subject.prompted:
            return torch.from_numpy(self._fit_data.images[:count])
        return torch.cat([self.examples(side)[: (count + 1) // 2] for side in (True, False)])

    def edit(self, part: Part, count: int, config: EditConfig) -> Tensor:
        """The edits (N, C, H, W) of a part's originals; the report's are kept, since they are looked at again."""
        originals = self.originals(part, count)
        z, boundaries = self.latents(originals, part, config), self.boundaries(config)
        seed, editor = self.subject.seed + SEEDS[part], self.editor()

        def make() -> Tensor:
            return editor.edited(z, config, boundaries, seed, originals.places)

        if part != "report":
            return make()
        moves = [f"{b.facts.latent} {content_of(b.normal)} {b.spread!r}" for b in boundaries.values()]
        conditions = editor.denoiser.conditions.hash
        text = f"edited {self.files.hash} {conditions} {content_of(z)} {config.hash} {moves} {seed} {originals.places}"
        return self._latents.get(hashlib.sha256(text.encode()).hexdigest()[:32], make)

    def nfe(self, config: EditConfig) -> int:
        """Denoiser calls of one edit: the way to the step, and the way back."""
        noise, back = self.files.noise, self._calls_back(config)
        if self.subject.source == "images":
            return back + self._calls_inverted(config)
        if config.step - noise.lambda_start < MIN_GAP:
            return back
        return back + segment(config.inversion, noise, noise.lambda_start, config.step).nfe

    def _calls_back(self, config: EditConfig) -> int:
        return segment(config.generation, self.files.noise, config.step).nfe

    def _calls_inverted(self, config: EditConfig) -> int:
        return towards_noise(segment(config.inversion, self.files.noise, config.step), self.files.noise).nfe

    # -- measures -------------------------------------------------------------------------------------

    @cached_property
    def judge(self) -> Judge:
        """The independent classifier, trained where that is asked for; ConfigurationError where none is named."""
        device, subject = self._base.device, self.subject
        check_named(subject)
        if subject.judge != TRAIN:
            classes = PROMPTED_CLASSES if subject.prompted else self._fit_data.classes
            return make_judge(subject, self.files, device, self.attribute, classes)
        if self.cache is None:
            raise ConfigurationError("a judge is trained and kept: this bench has no folder for it")
        if subject.prompted:
            seen, unseen = self._prompted_data("search"), self._prompted_data("fit")
        else:
            seen, unseen = joined(self._fit_data, self.part("search")), self.part("report")
        scores = trained_scores(seen, unseen, self.cache, device, subject.judge_steps)
        return judge_of(scores, subject, self.attribute, seen.classes)

    def _prompted_data(self, part: Part) -> Dataset:
        sides = [self._prompted(positive, part, self.subject.examples).numpy() for positive in (False, True)]
        labels = np.repeat([0, 1], [len(s) for s in sides]).astype(np.int64)
        return Dataset("prompts", np.concatenate(sides), labels, PROMPTED_CLASSES, "", "samples of two prompts")

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The features of identity and of the Frechet distance."""
        return make_extractor(self.subject.features, self.files, self._base.device)

    @cached_property
    def measure(self) -> PairedDistance | None:
        """What identity is measured by, None for the built-in measure."""
        return make_identity(self.subject, self.files, self._base.device)

    @cached_property
    def surroundings(self) -> Surroundings:
        """What is not the attribute."""
        return Surroundings.of(self.examples(True), self.examples(False), self.extractor)

    def identities(self, part: Part, count: int) -> Identities:
        """Identity of edits of a part's originals."""
        key = (part, count)
        if key not in self._identities:
            self._identities[key] = self.identities_of(self.originals(part, count).images)
        return self._identities[key]

    def identities_of(self, originals: Tensor) -> Identities:
        """Identity of edits of any originals (N, C, H, W)."""
        if self.measure is None:
            return SurroundingIdentities(originals, self.surroundings)
        return MeasuredIdentities(originals, self.examples(True), self.measure)

    @cached_property
    def reference(self) -> FrechetReference:
        """Moments of real images that have the attribute, of the fit's part."""
        if self.subject.prompted:
            return FrechetReference.of(Moments.of(self.extractor(self.examples(True))))
        real = side(self._fit_data, self.attribute.positive, REFERENCE_IMAGES, self.attribute.name, MIN_EXAMPLES)
        return FrechetReference.of(Moments.of(self.extractor(real.images)))

    def evaluate(self, part: Part, count: int, config: EditConfig, edited: Tensor | None = None) -> EditFigures:
        """Success and identity of a config's edits (made here, unless they are given) on `count` images of a part."""
        calls = self.calls
        images = self.edit(part, count, config) if edited is None else edited
        hits, identity = self.outcomes(part, count, images)
        difference = float((images - self.originals(part, count).images).double().square().mean().sqrt())
        distance = self.frechet(images) if part == "report" else None
        return self._figures(config, hits, identity, distance, difference, self.nfe(config), self.calls - calls)

    def evaluate_own(
        self, originals: Tensor, edited: Tensor, config: EditConfig, boundaries: Mapping[str, Boundary]
    ) -> EditFigures:
        """The same of edits of images that are no part of the data, by boundaries that were fitted before."""
        identity = self.identities_of(originals)(edited)
        difference = float((edited - originals).double().square().mean().sqrt())
        calls = self._calls_back(config) + self._calls_inverted(config)
        return self._figures(config, self.judge.has(edited), identity, None, difference, calls, 0, boundaries)

    def _figures(
        self,
        config: EditConfig,
        hits: npt.NDArray[np.bool_],
        identity: Identity,
        distance: Interval | None,
        difference: float,
        nfe: int,
        calls: int,
        boundaries: Mapping[str, Boundary] | None = None,
    ) -> EditFigures:
        known = self.boundaries(config) if boundaries is None else boundaries
        accuracy = {latent: b.facts.accuracy for latent, b in known.items()}
        return EditFigures(
            proportion(hits),
            mean(identity.both),
            None if identity.pixels is None else mean(identity.pixels),
            None if identity.features is None else mean(identity.features),
            distance,
            difference,
            nfe,
            len(hits),
            accuracy.get("z", float("nan")),
            accuracy.get("h", float("nan")),
            calls,
        )

    def outcomes(self, part: Part, count: int, edited: Tensor) -> tuple[npt.NDArray[np.bool_], Identity]:
        """Per image of a part: whether its edit (of N, C, H, W) is a success (N,), and its identity."""
        return self.judge.has(edited), self.identities(part, count)(edited)

    def real(self, count: int) -> Tensor:
        """Up to `count` real images of the report's part that have the attribute; of two prompts, what one makes."""
        if self.subject.prompted:
            return self._prompted(True, "report", count)
        return side(self.part("report"), self.attribute.positive, count, self.attribute.name, 2).images

    def frechet(self, images: Tensor) -> Interval:
        """Frechet distance of images (N, C, H, W) to real ones that have the attribute."""
        return frechet(self.extractor(images), self.reference)


def make_bench(
    subject: EditSubject, cache: Path | None, device: str = "cpu", denoiser: Denoiser | None = None
) -> Bench:
    """The bench of a subject, on a denoiser that is there already or on one of its own.

    ConfigurationError or ModelError where the model cannot be edited that way.
    """
    from fewstep.tasks.worker import check_device

    check_device(device)
    files = find_edited(subject)
    conditions = conditions_of(files, subject.prompt, subject.guidance if subject.prompt else 1.0)
    if denoiser is None:
        denoiser = Denoiser(files, device, conditions)
    denoiser.conditions, denoiser.calls = conditions, 0
    return Bench(subject, denoiser, load_decoder(files, device), cache)
