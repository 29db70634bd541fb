"""Edits on the digits model: identity at strength 0, one move at one call, caches that change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewstep.errors import ConfigurationError, DataError, EvaluationError, ModelError
from fewstep.search_spaces.edit import BoundaryConfig, EditConfig
from fewstep.tasks.editing.bench import Bench, make_bench
from fewstep.tasks.editing.boundary import Place, fit_boundary
from fewstep.tasks.editing.edit import Editor, moved, shifts
from fewstep.tasks.editing.inversion import Inverter, LatentCache
from fewstep.tasks.editing.latents import captured, middle_block, shifted
from fewstep.tasks.editing.subject import EditSubject
from fewstep.tasks.models.conditions import Conditions
from fewstep.tasks.models.decoder import load_autoencoder, load_decoder, load_encoder
from fewstep.tasks.models.denoiser import Denoiser
from fewstep.tasks.models.files import find_model

WAY = "dpm-solver-2m/uniform-t@8"


def config(bench: Bench, t: float = 500.0, **fields: object) -> EditConfig:
    given = {"inversion": WAY, "generation": "dpmpp-2m/uniform-t@8", "boundary": BoundaryConfig(images=40)}
    return EditConfig.build(step=bench.files.noise.lambda_at(t), **given | fields)


@pytest.mark.parametrize("latent", ["z", "h", "both"])
@pytest.mark.parametrize("rescale", [False, True])
def test_strength_0_is_exactly_the_reconstruction(bench: Bench, latent: str, rescale: bool) -> None:
    still = config(bench, latent=latent, rescale=rescale, eta=0.5)
    z = bench.latents(bench.originals("search", 6), "search", still)
    editor = bench.editor()
    assert torch.equal(editor.edited(z, still, bench.boundaries(still), 3), editor.reconstructed(z, still, 3))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strength=st.floats(-8, 8), t=st.sampled_from([250.0, 600.0]))
def test_the_models_latents_move_by_exactly_what_is_asked(bench: Bench, strength: float, t: float) -> None:
    """From inverted images to what generation begins with, the signed distance grows by strength x spread."""
    edit = config(bench, t=t, strength_z=strength)
    boundary = bench.boundary("z", edit.step, edit.boundary)
    z = bench.latents(bench.originals("search", 6), "search", edit)
    shift, _ = shifts(edit, {"z": boundary})
    grown = boundary.distance(moved(z, shift, rescale=False)) - boundary.distance(z)
    assert torch.allclose(grown, torch.full_like(grown, strength * boundary.spread), atol=1e-4, rtol=1e-5)


def test_edits_of_the_report_are_kept_and_addressed_by_all_that_decides(bench: Bench) -> None:
    edit = config(bench, strength_z=3.0)
    first = bench.edit("report", 5, edit)
    before = bench.calls
    assert torch.equal(bench.edit("report", 5, edit), first)
    assert bench.calls == before
    for other in (
        edit.model_copy(update={"strength_z": 2.0}),
        edit.model_copy(update={"generation": "ddim/uniform-t@8"}),
        edit.model_copy(update={"boundary": BoundaryConfig(images=20)}),
    ):
        assert not torch.equal(bench.edit("report", 5, other), first)


def test_reconstruction_comes_close_and_closer_with_calls(bench: Bench) -> None:
    originals = bench.originals("search", 12)
    errors = []
    for calls in (6, 24):
        way = f"dpm-solver-2m/uniform-t@{calls}"
        found = bench.edit("search", 12, config(bench, inversion=way, generation=way))
        errors.append(float((found - originals.images).square().mean().sqrt()))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.1


@pytest.mark.parametrize("guided", [False, True])
def test_h_is_moved_once_by_exactly_what_is_asked(bench: Bench, digits: Denoiser, guided: bool) -> None:
    """Every call's bottleneck is watched: the first differs by the shift, later ones only through x."""
    seen: list[Tensor] = []
    module = digits.network.module
    z = torch.randn(3, *digits.files.shape, generator=torch.Generator().manual_seed(0))
    edit = config(bench, latent="h", strength_h=4.0)
    boundaries = bench.boundaries(edit)
    editor = Editor(digits, lambda x: x, 2 if guided else 8)
    plain: list[Tensor] = []
    for found, asked in ((plain, edit.model_copy(update={"strength_h": 0.0})), (seen, edit)):
        conv = module.conv_norm_out.register_forward_hook(lambda *_: None)
        handle = module.up_blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs, found=found: found.append((args[0] if args else kwargs["hidden_states"]).clone()),
            with_kwargs=True,
        )
        editor.edited(z, asked, boundaries)
        handle.remove()
        conv.remove()
    assert len(seen) == len(plain) == 8 * (2 if guided else 1)
    shift = boundaries["h"].move(4.0)
    assert torch.allclose(seen[0] - plain[0], shift.expand_as(seen[0]), atol=1e-5)
    spread = boundaries["h"].spread
    moved = boundaries["h"].distance(seen[0]) - boundaries["h"].distance(plain[0])
    assert torch.allclose(moved, torch.full_like(moved, 4.0 * spread), rtol=1e-4, atol=1e-4)


