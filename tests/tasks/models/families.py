"""Tiny pipelines of diffusers' families with random weights: real classes, real calls, vocabularies of letters.

`FAMILIES[name].build()` makes one in a fraction of a second, `run` calls it. Tests reach this module through the
fixtures `families` and `family_folder` of tests/conftest.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    KandinskyV22Pipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMPipeline,
    MotionAdapter,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
    VQModel,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,."
PROMPT_LENGTH = 16
PROMPTS = ["a red cat", "two dogs, blue"]
HIDDEN = 16
# Arguments of a call that conditions say by other names.
SAID = {"prompt", "negative_prompt", "guidance_scale", "batch_size", "class_labels"}


@dataclass(frozen=True)
class Family:
    """How a family's pipeline is built and called.

    `arguments()` are those of a call that makes two images or videos (`output`); `network` names the denoiser's
    component. `latents` is the shape of the starting noise that a call takes as `latents` (None: the pipeline draws its
    own). `strength` below 1 starts in the middle. diffusers loads some networks with accelerate alone.
    """

    name: str
    build: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]]
    network: str = "unet"
    latents: tuple[int, ...] | None = (2, 4, 8, 8)
    strength: bool = False
    output: str = "images"
    needs_accelerate: bool = False


def run(family: Family, pipe: Any, steps: int, **more: Any) -> npt.NDArray[np.float32]:
    """Two images or videos of one call, a function of nothing but the pipeline, the steps and `more`.

    Its starting noise comes from a generator with seed 0, where it is not given as `latents`.
    """
    pipe.set_progress_bar_config(disable=True)
    given = {"output_type": "np", "generator": torch.Generator().manual_seed(0), **family.arguments(), **more}
    made = pipe(num_inference_steps=steps, **given)
    return np.asarray(getattr(made, family.output), np.float32)


# -- text ---------------------------------------------------------------------------------------------


def clip_tokenizer() -> Any:
    """Letters, at the ends of words and within them."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), start, end]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=PROMPT_LENGTH, **special)


def clip_encoder(hidden: int = HIDDEN, projected: bool = False) -> Any:
    """CLIP's text encoder, with a projection to as many numbers where `projected`."""
    words = 2 * len(LETTERS) + 2
    config = transformers.CLIPTextConfig(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=hidden,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=PROMPT_LENGTH,
        projection_dim=hidden,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def t5_tokenizer() -> Any:
    """Letters and the mark of a word's start."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=PROMPT_LENGTH)


def t5_encoder(kind: str = "T5", hidden: int = HIDDEN) -> Any:
    """The encoder of T5 or UMT5."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(LETTERS) + 4, d_model=hidden, d_kv=8, d_ff=hidden, num_layers=1, num_heads=2
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def gemma_tokenizer() -> Any:
    """Letters and the mark of a space."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    return transformers.GemmaTokenizerFast(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def gemma_encoder() -> Any:
    """Gemma 2."""
    config = transformers.Gemma2Config(
        vocab_size=len(LETTERS) + 6,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
    return transformers.Gemma2Model(config)


# -- networks and autoencoders ------------------------------------------------------------------------


def kl(channels: int = 4, **more: Any) -> Any:
    """An AutoencoderKL of latents half as wide as their images."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


def vq(channels: int = 3, widths: tuple[int, int] = (8, 16), **more: Any) -> Any:
    """A VQModel of latents half as wide as their images."""
    return VQModel(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        num_vq_embeddings=16,
        norm_num_groups=4,
        **more,
    )


def unet(channels: int = 3, out_channels: int | None = None) -> Any:
    """An unconditional UNet on 8x8 images."""
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=out_channels or channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )


def text_unet(**changes: Any) -> Any:
    """A UNet on latents 4x8x8 with attention to text."""
    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": HIDDEN,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**settings, **changes})


