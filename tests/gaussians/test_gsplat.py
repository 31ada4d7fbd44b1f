"""Our rasterizers against gsplat: its torch parts on the CPU, all of it on a GPU; and against the kernel's loop."""

import math

import pytest
import torch

from vasa_hf.gaussians import reference
from vasa_hf.gaussians.render import render
from vasa_hf.gaussians.scene import Gaussians, view_colors
from vasa_hf.geometry.cameras import orbit_cameras

SIZE = (48, 70)
FIELDS = ("means", "quats", "scales", "opacities", "colors")


def random_scene(count: int = 200, coefficients: int = 16) -> Gaussians:
    return Gaussians(
        means=torch.randn(count, 3) * 0.4,
        quats=torch.randn(count, 4),
        scales=0.01 + 0.1 * torch.rand(count, 3),
        opacities=0.1 + 0.9 * torch.rand(count),
        colors=0.3 * torch.randn(count, coefficients, 3),
    )


def cameras():
    # Close enough that some Gaussians are behind, and some so far aside that the linearisation is held back.
    return orbit_cameras(torch.tensor([0.2, 2.5]), torch.tensor([0.1, -0.3]), torch.tensor([0.6, 1.5]), fov_rad=0.8)


def test_projection_agrees_with_the_torch_code_of_gsplat():
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    scene, views = random_scene().to(torch.float64), cameras().to(torch.float64)
    scene.opacities.fill_(1.0)  # theirs does not know opacities
    covariance, _ = _quat_scale_to_covar_preci(scene.quats, scene.scales, compute_preci=False)
    theirs = _fully_fused_projection(
        scene.means, covariance, views.camera_from_world, views.intrinsics(SIZE), SIZE[1], SIZE[0]
    )
    for index in range(len(views)):
        ours = reference.project(scene, views[index], SIZE, near=0.01)
        radii, means2d, depths, conics = (value[index] for value in theirs[:4])
        seen = ours.radii > 0
        assert 20 < seen.sum() and torch.equal(seen, (radii > 0).all(dim=-1))
        assert (ours.radii - radii.amax(dim=-1))[seen].abs().max() <= 1
        assert torch.allclose(ours.means2d[seen], means2d[seen])
        assert torch.allclose(ours.conics[seen], conics[seen])
        assert torch.allclose(ours.depths[seen], depths[seen])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_agree_with_the_torch_code_of_gsplat(degree):
    from gsplat.cuda._torch_impl import _spherical_harmonics

    scene, position = random_scene(coefficients=(degree + 1) ** 2), torch.tensor([0.3, -0.2, -1.0])
    theirs = (_spherical_harmonics(degree, scene.means - position, scene.colors) + 0.5).clamp_min(0)
    assert torch.allclose(view_colors(scene.means, scene.colors, position), theirs, atol=1e-5)


def blended_by_a_loop(splats, opacities, features, x, y):
    """A pixel as the CUDA kernel makes it, one Gaussian after the other."""
    blended, transmittance = [0.0] * features.shape[1], 1.0
    for index in torch.argsort(splats.depths).tolist():
        if splats.radii[index] == 0:
            continue
        dx, dy = (splats.means2d[index] - torch.tensor([x + 0.5, y + 0.5])).tolist()
        xx, xy, yy = splats.conics[index].tolist()
        exponent = 0.5 * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
        alpha = min(0.999, opacities[index].item() * math.exp(-exponent))
        if exponent < 0 or alpha < 1 / 255:
            continue
        if transmittance * (1 - alpha) <= 1e-4:
            break
        blended = [b + f * alpha * transmittance for b, f in zip(blended, features[index].tolist(), strict=True)]
        transmittance *= 1 - alpha
    return blended, 1 - transmittance


def test_blending_agrees_with_a_loop():
    scene, size = random_scene(150, 1).to(torch.float64), (8, 9)
    scene.opacities.clamp_min_(0.7)
    splats = reference.project(scene, cameras()[1].to(torch.float64), size, near=0.01)
    picture, alpha = reference.rasterize(splats, scene.opacities, scene.colors[:, 0], size)
    assert (alpha > 0.999).any() and (alpha < 0.5).any()  # some pixels finish early, some do not
    for y in range(size[0]):
        for x in range(size[1]):
            blended, coverage = blended_by_a_loop(splats, scene.opacities, scene.colors[:, 0], x, y)
            assert math.isclose(alpha[0, y, x], coverage, abs_tol=1e-9)
            assert torch.allclose(picture[:, y, x], torch.tensor(blended, dtype=torch.float64))


def pictures_and_gradients(scene, views, device):
    scene = scene.map(lambda value: value.detach().to(device).requires_grad_())
    pictures = len(views) if scene.batch_size is None else scene.batch_size
    probe = torch.zeros(pictures, len(scene), 2, device=device, requires_grad=True)
    out = render(scene, views, SIZE, (0.1, 0.4, 0.8), screen_probe=probe)
    generator = torch.Generator().manual_seed(1)
    outputs = (out.color, out.alpha, out.depth * out.alpha.detach())
    sum((torch.randn(v.shape, generator=generator).to(device) * v).sum() for v in outputs).backward()
    gradients = {name: getattr(scene, name).grad.cpu() for name in FIELDS}
    return [v.detach().cpu() for v in (*outputs, out.radii)], gradients | {"screen_probe": probe.grad.cpu()}


@pytest.mark.gpu
@pytest.mark.parametrize("batched", [False, True])
def test_gsplat_on_cuda_agrees_with_the_cpu(batched):
    scene = random_scene()
    if batched:
        scenes = [scene, random_scene()]
        scene = Gaussians(*(torch.stack([getattr(s, name) for s in scenes]) for name in FIELDS))
    ours, our_gradients = pictures_and_gradients(scene, cameras(), "cpu")
    theirs, their_gradients = pictures_and_gradients(scene, cameras(), "cuda")
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        assert (mine - other).abs().max() < 1e-2 and (mine - other).abs().mean() < 1e-4
    assert ((ours[3] > 0) == (theirs[3] > 0)).float().mean() > 0.99
    for name, value in their_gradients.items():
        assert (our_gradients[name] - value).norm() / value.norm() < 1e-2, name


@pytest.mark.gpu
def test_our_call_of_gsplat_equals_its_own_rasterization():
    from gsplat import rasterization

    scene, views = random_scene().to("cuda"), cameras().to("cuda")
    picture, alpha, _ = rasterization(
        *(scene.means, scene.quats, scene.scales, scene.opacities, scene.colors),
        *(views.camera_from_world, views.intrinsics(SIZE), SIZE[1], SIZE[0]),
        sh_degree=3,
        backgrounds=torch.tensor([[0.1, 0.4, 0.8]] * 2, device="cuda"),
        render_mode="RGB+ED",
    )
    out = render(scene, views, SIZE, (0.1, 0.4, 0.8))
    assert torch.allclose(out.color, picture[..., :3].permute(0, 3, 1, 2), atol=1e-4)
    assert torch.allclose(out.alpha, alpha.permute(0, 3, 1, 2), atol=1e-4)
    assert torch.allclose(out.depth, picture[..., 3:].permute(0, 3, 1, 2), atol=1e-3)
