"""The one interface of all networks: fractional times, labels, both kinds of guidance, calls counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from fewstep.errors import ConfigurationError
from fewstep.tasks.models.classifier import load_classifier
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model

ZOO_LABELS = "fashion-ddpm"
PROMPTS = "a red cat\ntwo dogs, blue"


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def _labelled(**asked: object) -> Denoiser:
    return Denoiser(find_model(ZOO_LABELS), conditions=Conditions.model_validate(asked))


def test_a_fraction_of_a_step_reaches_the_network(tiny_ddpm: Path) -> None:
    """diffusers cuts a Python float to a whole step; a tensor keeps its fraction."""
    files = find_model(str(tiny_ddpm))
    unet = UNet2DModel.from_pretrained(str(files.unet)).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        exact = unet(x, torch.tensor(10.75)).sample
        ours = Denoiser(files)(x, 10.75)
        whole = unet(x, torch.tensor(10)).sample
    assert torch.equal(ours, exact)
    assert not torch.equal(ours, whole)


def test_labels_follow_the_image_not_the_batch(x: Tensor) -> None:
    denoiser = _labelled(labels="balanced")
    with torch.inference_mode():
        together = denoiser.on(range(8, 12))(x, 300.5)
        apart = torch.cat([denoiser.on([8 + i])(x[i : i + 1], 300.5) for i in range(4)])
        one = _labelled(labels="9").on([0])(x[1:2], 300.5)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    torch.testing.assert_close(one, together[1:2], rtol=0, atol=1e-5)
    assert denoiser.calls == 8


def test_without_labels_the_null_label_is_told(x: Tensor) -> None:
    files = find_model(ZOO_LABELS)
    unet = UNet2DModel.from_pretrained(str(files.unet), torch_dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = unet(x, torch.tensor(100.0), torch.full((4,), 10)).sample
        torch.testing.assert_close(_labelled()(x, 100.0), expected, rtol=0, atol=1e-5)


def test_guidance_is_a_line_through_null_and_condition(x: Tensor) -> None:
    denoiser = _labelled(labels="balanced", guidance=2.5)
    with torch.inference_mode():
        null, full, further = (denoiser.on(range(4), scale)(x, 500.0) for scale in (0.0, 1.0, 2.5))
        own = denoiser(x, 500.0)
        unasked = _labelled()(x, 500.0)
    torch.testing.assert_close(null, unasked, rtol=0, atol=1e-5)
    torch.testing.assert_close(further, null + 2.5 * (full - null), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own, further, rtol=0, atol=1e-5)
    assert not torch.allclose(null, full, atol=1e-3)
    # Guided or not, a call is a call an image.
    assert denoiser.calls == 16


def test_prompts_go_round_and_the_negative_one_is_what_guidance_leaves(tiny_stable_diffusion: Path) -> None:
    files = find_model(str(tiny_stable_diffusion))
    x = torch.randn(3, *files.shape, generator=torch.Generator().manual_seed(2))
    guided = Denoiser(files, conditions=Conditions(prompts=PROMPTS, guidance=3.0, negative_prompt="grey"))
    plain = Denoiser(files, conditions=Conditions(prompts=PROMPTS))
    grey = Denoiser(files, conditions=Conditions(prompts="grey"))
    with torch.inference_mode():
        conditional = plain(x, 400.0)
        null = grey(x, 400.0)
        result = guided(x, 400.0)
        third = plain.on([2])(x[2:], 400.0)
        again = plain.on([0])(x[2:], 400.0)
    torch.testing.assert_close(result, null + 3.0 * (conditional - null), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(third, conditional[2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(again, third, rtol=0, atol=1e-6)
    assert not torch.allclose(plain.on([1])(x[2:], 400.0), third, atol=1e-4)


def test_classifier_guidance_raises_the_labels_probability(x: Tensor) -> None:
    files = find_model(ZOO_LABELS)
    folder = files.root / "classifier"
    classifier = load_classifier(folder)
    noise = files.noise
    time = 300.0
    alpha, sigma = noise.alpha_sigma(noise.lambda_at(time))
    denoisers = {
        scale: Denoiser(files, conditions=Conditions(labels="3", **guide))
        for scale, guide in ((0.0, {}), (2.0, {"classifier": str(folder), "classifier_scale": 2.0}))
    }
    with torch.inference_mode():
        means = noise.output_map("epsilon", noise.lambda_at(time))
        x0 = {scale: means.x0_x * x + means.x0_o * denoiser(x, time) for scale, denoiser in denoisers.items()}
        likely = {scale: torch.log_softmax(classifier(v.clamp(-1, 1)), 1)[:, 3] for scale, v in x0.items()}
    assert alpha > 0 < sigma
    assert bool((likely[2.0] > likely[0.0]).all())


def test_conditions_that_do_not_fit_are_refused_at_once(tiny_ddpm: Path) -> None:
    with pytest.raises(ConfigurationError, match="without labels"):
        Denoiser(find_model(str(tiny_ddpm)), conditions=Conditions(labels="balanced"))
