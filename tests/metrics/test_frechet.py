"""Fréchet distances: closed forms of Gaussians, and what must get worse."""

import pytest
import torch

from vasa_hf.evaluation.networks import load_i3d, load_inception
from vasa_hf.metrics.frechet import cut_clips, frechet_distance, video_features


def whitened(count, dim):
    """Samples whose mean is exactly 0 and covariance exactly 1."""
    x = torch.randn(count, dim, dtype=torch.float64)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T.cov())
    return x @ vectors / values.sqrt()


def test_distance_of_gaussians_that_differ_in_mean_and_spread():
    """|m|² + sum over axes of (s1 - s2)², when the axes are the same."""
    a = whitened(50, 3)
    scale, shift = torch.tensor([2.0, 1.0, 0.5]).double(), torch.tensor([1.0, -2.0, 0.0]).double()
    assert frechet_distance(a * scale + shift, a) == pytest.approx(5 + 1 + 0.25, abs=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_distance_against_the_matrix_square_root():
    """tr (A B)^½ = tr (A^½ B A^½)^½, the symmetric form, by eigendecomposition."""
    a, b = torch.randn(40, 4).double() @ torch.randn(4, 4).double(), torch.randn(30, 4).double() + 1
    ca, cb = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(ca)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cb @ root).clamp_min(0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_against_torchmetrics():
    pytest.importorskip("torchmetrics", reason="pip install vasa-hf[eval]")
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Pixels(torch.nn.Module):
        num_features = 12

        def forward(self, pictures):
            return pictures.flatten(1).float()

    real, made = torch.rand(30, 3, 2, 2), torch.rand(25, 3, 2, 2) * 0.5
    fid = FrechetInceptionDistance(feature=Pixels(), normalize=False, input_img_size=(3, 2, 2))
    fid.update(real, real=True)
    fid.update(made, real=False)
    assert frechet_distance(made.flatten(1), real.flatten(1)) == pytest.approx(float(fid.compute()), rel=1e-3)


def test_noise_on_the_images_makes_it_worse():
    real = torch.rand(40, 6)
    distances = [frechet_distance(real + spread * torch.randn(40, 6), real) for spread in (0.0, 0.3, 1.0)]
    assert distances == sorted(distances) and distances[0] < 1e-6


def test_too_few_samples_are_reported():
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_distance(torch.rand(1, 3), torch.rand(5, 3))
    with pytest.raises(ValueError, match="samples, dim"):
        frechet_distance(torch.rand(4, 3), torch.rand(5, 2))


def test_clips_do_not_overlap_and_short_videos_are_reported():
    video = torch.arange(53.0).view(53, 1, 1, 1).expand(53, 3, 2, 2)
    assert cut_clips(video)[:, :, 0, 0, 0].tolist() == [list(range(25)), list(range(25, 50))]
    with pytest.raises(ValueError, match="shorter than a window"):
        cut_clips(video[:24])


class MeanMotion(torch.nn.Module):
    """Stands in for I3D with its interface: means of colours and of their change."""

    def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = False):
        assert not rescale and not resize and return_features
        change = (x[:, :, 1:] - x[:, :, :-1]).abs()
        return torch.cat([x.mean((2, 3, 4)), change.mean((2, 3, 4))], 1)


def test_fvd_of_frozen_videos_is_worse(tmp_path):
    torch.jit.script(MeanMotion()).save(tmp_path / "i3d.pt")
    network = load_i3d(tmp_path / "i3d.pt")
    videos = [torch.rand(25, 3, 8, 8) for _ in range(4)]
    features = [video_features(network, video) for video in videos]
    assert features[0].shape == (1, 6)
    again = torch.cat([video_features(network, (v + 0.01 * torch.rand_like(v)).clamp(0, 1)) for v in videos])
    frozen = torch.cat([video_features(network, v[:1].expand(25, -1, -1, -1)) for v in videos])
    assert frechet_distance(again, torch.cat(features)) < frechet_distance(frozen, torch.cat(features))


def test_absent_networks_are_reported(tmp_path):
    with pytest.raises(ValueError, match="`fvd_network` must be an existing TorchScript file"):
        load_i3d(tmp_path / "nothing.pt")
    (tmp_path / "no.pt").write_bytes(b"no network")
    with pytest.raises(ValueError, match="`fid_network` must be a TorchScript file"):
        load_inception(tmp_path / "no.pt")
