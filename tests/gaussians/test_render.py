import math
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vasa_hf.gaussians.render import render
from vasa_hf.gaussians.scene import Gaussians, harmonic_basis
from vasa_hf.geometry.cameras import orbit_cameras

SIZE = (45, 61)  # no multiple of the tile
FIELDS = ("means", "quats", "scales", "opacities", "colors")


def random_scene(count: int = 80, coefficients: int | None = None, dtype: torch.dtype = torch.float32) -> Gaussians:
    """Gaussians of all shapes and opacities around the origin."""
    shape = (count, 3) if coefficients is None else (count, coefficients, 3)
    colors = torch.rand(shape) if coefficients is None else 0.3 * torch.randn(shape)
    return Gaussians(
        means=torch.randn(count, 3) * 0.25,
        quats=torch.randn(count, 4) * 2,
        scales=0.02 + 0.15 * torch.rand(count, 3) ** 2,
        opacities=torch.rand(count),
        colors=colors,
    ).to(dtype)


def cameras(count: int = 2):
    return orbit_cameras(torch.linspace(-0.5, 2.0, count), torch.linspace(0.3, -0.2, count), 1.5, fov_rad=0.7)


def difficult_scene() -> Gaussians:
    """Next to ordinary Gaussians: behind the camera, off the screen, invisible, huge, tiny, thin, and at the edge."""
    scene = random_scene(40)
    at = scene.means
    at[0], at[1], at[2] = (
        torch.tensor([0.0, 0.0, -3.0]),
        torch.tensor([30.0, 0.0, 0.0]),
        torch.tensor([0.0, 0.0, -1.495]),
    )
    scene.opacities[3], scene.opacities[4], scene.opacities[5] = 0.0, 1.0, 1 / 255 - 1e-5
    scene.scales[6], scene.scales[7] = 5.0, 1e-6
    scene.scales[8] = torch.tensor([1.0, 1e-4, 1e-4])
    scene.scales[9] = 0.0
    at[10], scene.scales[10] = torch.tensor([1.2, 0.0, -0.9]), 0.4  # linearised at the frustum's margin
    scene.quats[11] = torch.tensor([1e-3, 0.0, 0.0, 0.0])
    return scene


def loss_and_gradients(scene: Gaussians, backend: str, dtype: torch.dtype, views, **options):
    """Images, and gradients of a loss that weighs every pixel of every output differently."""
    scene = scene.map(lambda value: value.detach().to(dtype).requires_grad_())
    pictures = len(views) if scene.batch_size is None else scene.batch_size
    background = torch.tensor([0.2, 0.5, 0.9], dtype=dtype, requires_grad=True)
    probe = torch.zeros(pictures, len(scene), 2, dtype=dtype, requires_grad=True)
    out = render(scene, views, SIZE, background, screen_probe=probe, backend=backend, **options)
    generator = torch.Generator().manual_seed(1)
    outputs = (out.color, out.alpha, out.depth * out.alpha.detach())  # depth alone is unstable where nothing is
    loss = sum((torch.randn(v.shape, generator=generator).to(dtype) * v).sum() for v in outputs)
    loss.backward()
    gradients = {name: getattr(scene, name).grad for name in FIELDS}
    return out, gradients | {"background": background.grad, "screen_probe": probe.grad}


def assert_same_pictures_and_gradients(scene, views):
    out, gradients = loss_and_gradients(scene, "cpu", torch.float32, views)
    expected, expected_gradients = loss_and_gradients(scene, "reference", torch.float64, views)
    assert out.color.dtype == torch.float32
    for name in ("color", "alpha"):
        difference = (getattr(out, name) - getattr(expected, name)).abs()
        # float32 against float64: at single pixels a Gaussian falls on the other side of alpha = 1/255.
        assert difference.max() < 8e-3 and difference.mean() < 2e-6, (name, difference.max(), difference.mean())
    covered = expected.alpha > 0.05
    assert torch.allclose(out.depth[covered].double(), expected.depth[covered], rtol=1e-2)
    assert torch.equal(out.radii > 0, expected.radii > 0)
    for name, value in expected_gradients.items():
        assert torch.isfinite(gradients[name]).all(), name
        # Relative to the whole gradient: some are sums of large terms that cancel.
        error = (gradients[name] - value).norm() / value.norm()
        assert error < 1e-3, (name, error)


@pytest.mark.parametrize("coefficients", [None, 1, 4, 9, 16])
def test_cpu_agrees_with_the_reference(coefficients):
    assert_same_pictures_and_gradients(random_scene(coefficients=coefficients), cameras())