def picture(seed: int, size: int = 16, mode: str = "RGB") -> Image.Image:
    """A picture of noise, or a mask of its left half."""
    if mode == "L":
        mask = np.zeros((size, size), np.uint8)
        mask[:, : size // 2] = 255
        return Image.fromarray(mask)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


# -- families without text ----------------------------------------------------------------------------


def ddpm() -> Any:
    """DDPM on pixels."""
    return DDPMPipeline(unet(), DDPMScheduler())


def ddpm_learned_variance() -> Any:
    """An iDDPM or ADM network, which returns a variance beside the noise."""
    return DDPMPipeline(unet(out_channels=6), DDPMScheduler(variance_type="learned_range"))


def ddim() -> Any:
    """DDIM on pixels: this pipeline hands `eta` and `generator` to its scheduler."""
    return DDIMPipeline(unet(), DDIMScheduler())


def ldm() -> Any:
    """Unconditional latent diffusion with a vector-quantised decoder."""
    scheduler = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False)
    return LDMPipeline(vq(), unet(), scheduler)


def dit() -> Any:
    """DiT: thousand classes, learned variance, and a KL decoder."""
    network = DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )
    return DiTPipeline(network, kl(), DPMSolverMultistepScheduler())


def kandinsky() -> Any:
    """Kandinsky 2.2's decoder: image embeddings in, learned variance, MoVQ out."""
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=HIDDEN,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=HIDDEN,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
    )
    movq = vq(4, (32, 64), norm_type="spatial", vq_embed_dim=4)  # spatial norms have groups of 32
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, clip_sample=False, variance_type="learned_range", thresholding=False
    )
    return KandinskyV22Pipeline(network, scheduler, movq)


# -- Stable Diffusion and its kin ---------------------------------------------------------------------

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sd_scheduler(**more: Any) -> Any:
    """Stable Diffusion's."""
    settings = {**SD_BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return DDIMScheduler(**{**settings, **more})


def sd_parts(**changes: Any) -> dict[str, Any]:
    """The components of a Stable Diffusion pipeline; some may be given."""
    parts = {
        "vae": kl,
        "text_encoder": clip_encoder,
        "tokenizer": clip_tokenizer,
        "unet": text_unet,
        "scheduler": sd_scheduler,
    }
    made = {name: changes.pop(name) if name in changes else make() for name, make in parts.items()}
    return {**made, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, **changes}


def sd() -> Any:
    """Stable Diffusion 1.x."""
    return StableDiffusionPipeline(**sd_parts())


def sd_v() -> Any:
    """Stable Diffusion 2.x, which predicts v."""
    return StableDiffusionPipeline(**sd_parts(scheduler=sd_scheduler(prediction_type="v_prediction")))


def sd_zero_snr() -> Any:
    """The same with betas rescaled to zero terminal SNR, and guidance rescaled by its call."""
    scheduler = sd_scheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", set_alpha_to_one=True
    )
    return StableDiffusionPipeline(**sd_parts(scheduler=scheduler))


def sd_img2img() -> Any:
    """Image to image."""
    return StableDiffusionImg2ImgPipeline(**sd_parts())


def sd_inpaint() -> Any:
    """Inpainting with a network of nine channels: latents, mask, masked latents."""
    return StableDiffusionInpaintPipeline(**sd_parts(unet=text_unet(in_channels=9)))


def sd_inpaint_plain() -> Any:
    """Inpainting with a text-to-image network: what is kept is noised anew at each step."""
    return StableDiffusionInpaintPipeline(**sd_parts())


def controlnet() -> Any:
    """Stable Diffusion with a ControlNet that is not zero."""
    control = ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=HIDDEN,
        conditioning_embedding_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    for block in [*control.controlnet_down_blocks, control.controlnet_mid_block]:
        torch.nn.init.normal_(block.weight, std=0.5)
    torch.nn.init.normal_(control.controlnet_cond_embedding.conv_out.weight, std=0.5)
    return StableDiffusionControlNetPipeline(**sd_parts(controlnet=control))