@contextmanager
def watched(module: nn.Module, found: list[Tensor]) -> Iterator[None]:
    """Remember what the middle block gives in each call, behind any other hook on it: it is added last."""
    block, handles = middle_block(module), []

    def begin(*_: object) -> None:
        handles.append(block.register_forward_hook(lambda _, __, output: found.append(output.clone())))

    around = [
        module.register_forward_pre_hook(begin),
        module.register_forward_hook(lambda *_: handles.pop().remove()),
    ]
    try:
        yield
    finally:
        for handle in around:
            handle.remove()


@pytest.mark.parametrize("family", ["ddpm_learned_variance", "dit", "sd"])
def test_h_of_other_networks_is_moved_once_by_exactly_what_is_asked(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    """Networks that predict a variance too, transformers, and those that read a prompt, guided."""
    files = find_model(str(family_folder(family)))
    asked = Conditions(prompts="a cat", guidance=2.0) if files.text else Conditions()
    denoiser = Denoiser(files, conditions=asked)
    z = torch.randn(20, *files.shape, generator=torch.Generator().manual_seed(0))
    step = files.noise.lambda_at(500.0)
    h = Inverter(denoiser, LatentCache(None), 8).h(z, step)
    place = Place("a", "h", step, 500.0, "m", files.hash, WAY)
    boundary = fit_boundary(h[:10], h[10:], BoundaryConfig(images=10), place)
    edit = EditConfig.build(step=step, latent="h", strength_h=5.0, generation="ddim/uniform-t@2")
    seen: list[list[Tensor]] = []
    made = []
    for strength in (0.0, 5.0):
        seen.append([])
        asked_edit = edit.model_copy(update={"strength_h": strength})
        with watched(denoiser.network.module, seen[-1]):
            made.append(Editor(denoiser, lambda x: x, 20).edited(z, asked_edit, {"h": boundary}))
    assert len(seen[0]) == len(seen[1]) == 2
    expected = boundary.move(5.0).expand_as(seen[0][0])
    assert torch.allclose(seen[1][0] - seen[0][0], expected, atol=1e-4 * float(expected.abs().max() + 1))
    assert not torch.equal(*made)


def test_real_images_come_back_from_a_text_model_and_guidance_leads_only_the_way_back(
    family_folder: Callable[[str], Path],
) -> None:
    fields = {"model": str(family_folder("sd")), "data": "any", "attribute": "a/b"}
    images = 0.5 * torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    bench = make_bench(EditSubject.build(**fields), None)
    alone = bench._decode(bench.encode(images)).clamp(-1, 1)
    errors = []
    for calls in (8, 32):
        way = f"dpm-solver-2m/uniform-lambda@{calls}"
        edit = EditConfig.build(step=bench.files.noise.lambda_at(100.0), inversion=way, generation=way)
        z = bench.inverter().z(bench.encode(images), edit.step, way)
        errors.append(float((bench.editor().reconstructed(z, edit) - alone).square().mean().sqrt()))
    # What the autoencoder alone makes of an image is what inversion and the way back tend to.
    assert errors[1] < 0.3 * errors[0]
    # Without a prompt it is the empty one.
    denoiser, x = bench.denoiser(), torch.randn(2, *bench.files.shape, generator=torch.Generator().manual_seed(1))
    network: Any = denoiser.network
    with torch.no_grad():
        empty = network(x, torch.tensor(300.0), network._embed("").expand(2, -1, -1))
        assert torch.allclose(denoiser(x, 300.0), empty, atol=1e-6)
    guided = make_bench(EditSubject.build(**fields, prompt="a cat", guidance=3.0), None)
    assert guided.inverter().denoiser.conditions == Conditions(prompts="a cat")
    assert guided.editor().denoiser.conditions == Conditions(prompts="a cat", guidance=3.0)


def test_a_vq_model_gets_images_as_its_own_forward_pass_has_them(family_folder: Callable[[str], Path]) -> None:
    files = find_model(str(family_folder("ldm")))
    images = torch.rand(2, files.channels, files.size, files.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = load_autoencoder(files, "cpu")(images).sample
        torch.testing.assert_close(load_decoder(files, "cpu")(load_encoder(files, "cpu")(images)), expected)


def test_shifts_and_captures_leave_no_hook(digits: Denoiser) -> None:
    block = digits.network.module.mid_block
    x = torch.zeros(2, *digits.files.shape)
    with captured(digits.network.module) as seen:
        digits(x, 10.0)
    with pytest.raises(ModelError, match="bottlenecks"), shifted(digits.network.module, torch.zeros(1, 1, 1)):
        digits(x, 10.0)
    assert seen.h(2).shape[0] == 2
    assert not block._forward_hooks
    with pytest.raises(ModelError, match="no middle block"), captured(torch.nn.Linear(2, 2)):
        pass


def test_edits_do_not_depend_on_batches(bench: Bench, digits: Denoiser) -> None:
    edit = config(bench, strength_z=3.0, eta=0.7)
    z = bench.latents(bench.originals("search", 9), "search", edit)
    whole, parts = (Editor(digits, lambda x: x, batch).edited(z, edit, bench.boundaries(edit), 5) for batch in (9, 2))
    assert torch.allclose(whole, parts, atol=1e-5)


def test_inversions_are_kept_and_addressed_by_all_that_decides(digits: Denoiser, tmp_path: Path) -> None:
    x, step = torch.zeros(3, *digits.files.shape), digits.files.noise.lambda_at(400.0)
    inverter = Inverter(digits, LatentCache(tmp_path), 8)
    first = inverter.z(x, step, WAY)
    before = digits.calls
    assert torch.equal(Inverter(digits, LatentCache(tmp_path), 8).z(x, step, WAY), first)
    assert digits.calls == before
    inverter.z(x + 0.1, step, WAY)
    inverter.z(x, step - 0.1, WAY)
    inverter.z(x, step, "ddim/uniform-t@8")
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    damaged = next(iter(tmp_path.glob("*.safetensors")))
    damaged.write_bytes(b"torn")
    with pytest.raises(DataError, match="delete it to invert again"):
        LatentCache(tmp_path).get(damaged.stem, lambda: x)


def test_the_edit_shows_the_attribute_and_more_of_it_with_strength(bench: Bench) -> None:
    """Fours become nines: what the whole is for."""
    success = []
    for strength in (0.0, 3.0, 6.0):
        edit = config(bench, t=600.0, strength_z=strength, boundary=BoundaryConfig(C=1e-3, images=40))
        figures = bench.evaluate("report", 30, edit)
        success.append(figures.success.value)
        if not strength:
            assert figures.identity.value > 0.7
    assert success[0] < 0.15
    assert success[2] > 0.6
    assert success[0] < success[1] <= success[2] + 0.1


def test_what_does_not_fit_is_refused(bench: Bench) -> None:
    edit = config(bench, strength_z=3.0)
    z = bench.latents(bench.originals("search", 4), "search", edit)
    with pytest.raises(ConfigurationError, match="no boundary of z"):
        bench.editor().edited(z, edit, {})
    elsewhere = bench.boundaries(config(bench, t=300.0))
    with pytest.raises(ConfigurationError, match="fit it at the edit's step"):
        bench.editor().edited(z, edit, elsewhere)
    with pytest.raises(EvaluationError, match="not finite"):
        bench.editor().edited(z * float("nan"), edit, bench.boundaries(edit))
    (boundary,) = bench.boundaries(edit).values()
    foreign = replace(boundary, facts=replace(boundary.facts, model_hash="another"))
    with pytest.raises(DataError, match="was fitted in model digits-ddpm"):
        bench.use({"z": foreign}, edit)
    with pytest.raises(ConfigurationError, match="needs as many examples"):
        bench.boundaries(config(bench, boundary=BoundaryConfig(images=41)))