def test_cpu_agrees_with_the_reference_on_difficult_scenes():
    assert_same_pictures_and_gradients(difficult_scene(), cameras(1))


def test_cpu_agrees_with_the_reference_where_pixels_are_finished_early():
    scene = random_scene(400)
    scene.opacities.fill_(0.95)
    out = render(scene, cameras(), SIZE)
    assert (out.alpha > 0.999).float().mean() > 0.1
    assert_same_pictures_and_gradients(scene, cameras())


def test_gradients_of_the_reference_are_those_of_its_images():
    """Against finite differences, with a scene smooth enough: no alpha near 1/255 or 0.999."""
    scene = random_scene(6, coefficients=4, dtype=torch.float64)
    scene.scales, scene.opacities = scene.scales * 0 + 2.0, 0.2 + 0.5 * scene.opacities
    scene.means[:, 2] = torch.linspace(-0.3, 0.3, 6)

    def pictures(*fields):
        out = render(Gaussians(*fields), cameras(1), (3, 4), (0.1, 0.2, 0.3), backend="reference")
        return out.color, out.alpha, out.depth

    fields = [getattr(scene, name).requires_grad_() for name in FIELDS]
    assert torch.autograd.gradcheck(pictures, fields, eps=1e-6, atol=1e-6)


def test_one_gaussian_by_hand():
    """In the middle of the image: alpha is opacity * exp(-d^2 / (2 (s^2 + 0.3))), depth is its distance."""
    scene = Gaussians(
        torch.zeros(1, 3),
        torch.tensor([[2.0, 0, 0, 0]]),
        torch.full((1, 3), 0.05),
        torch.tensor([0.8]),
        torch.ones(1, 3),
    )
    out = render(scene, orbit_cameras(0.0, 0.0, 2.0, fov_rad=0.6), 65, (0.0, 0.0, 0.5))
    variance = (0.05 / 2.0 * 65 / (2 * math.tan(0.3))) ** 2 + 0.3
    for column in (32, 33, 34):
        alpha = 0.8 * math.exp(-((column - 32) ** 2) / (2 * variance))
        assert math.isclose(out.alpha[0, 0, 32, column], alpha, rel_tol=1e-4)
        assert math.isclose(out.color[0, 0, 32, column], alpha, rel_tol=1e-4)
        assert math.isclose(out.color[0, 2, 32, column], alpha + 0.5 * (1 - alpha), rel_tol=1e-4)
        assert math.isclose(out.depth[0, 0, 32, column], 2.0, rel_tol=1e-4)
    assert out.alpha[0, 0, 0, 0] == 0 and out.depth[0, 0, 0, 0] == 0


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nearer_gaussians_cover_farther_ones_from_both_sides(backend):
    scene = Gaussians(
        torch.tensor([[0.0, 0.0, 0.3], [0.0, 0.0, -0.3]]),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1),
        torch.full((2, 3), 0.2),
        torch.full((2,), 0.99),
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    )
    out = render(scene, orbit_cameras(torch.tensor([0.0, math.pi]), 0.0, 2.0), 32, backend=backend)
    red, green = out.color[:, 0, 16, 16], out.color[:, 1, 16, 16]
    assert green[0] > 0.9 > 0.1 > red[0] and red[1] > 0.9 > 0.1 > green[1]


def test_batch_equals_single():
    scenes, views = [random_scene() for _ in range(3)], cameras(3)
    batch = Gaussians(*(torch.stack([getattr(s, name) for s in scenes]) for name in FIELDS))
    together, one_view = render(batch, views, SIZE), render(batch, views[1], SIZE)
    one_scene = render(scenes[1], views, SIZE)
    for index in range(3):
        alone = render(scenes[index], views[index], SIZE)
        assert torch.equal(together.color[index], alone.color[0])
        assert torch.equal(together.radii[index], alone.radii[0])
    assert torch.equal(one_view.depth[1], together.depth[1]) and torch.equal(one_scene.color[1], together.color[1])


def test_the_number_of_threads_changes_nothing():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(loss_and_gradients(random_scene_of_seed(5), "cpu", torch.float32, cameras()))
    finally:
        torch.set_num_threads(before)
    for out, gradients in results[1:]:
        assert torch.equal(out.color, results[0][0].color)
        for name in FIELDS:
            assert torch.equal(gradients[name], results[0][1][name])


def random_scene_of_seed(seed: int) -> Gaussians:
    torch.manual_seed(seed)
    return random_scene()