def lcm() -> Any:
    """A latent consistency model, whose network is told its guidance."""
    scheduler = LCMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False)
    return LatentConsistencyModelPipeline(**sd_parts(unet=text_unet(time_cond_proj_dim=8), scheduler=scheduler))


def sdxl() -> Any:
    """SDXL: two text encoders, and sizes told to the network."""
    network = text_unet(
        transformer_layers_per_block=(1, 1),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=HIDDEN + 6 * 4,
        cross_attention_dim=2 * HIDDEN,
        use_linear_projection=True,
    )
    return StableDiffusionXLPipeline(
        vae=kl(),
        text_encoder=clip_encoder(),
        text_encoder_2=clip_encoder(projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def animatediff() -> Any:
    """AnimateDiff: Stable Diffusion with a motion module, on latents (B, C, frames, H, W)."""
    motion = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
        motion_max_seq_length=8,
    )
    scheduler = DDIMScheduler(**{**SD_BETAS, "beta_schedule": "linear"}, clip_sample=False, steps_offset=1)
    return AnimateDiffPipeline(
        vae=kl(),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        unet=text_unet(),
        motion_adapter=motion,
        scheduler=scheduler,
    )


# -- transformers -------------------------------------------------------------------------------------


def pixart_sigma() -> Any:
    """PixArt-Sigma: a diffusion transformer with T5 and learned variance."""
    network = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=HIDDEN,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(t5_tokenizer(), t5_encoder(), kl(), network, DPMSolverMultistepScheduler())


def sana() -> Any:
    """Sana: linear attention, Gemma, a deeply compressing autoencoder, a flow walked by DPM-Solver."""
    network = SanaTransformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=HIDDEN,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, final_sigmas_type="zero"
    )
    return SanaPipeline(gemma_tokenizer(), gemma_encoder(), vae, network, scheduler)


def sd3() -> Any:
    """Stable Diffusion 3: two CLIPs and T5, a flow with shift 3."""
    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * HIDDEN,
        caption_projection_dim=16,
        pooled_projection_dim=2 * HIDDEN,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305),
        text_encoder=clip_encoder(projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(hidden=2 * HIDDEN),
        tokenizer_3=t5_tokenizer(),
    )


FLUX_SHIFTING = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


def flux() -> Any:
    """FLUX.1 dev: packed latents (B, patches, C), a shift by resolution, guidance told to the network."""
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        pooled_projection_dim=HIDDEN,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, **FLUX_SHIFTING),
        vae=kl(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=network,
    )


def wan() -> Any:
    """Wan: a video flow walked by UniPC, on latents (B, C, frames, H, W)."""
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=HIDDEN,
        freq_dim=8,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=16,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.5, 1.0, 2.0, 0.5],
    )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder("UMT5"),
        vae=vae,
        scheduler=scheduler,
        transformer=network,
    )


def cogvideox() -> Any:
    """CogVideoX: a video transformer that predicts v, on latents (B, frames, C, H, W)."""
    network = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=HIDDEN,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=PROMPT_LENGTH,
    )
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    return CogVideoXPipeline(t5_tokenizer(), t5_encoder(), vae, network, scheduler)


# -- the list -----------------------------------------------------------------------------------------


def _text(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"prompt": list(PROMPTS), **{"height": 16, "width": 16, **more}}


def _guided(**more: Any) -> Callable[[], dict[str, Any]]:
    return _text(negative_prompt=["grey"] * len(PROMPTS), guidance_scale=3.0, **more)


def _pictures() -> list[Image.Image]:
    return [picture(i) for i in range(len(PROMPTS))]


def _from_pictures(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"prompt": list(PROMPTS), "guidance_scale": 3.0, "image": _pictures(), "strength": 1.0, **more}


def _inpainted() -> dict[str, Any]:
    return {**_from_pictures()(), "mask_image": picture(0, mode="L"), "height": 16, "width": 16}


def _embedded() -> dict[str, Any]:
    pair = torch.randn(2, 2, HIDDEN, generator=torch.Generator().manual_seed(7))
    return {"image_embeds": pair[0], "negative_image_embeds": pair[1], "height": 16, "width": 16}


