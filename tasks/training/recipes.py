"""The zoo's recipes: named, readable, complete."""

from __future__ import annotations

from fewstep.errors import ConfigurationError
from fewstep.tasks.models.condition_config import ConditionConfig
from fewstep.tasks.training.recipe import AutoencoderRecipe, TrainingRecipe


def digits_ddpm() -> TrainingRecipe:
    """8x8 digits, 0.16M parameters: small enough to search in minutes on two cores."""
    return TrainingRecipe(
        name="digits-ddpm",
        dataset="digits",
        unet={
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "layers_per_block": 1,
            "block_out_channels": (16, 32),
            "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
            "norm_num_groups": 8,
            "attention_head_dim": 16,
        },
        steps=14_000,
        batch=128,
        learning_rate=2e-3,
        ema=0.9995,
        seed=0,
    )


def digits_edm() -> TrainingRecipe:
    """The digits and the network of digits-ddpm under EDM's preconditioning."""
    return digits_ddpm().model_copy(
        update={
            "name": "digits-edm",
            "objective": "edm",
            "sigma_data": 0.75,
            "sigma_log_mean": -0.8,
            "sigma_log_std": 1.4,
            "steps": 12_000,
        }
    )


def fashion_ddpm() -> TrainingRecipe:
    """28x28 Fashion-MNIST, 1.0M parameters, labels dropped one time in ten so that guidance works.

    Most parameters stand at 14x14 and 7x7: at 28x28 they would double the cost of a call.
    """
    return TrainingRecipe(
        name="fashion-ddpm",
        dataset="fashion",
        unet={
            "sample_size": 28,
            "in_channels": 1,
            "out_channels": 1,
            "layers_per_block": 1,
            "block_out_channels": (16, 32, 80),
            "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            "norm_num_groups": 8,
            "attention_head_dim": 16,
            "num_class_embeds": 11,
        },
        steps=7_000,
        batch=64,
        learning_rate=1.5e-3,
        warmup=300,
        ema=0.999,
        label_dropout=0.1,
        flip=False,
        seed=0,
        classifier_steps=6000,
        feature_dim=64,
    )


def fashion_lfm() -> TrainingRecipe:
    """Flow matching on 4x7x7 latents of 28x28 Fashion-MNIST: autoencoder 0.3M, network 1.0M parameters.

    28 is 4 x 7: with two halvings nothing is padded or cropped. A diffusers UNet2DModel cannot halve 7, so that
    this one has a single resolution, at which convolutions and attention are cheap.
    """
    return TrainingRecipe(
        name="fashion-lfm",
        dataset="fashion",
        autoencoder=AutoencoderRecipe(
            vae={
                "in_channels": 1,
                "out_channels": 1,
                "latent_channels": 4,
                "sample_size": 28,
                "block_out_channels": (16, 32, 40),
                "down_block_types": ("DownEncoderBlock2D",) * 3,
                "up_block_types": ("UpDecoderBlock2D",) * 3,
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "mid_block_add_attention": False,
            },
            steps=8_000,
            batch=64,
            learning_rate=2e-3,
            warmup=300,
        ),
        unet={
            "sample_size": 7,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 2,
            "block_out_channels": (64,),
            "down_block_types": ("AttnDownBlock2D",),
            "up_block_types": ("AttnUpBlock2D",),
            "norm_num_groups": 8,
            "attention_head_dim": 16,
            "num_class_embeds": 11,
        },
        objective="flow",
        steps=8_000,
        batch=128,
        learning_rate=1e-3,
        warmup=500,
        ema=0.9995,
        label_dropout=0.1,
        features_of="fashion-ddpm",
    )


def fashion_lfm_dit() -> TrainingRecipe:
    """On the very latents of fashion-lfm, a DiT of 4 x 96 on patches of one latent: 49 tokens, 0.8M parameters."""
    return fashion_lfm().model_copy(
        update={
            "name": "fashion-lfm-dit",
            "autoencoder_of": "fashion-lfm",
            "unet": None,
            "transformer": {
                "sample_size": 7,
                "patch_size": 1,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 4,
                "num_attention_heads": 4,
                "attention_head_dim": 24,
                "num_embeds_ada_norm": 10,
            },
            "steps": 4_000,
            "warmup": 300,
            "ema": 0.999,
        }
    )


def fashion_lfm_inpaint() -> TrainingRecipe:
    """fashion-lfm that is shown 4 latents of the image without its hole, and the hole.

    Half of the labels are dropped: a picture with a hole mostly comes without a label, which fashion-lfm saw only one
    time in ten. The other half keeps guidance.
    """
    return _shown("fashion-lfm-inpaint", ConditionConfig(kind="inpaint", dataset="fashion", channels=5))


def fashion_lfm_layout() -> TrainingRecipe:
    """fashion-lfm that is shown a layout: background, dark, grey and bright parts, in 8 embedded channels."""
    condition = ConditionConfig(kind="layout", dataset="fashion", channels=8, thresholds=(-0.8, -0.2, 0.3))
    return _shown("fashion-lfm-layout", condition)


def _shown(name: str, condition: ConditionConfig) -> TrainingRecipe:
    recipe = fashion_lfm()
    assert recipe.unet is not None
    return recipe.model_copy(
        update={
            "name": name,
            "unet": recipe.unet | {"in_channels": 4 + condition.channels},
            "condition": condition,
            "starts_from": "fashion-lfm",
            "steps": 3_000,
            "learning_rate": 5e-4,
            "warmup": 200,
            "ema": 0.999,
            "label_dropout": 0.5,
        }
    )


RECIPES = {
    "digits-ddpm": digits_ddpm,
    "digits-edm": digits_edm,
    "fashion-ddpm": fashion_ddpm,
    "fashion-lfm": fashion_lfm,
    "fashion-lfm-dit": fashion_lfm_dit,
    "fashion-lfm-inpaint": fashion_lfm_inpaint,
    "fashion-lfm-layout": fashion_lfm_layout,
}


def training_recipe(name: str) -> TrainingRecipe:
    """The recipe of that name; ConfigurationError names the valid ones."""
    if name not in RECIPES:
        raise ConfigurationError(f"unknown training recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