def test_several_callers_at_once():
    """As the sessions of a web page: each gets its own image."""
    scenes = [random_scene_of_seed(seed) for seed in range(8)]
    expected = [render(scene, cameras(), SIZE).color for scene in scenes]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda scene: render(scene, cameras(), SIZE).color, scenes * 3))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(color, expected[index % 8]) for index, color in enumerate(found))


def test_half_precision_is_rendered_in_single():
    scene = random_scene()
    scene.colors = scene.colors.bfloat16().requires_grad_()
    out = render(scene, cameras(), SIZE)
    out.color.sum().backward()
    assert out.color.dtype == torch.float32 and scene.colors.grad.dtype == torch.bfloat16
    rounded = Gaussians(scene.means, scene.quats, scene.scales, scene.opacities, scene.colors.detach().float())
    assert torch.equal(out.color, render(rounded, cameras(), SIZE).color)


def _picture(queue):
    torch.set_num_threads(2)
    queue.put(render(random_scene_of_seed(3), cameras(1), SIZE).color.sum().item())


def test_a_forked_process_can_render():
    """As the workers of a data loader do, after the parent has already started its threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = render(random_scene_of_seed(3), cameras(1), SIZE).color.sum().item()
    finally:
        torch.set_num_threads(before)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_picture, args=(queue,))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and queue.get() == expected


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_empty_scenes_show_the_background(backend):
    nothing = random_scene(0)
    behind = random_scene(5)
    behind.means[:, 2] = -4.0
    views = orbit_cameras(0.0, 0.0, 1.5)
    for scene in (nothing, behind):
        scene = scene.map(lambda value: value.requires_grad_())
        out = render(scene, views, SIZE, (0.25, 0.5, 0.75), backend=backend)
        assert torch.equal(out.color[0, :, 7, 9], torch.tensor([0.25, 0.5, 0.75]))
        assert out.alpha.max() == 0 and out.depth.max() == 0 and out.radii.sum() == 0
        if len(scene):
            out.color.sum().backward()
            assert scene.means.grad.abs().max() == 0


def test_numbers_that_are_not_finite_spoil_only_their_own_gaussian():
    scene = random_scene()
    expected = render(scene.map(lambda value: value[4:]), cameras(), SIZE).color
    scene.means[0, 1], scene.scales[1, 0] = math.nan, math.inf
    scene.opacities[2], scene.means[3] = math.nan, math.inf
    assert torch.equal(render(scene, cameras(), SIZE).color, expected)


def test_harmonics_are_orthonormal():
    """Of all 16, over the sphere: an error in any of their factors would break it."""
    count = 20000
    z = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 - 1  # Fibonacci's lattice
    angle = torch.arange(count, dtype=torch.float64) * math.pi * (3 - math.sqrt(5))
    ring = (1 - z * z).sqrt()
    basis = harmonic_basis(torch.stack([ring * angle.cos(), ring * angle.sin(), z], dim=-1), 16)
    gram = basis.T @ basis * 4 * math.pi / count
    assert torch.allclose(gram, torch.eye(16, dtype=torch.float64), atol=1e-3)


def test_wrong_arguments_are_refused():
    scene, views = random_scene(4), cameras(2)
    with pytest.raises(ValueError, match="`quats`"):
        Gaussians(scene.means, scene.quats[:, :3], scene.scales, scene.opacities, scene.colors)
    with pytest.raises(ValueError, match="`colors`"):
        Gaussians(scene.means, scene.quats, scene.scales, scene.opacities, torch.rand(4, 5, 3))
    with pytest.raises(ValueError, match="`means`"):
        Gaussians(scene.means[0], scene.quats, scene.scales, scene.opacities, scene.colors)
    with pytest.raises(ValueError, match="`size`"):
        render(scene, views, 0)
    with pytest.raises(ValueError, match="`background`"):
        render(scene, views, 8, (0.0, 1.0))
    with pytest.raises(ValueError, match="`backend`"):
        render(scene, views, 8, backend="gpu")
    with pytest.raises(ValueError, match="`backend`"):
        render(scene, views, 8, backend="cuda")
    with pytest.raises(ValueError, match="`screen_probe`"):
        render(scene, views, 8, screen_probe=torch.zeros(4, 2))
    with pytest.raises(ValueError, match="`cameras`"):
        render(scene.map(lambda value: value.expand(3, *value.shape)), views, 8)
    views.focal.requires_grad_()
    with pytest.raises(ValueError, match="`cameras`"):
        render(scene, views, 8)