FAMILIES = {
    family.name: family
    for family in (
        Family("ddpm", ddpm, lambda: {"batch_size": 2}, latents=None),
        Family("ddpm_learned_variance", ddpm_learned_variance, lambda: {"batch_size": 2}, latents=None),
        Family("ddim", ddim, lambda: {"batch_size": 2}, latents=None),
        Family("ldm", ldm, lambda: {"batch_size": 2}, latents=None),
        Family("dit", dit, lambda: {"class_labels": [3, 5]}, "transformer", None),
        Family("kandinsky", kandinsky, _embedded),
        Family("sd", sd, _guided()),
        Family("sd_v", sd_v, _guided()),
        Family("sd_zero_snr", sd_zero_snr, _guided(guidance_rescale=0.7)),
        Family("sd_img2img", sd_img2img, _from_pictures(), latents=None, strength=True),
        Family("sd_inpaint", sd_inpaint, _inpainted, latents=None, strength=True),
        Family("sd_inpaint_plain", sd_inpaint_plain, _inpainted, latents=None, strength=True),
        Family("controlnet", controlnet, lambda: {**_guided()(), "image": _pictures()}),
        Family("lcm", lcm, _text(guidance_scale=5.0)),
        Family("sdxl", sdxl, _guided()),
        Family("animatediff", animatediff, _guided(num_frames=2), latents=(2, 4, 2, 8, 8), output="frames"),
        Family(
            "pixart_sigma",
            pixart_sigma,
            _guided(max_sequence_length=PROMPT_LENGTH, use_resolution_binning=False, clean_caption=False),
            "transformer",
        ),
        Family(
            "sana",
            sana,
            _guided(
                height=32,
                width=32,
                max_sequence_length=PROMPT_LENGTH,
                use_resolution_binning=False,
                clean_caption=False,
                complex_human_instruction=None,
            ),
            "transformer",
            (2, 4, 16, 16),
        ),
        Family("sd3", sd3, _guided(max_sequence_length=PROMPT_LENGTH), "transformer"),
        Family("flux", flux, _text(guidance_scale=3.5, max_sequence_length=PROMPT_LENGTH), "transformer", (2, 16, 16)),
        Family(
            "wan",
            wan,
            _guided(num_frames=5, max_sequence_length=PROMPT_LENGTH),
            "transformer",
            (2, 4, 2, 2, 2),
            output="frames",
            needs_accelerate=True,
        ),
        Family(
            "cogvideox",
            cogvideox,
            _guided(num_frames=5, max_sequence_length=PROMPT_LENGTH),
            "transformer",
            (2, 2, 4, 2, 2),
            output="frames",
        ),
    )
}


def conditions(family: Family, place: Path, **more: Any) -> Any:
    """What a family's call is given, as fewstep's conditions say it; images are put into a folder each of `place`.

    Of arguments that are tensors only their lack can be said.
    """
    from fewstep.tasks.models.conditions import Conditions

    arguments = family.arguments() | more
    call = []
    for name, value in arguments.items():
        if name in SAID or isinstance(value, torch.Tensor):
            continue
        images = value if isinstance(value, list) else [value]
        if isinstance(images[0], Image.Image):
            folder = place / f"{family.name}-{name}"
            folder.mkdir(exist_ok=True)
            for i, image in enumerate(images):
                image.save(folder / f"{i}.png")
            call.append(f"{name}={folder}")
        else:
            call.append(f"{name}={json.dumps(value)}")
    negative = arguments.get("negative_prompt", "")
    return Conditions(
        labels="balanced" if "class_labels" in arguments else "none",
        prompts="\n".join(arguments.get("prompt", ())),
        negative_prompt=negative if isinstance(negative, str) else negative[0],
        guidance=arguments.get("guidance_scale", 1.0),
        call=tuple(call),
    )


def build(name: str) -> Any:
    """The pipeline of a family: the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = FAMILIES[name].build()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe
