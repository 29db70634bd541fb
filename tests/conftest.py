"""Every test session runs in a home of its own, on one thread, and reports to nobody.

The settings stand at the top because libraries read them when they are first imported. Processes that
tests start inherit them.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A test says what is right, not how fast: a busy machine must not fail it. The same commit draws the same
# examples; `--hypothesis-profile=fresh` draws new ones.
settings.register_profile("untimed", deadline=None, derandomize=True, database=None)
settings.register_profile("fresh", deadline=None, print_blob=True)
settings.load_profile("untimed")

_real_home = Path.home()
_home = Path(tempfile.mkdtemp(prefix="fewstep-home-"))
_owner = os.getpid()


def _remove_home() -> None:
    # A forked child leaves through the same door.
    if os.getpid() == _owner:
        shutil.rmtree(_home, ignore_errors=True)


atexit.register(_remove_home)

# What was downloaded before (Inception's weights) stays in reach; nothing new is fetched.
os.environ.setdefault("TORCH_HOME", str(_real_home / ".cache" / "torch"))
os.environ["HF_HUB_OFFLINE"] = "1"

os.environ["HOME"] = str(_home)
for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME", "MPLCONFIGDIR"):
    os.environ.pop(name, None)

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

# A local start would otherwise turn on token authentication and write a token under the home directory.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
for name in ("RAY_ADDRESS", "RAY_NAMESPACE"):
    os.environ.pop(name, None)

for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
    os.environ.pop(name, None)
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
os.environ["DO_NOT_TRACK"] = "true"

os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(scope="session")
def make_evaluation() -> Callable[..., Any]:
    """Makes the record of an evaluation of a given order, with some fields changed."""
    from dataclasses import replace
    from datetime import UTC, datetime, timedelta

    from fewstep.storage.records import EvaluationRecord

    def make(order: int, **changes: Any) -> EvaluationRecord:
        record = EvaluationRecord(
            study="digits",
            order=order,
            trial=order,
            key=f"key-{order}",
            candidate=f"{order:08x}cafe",
            candidate_json=f'{{"order": {order}}}',
            nfe=3 + order % 3,
            rung="frechet",
            origin="random",
            model="digits-ddpm",
            model_hash="model-1",
            features="fid-digits",
            reference="train",
            seed=0,
            images=1000,
            metric="frechet",
            value=float((order * 7919) % 101),
            low=None,
            high=None,
            denoiser_calls=1000 * (3 + order % 3),
            seconds=0.5,
            device="cpu",
            finished_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC) + timedelta(seconds=order),
            metrics={"distance": 0.5},
            versions={"torch": "2.14"},
        )
        return replace(record, **changes)

    return make


@pytest.fixture(scope="session")
def corrections() -> Callable[..., Any]:
    """`corrections(schedule, size, seed=0, filters=0)`: of everything in a schedule, uniform within `size`.

    With `filters`, kernels of that side besides.
    """
    import numpy as np

    from fewstep.search_spaces.schedule.corrections import Corrections

    def random(schedule: Any, size: float, seed: int = 0, filters: int = 0) -> Corrections:
        rng, K = np.random.default_rng(seed), schedule.nodes
        rows = [tuple(tuple(rng.uniform(-size, size, k + 1).tolist()) for k in range(K)) for _ in range(2)]
        found = Corrections(points=rows[0], outputs=rows[1], shifts=tuple(rng.uniform(-size, size, K).tolist()))
        if not filters:
            return found
        kernels = [[rng.uniform(-size, size, filters**2).tolist() for _ in range(k + 2)] for k in range(K)]
        more = {"point_filters": [row[0] for row in kernels], "output_filters": [row[1:] for row in kernels]}
        return Corrections.model_validate({**found.model_dump(), **more})

    return random


@pytest.fixture(scope="session")
def tiny_ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an untrained DDPMPipeline on 3x8x8 images."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        )
    folder = tmp_path_factory.mktemp("ddpm")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def make_tiny_flow() -> Callable[..., Path]:
    """`make_tiny_flow(folder, condition, labels, features, scaling_factor)`: an untrained flow on 2x4x4 latents.

    Of 8x8 grey images, with the network's eleven labels and the digits' classifier and reference unless told otherwise.
    """

    def make(
        folder: Path, condition: Any = None, labels: bool = True, features: bool = True, scaling_factor: float = 0.18215
    ) -> Path:
        import torch
        from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, UNet2DModel

        from fewstep.tasks.models.files import ZOO
        from fewstep.tasks.models.image_condition import build_condition

        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = UNet2DModel(
                sample_size=4,
                in_channels=2 + (condition.channels if condition else 0),
                out_channels=2,
                layers_per_block=1,
                block_out_channels=(4,),
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
                norm_num_groups=2,
                add_attention=False,
                num_class_embeds=11 if labels else None,
            )
            vae = AutoencoderKL(
                in_channels=1,
                out_channels=1,
                latent_channels=2,
                block_out_channels=(4, 4),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=2,
                mid_block_add_attention=False,
                scaling_factor=scaling_factor,
            )
            if condition is not None:
                build_condition(condition).save(folder / "condition")
        network.save_pretrained(str(folder / "unet"))
        vae.save_pretrained(str(folder / "vae"))
        FlowMatchEulerDiscreteScheduler().save_pretrained(str(folder / "scheduler"))
        if labels:
            (folder / "fewstep.json").write_text('{"null_label": 10}')
        if features:
            shutil.copytree(ZOO / "digits-ddpm" / "classifier", folder / "classifier")
            shutil.copy(ZOO / "digits-ddpm" / "reference.npz", folder / "reference.npz")
        return folder

    return make


@pytest.fixture(scope="session")
def families() -> Any:
    """The module of tiny pipelines, one of each of diffusers' families."""
    import importlib.util
    import sys

    name = "fewstep_tiny_families"
    if name not in sys.modules:
        path = Path(__file__).parent / "tasks" / "models" / "families.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def family_folder(families: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`family_folder(name)`: the directory of a family's pipeline, saved once."""
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        place = root / name
        if not place.is_dir():
            families.build(name).save_pretrained(str(place))
        return place

    return folder


