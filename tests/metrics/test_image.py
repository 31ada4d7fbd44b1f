"""Images: closed forms, torchmetrics where it is installed, and what must get worse."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vasa_hf.evaluation.scoring import Scorer, VideoSample
from vasa_hf.metrics import image
from vasa_hf.models.face_recognizer import FaceRecognizer


def pictures(count=2, size=32):
    """Smooth random images."""
    noise = torch.rand(count, 3, size // 4, size // 4)
    return F.interpolate(noise, size, mode="bicubic").clamp(0, 1)


def blurred(frames, side=5):
    return F.avg_pool2d(frames, side, 1, side // 2, count_include_pad=False)


def test_psnr_of_a_known_error():
    truth = torch.full((1, 3, 8, 8), 0.5)
    assert image.psnr(truth + 0.1, truth).item() == pytest.approx(20.0, abs=1e-3)
    assert image.psnr(truth, truth).item() == math.inf


def test_psnr_inside_a_box_sees_only_the_box():
    truth = torch.zeros(1, 3, 16, 16)
    wrong = truth.clone()
    wrong[..., 4:8, 4:12] = 0.1
    mask = image.box_mask(torch.tensor([[4 / 16, 4 / 16, 12 / 16, 8 / 16]]), 16)
    assert mask.sum() == 32
    assert image.psnr(wrong, truth, mask).item() == pytest.approx(20.0, abs=1e-3)
    assert image.psnr(wrong, truth, 1 - mask).item() == math.inf
    # 32 of 256 pixels are wrong
    assert image.psnr(wrong, truth).item() == pytest.approx(20 + 10 * math.log10(8), abs=1e-3)


def test_box_mask_has_every_touched_pixel():
    mask = image.box_mask(torch.tensor([[0.26, 0.0, 0.5, 1.2]]), (4, 8))
    assert mask[0, 0].tolist() == [[0, 0, 1, 1, 0, 0, 0, 0]] * 4


def test_l1_of_a_known_error():
    assert image.l1(torch.full((2, 3, 4, 4), 0.75), torch.full((2, 3, 4, 4), 0.5)).tolist() == [0.25, 0.25]


def test_ssim_of_flat_images():
    """With no structure only the term of the means is left: (2ab + c) / (a² + b² + c)."""
    a, b = torch.full((1, 3, 16, 16), 0.4), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert image.ssim(a, b).item() == pytest.approx(expected, abs=2e-4)
    assert image.ssim(a, a).item() == pytest.approx(1.0, abs=1e-5)


def test_ssim_and_psnr_against_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image", reason="pip install vasa-hf[eval]")
    truth = pictures()
    made = (blurred(truth) + 0.05 * torch.randn_like(truth)).clamp(0, 1)
    _, places = functional.structural_similarity_index_measure(
        made, truth, data_range=1.0, reduction="none", return_full_image=True
    )
    inside = places[..., 5:-5, 5:-5].mean(
        (1, 2, 3)
    )  # its mean takes in the border, where the window sees mirror images
    assert torch.allclose(image.ssim(made, truth), inside, atol=1e-4)
    theirs = functional.peak_signal_noise_ratio(made, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(image.psnr(made, truth), theirs, atol=1e-3)


def test_ssim_against_a_loop():
    """One place, computed with the full two-dimensional window."""
    truth, made = torch.rand(1, 3, 11, 11), torch.rand(1, 3, 11, 11)
    line = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for x, y in zip(made[0].double().numpy(), truth[0].double().numpy(), strict=True):
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert image.ssim(made, truth).item() == pytest.approx(float(np.mean(values)), abs=1e-4)


def test_blur_makes_every_distance_worse():
    truth = pictures()
    network = FaceRecognizer(image_size=32, widths=(4, 8), depths=(1,), embedding_dim=8, num_feature_maps=2).eval()
    little, much = blurred(truth, 3), blurred(truth, 9)
    for measure, sign in ((image.psnr, 1), (image.ssim, 1), (image.l1, -1)):
        better, worse = measure(little, truth).mean(), measure(much, truth).mean()
        assert sign * better > sign * worse
    maps = [network.feature_maps(made * 2 - 1) for made in (truth, little, much)]
    distances = [image.feature_distance(made, maps[0]).mean() for made in maps]
    assert 0 == distances[0] < distances[1] < distances[2]


def test_another_identity_is_less_alike():
    network = FaceRecognizer(image_size=32, widths=(4, 8), depths=(1,), embedding_dim=8, num_feature_maps=1).eval()
    person, other = pictures(1), 1 - pictures(1)
    scorer = Scorer({"face_recognizer": network})
    identity = lambda frames: scorer.score(("identity",), VideoSample(frames=frames, source=person))["identity"]  # noqa: E731
    assert identity(person) == pytest.approx(1.0, abs=1e-5)
    assert 1 + 1e-6 > identity((person + 0.01 * torch.randn(9, 3, 32, 32)).clamp(0, 1)) > identity(other)


def test_a_image_that_stands_still_is_looked_at_once_with_the_same_result():
    network = FaceRecognizer(image_size=32, widths=(4, 8), depths=(1,), embedding_dim=8, num_feature_maps=2).eval()
    person, truth = pictures(1), pictures(11)
    scorer, results = Scorer({"face_recognizer": network}), []
    for frames in (person.expand(11, -1, -1, -1), person.repeat(11, 1, 1, 1)):
        scorer.collect("copy", frames)
        video = VideoSample(frames=frames, truth=truth, source=truth[:1])
        results.append(scorer.score(("identity", "perceptual", "ssim", "psnr"), video))
    assert results[0] == pytest.approx(results[1], abs=1e-5)
    still, moving = scorer.features["copy"]["fid_recognizer"]
    assert torch.allclose(still, moving, atol=1e-6) and len(still) == 3


@pytest.mark.parametrize("size", [(11, 11), (12, 40), (64, 48), (57, 256)])
def test_ssim_blurs_images_of_any_size(size):
    """The tiles against one convolution with the whole window."""
    line = torch.softmax(torch.randn(11), 0)
    frames = torch.rand(2, 3, *size)
    expected = F.conv2d(frames.flatten(0, 1)[:, None], (line[:, None] * line)[None, None])[:, 0].unflatten(0, (2, 3))
    assert torch.allclose(image.blur(frames, line.tolist()), expected, atol=1e-5)


def test_unequal_shapes_are_reported():
    with pytest.raises(ValueError, match="`images` and `truth`"):
        image.psnr(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 9, 9))
    with pytest.raises(ValueError, match="at least 11 pixels"):
        image.ssim(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
