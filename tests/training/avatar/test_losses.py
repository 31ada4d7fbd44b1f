import math
from itertools import product

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.models.test_gaussian_avatar_vasa3d import tiny_head
from vasa_hf import FaceRecognizer, Vasa3DGaussianAvatar
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.metrics.image import feature_distance, ssim
from vasa_hf.models.lpips import FILE_NAME, Lpips
from vasa_hf.training.avatar.losses import (
    PROMPT,
    PerceptualDistance,
    ScoreDistillation,
    consistency_cameras,
    random_cameras,
    recon_loss,
    sds_t_max,
    sharpen,
    sharpening_loss,
    ssim_loss,
)
from vasa_hf.training.avatar.presets import ABLATIONS, PRESETS, choose_preset


def pictures(count=2, size=24, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def make_avatar():
    config = {"motion_dim": 11, "motion_space": "tiny", "hidden_size": 16}
    return Vasa3DGaussianAvatar.from_head(tiny_head(), num_gaussians=30, **config)


# --- Eq. 5 ------------------------------------------------------------------------------------------------------------


def test_ssim_loss_has_the_number_and_the_gradient_of_the_metric():
    """The metric has no filter of its own for the way back: autograd goes through its sums."""
    target = pictures(seed=1, dtype=torch.float64)
    results = []
    for function in (lambda x: 1 - ssim(x, target).mean(), lambda x: ssim_loss(x, target)):
        x = (0.7 * target + 0.3 * pictures(dtype=torch.float64)).requires_grad_(True)
        value = function(x)
        value.backward()
        results.append((value.detach(), x.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-12)


def test_eq_5():
    prediction, target = pictures(), pictures(seed=1)
    absolute, similar = (prediction - target).abs().mean(), 1 - ssim(prediction, target).mean()
    torch.testing.assert_close(recon_loss(prediction, target), 0.1 * similar + 0.9 * absolute)
    torch.testing.assert_close(recon_loss(prediction, target, 0.0), absolute)
    assert recon_loss(target, target).abs() < 1e-6


# --- perceptual -------------------------------------------------------------------------------------------------------


def make_recognizer(folder):
    torch.manual_seed(0)
    FaceRecognizer(image_size=32, widths=(4, 4, 8), depths=(1, 1), embedding_dim=4, num_feature_maps=3).save_pretrained(
        folder
    )
    return folder


def test_perceptual_distance_without_lpips_is_that_of_the_recogniser(tmp_path):
    distance = PerceptualDistance(recognizer=make_recognizer(tmp_path))
    assert distance.name == "face_recognizer"
    prediction, target = pictures(4, 32).requires_grad_(True), pictures(2, 32, seed=1).requires_grad_(True)
    maps = [distance.network.feature_maps(p * 2 - 1) for p in (prediction, target.repeat(2, 1, 1, 1))]
    value = distance(prediction, target)  # two predictions of each frame
    torch.testing.assert_close(value, 0.1 * feature_distance(*maps).mean())
    value.backward()
    assert prediction.grad.abs().sum() > 0 and target.grad is None
    assert distance(target.detach(), target) == 0


def test_perceptual_distance_with_lpips_is_lpips(tmp_path):
    torch.manual_seed(0)
    save_file(Lpips("alex").state_dict(), tmp_path / FILE_NAME)
    distance = PerceptualDistance(lpips=tmp_path)
    assert distance.name == "lpips"
    prediction, target = pictures(2, 64).requires_grad_(True), pictures(2, 64, seed=1)
    value = distance(prediction, target)
    torch.testing.assert_close(value, distance.network(prediction, target).mean())
    value.backward()
    assert prediction.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="`lpips`"):
        PerceptualDistance(lpips=tmp_path / "nowhere")


# --- CAS --------------------------------------------------------------------------------------------------------------


def test_sharpening_is_amds_filter():
    """Each pixel by itself, as the shader has it, with `CAS_BETTER_DIAGONALS`."""
    picture, sharpness = pictures(1, 6, dtype=torch.float64), 0.4
    result = sharpen(picture, sharpness)[0]
    for y, x in product(range(6), range(6)):
        a, b, c, d, e, f, g, h, i = (
            picture[0, :, min(max(y + v, 0), 5), min(max(x + u, 0), 5)] for v in (-1, 0, 1) for u in (-1, 0, 1)
        )
        cross, box = [v[1].item() for v in (b, d, e, f, h)], [v[1].item() for v in (a, b, c, d, e, f, g, h, i)]
        low, high = min(cross) + min(box), max(cross) + max(box)
        weight = math.sqrt(min(max(min(low, 2 - high) / high, 0), 1)) * -1 / (8 * (1 - sharpness) + 5 * sharpness)
        expected = ((b + d + f + h) * weight + e) / (1 + 4 * weight)
        torch.testing.assert_close(result[:, y, x], expected.clamp(0, 1))


def test_sharpening_leaves_plain_pictures_alone_and_raises_contrast():
    plain = torch.full((1, 3, 8, 8), 0.4)
    torch.testing.assert_close(sharpen(plain), plain)
    edge = torch.full((1, 3, 8, 8), 0.4)
    edge[..., 4:] = 0.6
    weak, strong = sharpen(edge, 0.0), sharpen(edge, 1.0)
    assert strong[..., 4].min() > weak[..., 4].min() > 0.6 and strong[..., 3].max() < weak[..., 3].max() < 0.4
    with pytest.raises(ValueError, match="`sharpness`"):
        sharpen(edge, 1.5)


def test_the_sharpening_loss_makes_pictures_sharper(tmp_path):
    distance = PerceptualDistance(recognizer=make_recognizer(tmp_path))
    blurred = torch.nn.functional.avg_pool2d(pictures(1, 36, seed=3), 5, 1)
    picture = blurred.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([picture], lr=2e-3)
    for _ in range(20):
        optimizer.zero_grad()
        sharpening_loss(distance, picture).backward()
        optimizer.step()
    contrast = [p.detach().diff(dim=-1).abs().mean() for p in (blurred, picture)]
    assert contrast[1] > 1.02 * contrast[0]


# --- views ------------------------------------------------------------------------------------------------------------


def angles(avatar, gaussians, cameras):
    """Azimuth and elevation in degrees, about the head; from each of them it looks as large as from the front."""
    center = gaussians.means.mean(dim=1)
    position = cameras.position - center
    distance = avatar.config.camera_distance_cm + center[:, 2]
    torch.testing.assert_close(position.norm(dim=1), distance, rtol=1e-4, atol=1e-3)
    azimuth, flat = torch.atan2(position[:, 0], -position[:, 2]), position[:, [0, 2]].norm(dim=1)
    return torch.rad2deg(azimuth), torch.rad2deg(torch.atan2(-position[:, 1], flat))


def moving_head(count):
    """The head of an avatar at places and distances of its own in each frame."""
    avatar, motion = make_avatar(), torch.zeros(count, 11)
    motion[:, 0] = torch.linspace(-0.5, 0.5, count)
    means = avatar.head.template[:8].expand(count, -1, -1) + 10 * torch.randn(count, 1, 3)
    fill = torch.ones(count, 8, 4)
    return avatar, Gaussians(means, fill, fill[..., :3], fill[..., 0], fill[..., :3]), motion


def test_consistency_looks_from_the_side_that_the_frame_does_not_show():
    avatar, gaussians, motion = moving_head(400)
    cameras = consistency_cameras(avatar, gaussians, motion, torch.Generator().manual_seed(0))
    azimuth, elevation = angles(avatar, gaussians, cameras)
    yaw = torch.rad2deg(motion[:, 0])
    seen = azimuth + yaw  # how far the face is turned in that picture
    assert (seen.abs() > 34.9).all() and (seen.abs() < 55.1).all() and (seen * yaw <= 0).all()
    assert seen.abs().min() < 36 and seen.abs().max() > 54
    assert 14 < elevation.abs().max() < 15.1


def test_random_views_are_all_around():
    avatar, gaussians, _ = moving_head(400)
    cameras = random_cameras(avatar, gaussians, torch.Generator().manual_seed(0))
    azimuth, elevation = angles(avatar, gaussians, cameras)
    assert azimuth.min() < -175 and azimuth.max() > 175 and azimuth.mean().abs() < 15
    assert 21.5 < elevation.abs().max() < 22.6


# --- SDS --------------------------------------------------------------------------------------------------------------


def make_text_to_image(folder, prediction_type="epsilon"):
    """A real Stable Diffusion of a few thousand weights, on disk."""
    torch.manual_seed(0)
    (folder / "text").mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [","]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "text" / "vocab.json").write_text(str({word: i for i, word in enumerate(words)}).replace("'", '"'))
    (folder / "text" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "text" / "vocab.json"), str(folder / "text" / "merges.txt"), model_max_length=77
    )
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=words.index("<|startoftext|>"),
        eos_token_id=words.index("<|endoftext|>"),
        pad_token_id=words.index("<|endoftext|>"),
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(prediction_type=prediction_type, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return pipeline, folder / "pipeline"


def test_sds_gradient(tmp_path):
    """The gradient that reaches the latents is 0.001 (1 - alpha_bar) (guided noise - noise), with the model's words."""
    pipeline, folder = make_text_to_image(tmp_path)
    sds = ScoreDistillation(folder)
    assert sds.image_size == 16 and (sds.guidance_scale, sds.gradient_scale) == (10.0, 0.001)
    picture, latents = pictures(2, 40).requires_grad_(True), []
    encode = sds.vae.encode

    def watched(x):
        out = encode(x)
        out.latent_dist.mean.retain_grad()
        latents.append(out.latent_dist.mean)
        return out

    sds.vae.encode = watched
    sds(picture, 0.02, 0.98, torch.Generator().manual_seed(5)).backward()
    assert picture.grad.abs().sum() > 0 and all(p.grad is None for p in sds.unet.parameters())

    generator = torch.Generator().manual_seed(5)
    clean = latents[0].detach() * pipeline.vae.config.scaling_factor
    step = ((0.02 + 0.96 * torch.rand(2, generator=generator)) * 1000).long()
    noise = torch.randn(clean.shape, generator=generator)
    scheduler, unet = pipeline.scheduler, pipeline.unet
    embeds = pipeline.encode_prompt(PROMPT, "cpu", 1, True)
    with torch.no_grad():
        noisy = scheduler.add_noise(clean, noise, step)
        plain, prompted = (unet(noisy, step, e.expand(2, -1, -1)).sample for e in (embeds[1], embeds[0]))
    guided = plain + 10 * (prompted - plain)
    weight = (1 - scheduler.alphas_cumprod[step]).view(-1, 1, 1, 1)
    expected = 0.001 * weight * (guided - noise) * pipeline.vae.config.scaling_factor / 2
    torch.testing.assert_close(latents[0].grad, expected, rtol=1e-3, atol=1e-8)


def test_sds_understands_v_prediction(tmp_path):
    """The same network read as predicting v: its noise is sqrt(a) v + sqrt(1 - a) x (Salimans and Ho 2022)."""
    noise, v = (ScoreDistillation(make_text_to_image(tmp_path / kind, kind)[0]) for kind in ("epsilon", "v_prediction"))
    latents, step = torch.randn(1, 4, 8, 8), torch.tensor([300])
    alpha = v.alphas[300]
    with torch.no_grad():
        expected = alpha.sqrt() * noise.predict_noise(latents, step) + (1 - alpha).sqrt() * latents
        torch.testing.assert_close(v.predict_noise(latents, step), expected)


def test_sds_refuses_what_is_no_text_to_image_model(tmp_path):
    with pytest.raises(ValueError, match="`sds`"):
        ScoreDistillation(tmp_path)
    with pytest.raises(ValueError, match="`sds`.*unet"):
        ScoreDistillation(torch.nn.Linear(1, 1))


def test_sds_time_decays_as_in_appendix_a():
    assert sds_t_max(0) == sds_t_max(1_999) == 0.98
    assert sds_t_max(2_000) == pytest.approx(0.98 * 0.98)
    assert sds_t_max(200_000) == pytest.approx(0.98 * 0.98**100)


# --- presets ----------------------------------------------------------------------------------------------------------


def test_the_papers_numbers():
    paper = PRESETS["paper"]
    weights = {"ssim": 0.1, "perceptual": 1.0, "adversarial": 0.001, "sds": 1.0, "consist": 0.01, "sharpen": 10.0}
    assert {name: getattr(paper, f"weight_{name}") for name in weights} == weights
    assert (paper.iterations, paper.sharpen_iterations, paper.size, paper.sds_every) == (200_000, 20_000, 512, 10)
    density = paper.density()
    assert (density.start, density.stop, density.interval, density.max_gaussians) == (10_000, 100_000, 2_000, 200_000)
    assert not any(PRESETS["fast"].density().changes_at(step) for step in range(PRESETS["fast"].total_iterations + 1))


def test_each_row_of_table_1_adds_one_thing():
    changes = []
    for row in ABLATIONS:
        preset = choose_preset("paper", row)
        changes.append((preset.deform, preset.weight_sds > 0, preset.weight_consist > 0, preset.sharpen_iterations > 0))
    assert changes == [tuple(row > column for column in range(4)) for row in range(5)]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("slow",), "`preset`"),
        (("fast", "all"), "`ablation`"),
        (("fast", None, {"iteration": 5}), "`overrides`.*iteration"),
        (("fast", None, {"iterations": 0}), "`iterations`"),
        (("fast", None, {"weight_sds": -1.0}), "`weight_sds`"),
        (("fast", None, {"sds_every": 0.5}), "`sds_every`"),
        (("fast", None, {"mixed_precision": "fp16"}), "`mixed_precision`"),
    ],
)
def test_bad_presets(arguments, name):
    *names, overrides = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(ValueError, match=name):
        choose_preset(*names, **overrides)