@pytest.fixture(scope="session")
def tiny_stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an untrained StableDiffusionPipeline: latents 4x8x8, images 3x16x16, a tokenizer of letters."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("stable-diffusion")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,."
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), start, end]
    parts = folder / "parts"
    parts.mkdir()
    (parts / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (parts / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, **special}
    (parts / "tokenizer_config.json").write_text(json.dumps(settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=32,
                intermediate_size=37,
                num_attention_heads=4,
                num_hidden_layers=2,
                max_position_embeddings=16,
                bos_token_id=len(tokens) - 2,
                eos_token_id=len(tokens) - 1,
                pad_token_id=len(tokens) - 1,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            norm_num_groups=8,
            attention_head_dim=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(str(parts)),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def flow(tmp_path_factory: pytest.TempPathFactory, make_tiny_flow: Callable[..., Path]) -> Path:
    """An untrained flow on latents 2x4x4 of 8x8 images, with labels, and the digits' features."""
    return make_tiny_flow(tmp_path_factory.mktemp("flow") / "digits-flow")


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained judge: a fixed function of images, which is all that counting needs."""
    import torch

    from fewstep.tasks.models.judge import JudgeNetwork

    folder = tmp_path_factory.mktemp("judge")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = JudgeNetwork(1, 8, 10, 4)
        network.head.weight.data *= 50
        network.save(folder)
    return folder


@pytest.fixture
def unlogged() -> Generator[None]:
    """No warning of a library is logged: diffusers has one for every setting that a class does not have."""
    import logging

    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, tiny_stable_diffusion: Path) -> Path:
    """An untrained CLIP of images 3x8x8, with the letters' tokenizer of the text-to-image model."""
    import torch
    import transformers as t

    folder = tmp_path_factory.mktemp("clip") / "small-clip"
    tokenizer = t.CLIPTokenizer.from_pretrained(str(tiny_stable_diffusion / "tokenizer"))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = tokenizer.eos_token_id
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": end, **sizes}
    config = t.CLIPConfig(text_config=text, vision_config={"image_size": 8, "patch_size": 4, **sizes}, projection_dim=6)
    torch.manual_seed(0)
    t.CLIPModel(config).eval().save_pretrained(str(folder))
    size = {"height": 8, "width": 8}
    t.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=size).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder
