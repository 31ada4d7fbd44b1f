import dataclasses
import math

import pytest
import torch
from torch import nn

from vasa_hf.gaussians.densify import (
    DensityConfig,
    DensityState,
    apply_density,
    observe,
    plan_density,
    reset_opacities,
)
from vasa_hf.gaussians.render import render
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.cameras import orbit_cameras

CONFIG = DensityConfig(grow_gradient=0.5, split_scale=0.1, prune_opacity=0.05, prune_scale=1.0)


def parameters_and_optimizer(count: int = 6):
    """Parameters that have been optimised for two steps, so that there is a state."""
    parameters = {
        "means": nn.Parameter(torch.randn(count, 3)),
        "quats": nn.Parameter(torch.randn(count, 4)),
        "scales": nn.Parameter(torch.randn(count, 3) - 3),
        "opacities": nn.Parameter(torch.randn(count)),
        "colors": nn.Parameter(torch.rand(count, 4, 3)),
    }
    groups = [{"params": [value], "lr": 0.01 * (1 + index)} for index, value in enumerate(parameters.values())]
    groups[0]["params"].append(nn.Parameter(torch.ones(2)))  # another parameter in the same group
    optimizer = torch.optim.Adam(groups)
    for _ in range(2):
        optimizer.zero_grad()
        sum((value**2).sum() for group in groups for value in group["params"]).backward()
        optimizer.step()
    return parameters, optimizer


def plan(gradients, scales, opacities, triangles=None, config=CONFIG):
    state = DensityState(2 * torch.tensor(gradients), torch.full((len(gradients),), 2.0))
    scales = torch.tensor(scales)[:, None].expand(-1, 3)
    return plan_density(state, scales, torch.tensor(opacities), 1.0, config, triangles)


def test_schedule_of_the_paper():
    config = DensityConfig()
    steps = [step for step in range(200_001) if config.changes_at(step)]
    assert steps[:2] == [10_000, 12_000] and steps[-1] == 100_000 and len(steps) == 46
    assert [step for step in range(200_001) if config.resets_at(step)] == [60_000]
    assert config.max_gaussians == 200_000


def test_small_ones_are_cloned_large_ones_split_faint_and_huge_ones_pruned():
    result = plan([0.9, 0.9, 0.1, 0.9, 0.9], [0.05, 0.2, 0.2, 0.05, 3.0], [0.9, 0.9, 0.9, 0.01, 0.9])
    assert result.keep.tolist() == [0, 2] and result.clone.tolist() == [0] and result.split.tolist() == [1]
    assert result.total == 5


def test_every_face_keeps_its_most_opaque_gaussian():
    triangles = torch.tensor([3, 3, 1, 1, 0, 3])
    result = plan([0.0] * 6, [0.05] * 6, [0.01, 0.03, 0.02, 0.9, 0.001, 0.02], triangles)
    assert result.keep.tolist() == [
        1,
        3,
        4,
    ]  # of face 3 the best of three, of 1 the one that stays anyway, of 0 the only


def test_the_limit_is_never_exceeded_and_those_pulled_at_most_grow():
    config = dataclasses.replace(CONFIG, max_gaussians=7)
    result = plan([0.6, 0.9, 0.7, 0.8, 0.1], [0.05, 0.2, 0.05, 0.2, 0.05], [0.9] * 5, config=config)
    assert result.total == 7 and result.split.tolist() == [1, 3] and result.clone.tolist() == []
    result = plan([0.9] * 5, [0.05] * 5, [0.9] * 5, config=dataclasses.replace(CONFIG, max_gaussians=3))
    assert result.total == 5 and len(result.clone) == 0


def test_new_gaussians_take_rows_triangles_and_optimiser_state_from_their_parents():
    parameters, optimizer = parameters_and_optimizer()
    before = {name: value.detach().clone() for name, value in parameters.items()}
    state = {name: optimizer.state[value]["exp_avg"].clone() for name, value in parameters.items()}
    triangles = torch.tensor([5, 4, 3, 2, 1, 0])
    result = plan([0.0, 0.9, 0.9, 0.0, 0.0, 0.9], [0.05, 0.05, 0.2, 0.05, 0.05, 0.2], [0.9, 0.9, 0.9, 0.9, 0.01, 0.9])
    new, new_triangles = apply_density(result, parameters, optimizer, CONFIG, triangles)
    source = [0, 1, 3, 1, 2, 5, 2, 5]
    assert new_triangles.tolist() == triangles[source].tolist()
    for name in ("quats", "opacities", "colors"):
        assert torch.equal(new[name], before[name][source])
    assert torch.equal(new["means"][:4], before["means"][source[:4]])
    assert torch.allclose(new["scales"][4:], before["scales"][source[4:]] - math.log(1.6))
    for name, value in new.items():
        assert torch.equal(optimizer.state[value]["exp_avg"][:3], state[name][source[:3]])
        assert optimizer.state[value]["exp_avg"][3:].abs().max() == 0
        assert optimizer.state[value]["step"] == 2
        assert not any(
            old is held for old in parameters.values() for group in optimizer.param_groups for held in group["params"]
        )
    assert optimizer.param_groups[0]["lr"] == 0.01 and len(optimizer.param_groups[0]["params"]) == 2
    optimizer.zero_grad()
    new["means"].sum().backward()
    moved = new["means"].detach().clone()
    optimizer.step()
    assert (new["means"] != moved).all()  # the optimiser moves the new ones


def test_children_of_a_split_are_drawn_from_their_parent():
    """Many splits of one thin, turned Gaussian: their mean and covariance are the parent's."""
    count = 20000
    quat, scale = torch.tensor([0.8, 0.1, -0.5, 0.3]), torch.tensor([1.0, 0.3, 0.05]).log()
    parameters = {
        "means": nn.Parameter(torch.tensor([[1.0, 2.0, 3.0]]).repeat(count, 1)),
        "quats": nn.Parameter(quat.repeat(count, 1)),
        "scales": nn.Parameter(scale.repeat(count, 1)),
    }
    result = plan([0.9] * count, [0.5] * count, [0.9] * count)
    generator = torch.Generator().manual_seed(0)
    new, triangles = apply_density(result, parameters, torch.optim.Adam(parameters.values()), CONFIG, None, generator)
    assert triangles is None and len(new["means"]) == 2 * count
    w, x, y, z = (quat / quat.norm()).tolist()
    first_axis = torch.tensor([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
    centered = new["means"].detach() - torch.tensor([1.0, 2.0, 3.0])
    assert centered.mean(dim=0).abs().max() < 0.03
    variances, axes = torch.linalg.eigh(centered.T.cov())
    assert torch.allclose(variances.sqrt(), torch.tensor([0.05, 0.3, 1.0]), rtol=0.03)
    assert (axes[:, 2] @ first_axis).abs() > 0.999


def test_observed_gradients_do_not_depend_on_the_size_or_number_of_images():
    """A Gaussian that is pulled aside by a mean loss over the images."""
    scene = Gaussians(
        torch.tensor([[0.05, 0.0, 0.0], [0.0, 0.0, -9.0]]),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1),
        torch.full((2, 3), 0.1),
        torch.full((2,), 0.8),
        torch.ones(2, 3),
    )
    found = []
    for size, pictures in ((48, 1), (96, 1), (48, 3)):
        views = orbit_cameras(torch.zeros(pictures), 0.0, 2.0, fov_rad=0.5)
        probe = torch.zeros(pictures, 2, 2, requires_grad=True)
        out = render(scene, views, size, screen_probe=probe)
        target = torch.linspace(0, 1, size).expand_as(out.color)
        (out.color - target).square().mean().backward()
        state = DensityState.empty(2)
        observe(state, probe.grad, out.radii, (size, size))
        assert state.count.tolist() == [pictures, 0] and state.gradient[1] == 0
        found.append((state.gradient / state.count.clamp_min(1))[0])
    assert found[0] > 1e-3
    assert torch.isclose(found[1], found[0], rtol=0.1) and torch.isclose(found[2], found[0], rtol=1e-4)


def fit(target: torch.Tensor, views, densify: bool) -> tuple[float, int]:
    """Fit a few Gaussians to images; the final loss, and how many Gaussians there are."""
    torch.manual_seed(0)
    parameters = {
        "means": nn.Parameter(torch.randn(20, 3) * 0.2),
        "quats": nn.Parameter(torch.randn(20, 4)),
        "scales": nn.Parameter(torch.full((20, 3), math.log(0.1))),
        "opacities": nn.Parameter(torch.zeros(20)),
        "colors": nn.Parameter(torch.full((20, 3), 0.5)),
    }
    optimizer = torch.optim.Adam([{"params": [value], "lr": 0.02} for value in parameters.values()])
    config = DensityConfig(
        start=20, stop=60, interval=20, grow_gradient=1e-4, split_scale=0.04, prune_scale=1.0, max_gaussians=120
    )
    state = DensityState.empty(20)
    for step in range(1, 121):
        scales, opacities = parameters["scales"].exp(), parameters["opacities"].sigmoid()
        scene = Gaussians(parameters["means"], parameters["quats"], scales, opacities, parameters["colors"])
        probe = torch.zeros(len(views), len(scene), 2, requires_grad=True)
        out = render(scene, views, 40, screen_probe=probe)
        loss = (out.color - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if densify:
            observe(state, probe.grad, out.radii, (40, 40))
            if config.changes_at(step):
                change = plan_density(state, scales, opacities, 1.0, config)
                parameters, _ = apply_density(change, parameters, optimizer, config)
                state = DensityState.empty(change.total)
    return loss.item(), len(parameters["means"])


def test_a_fit_with_more_gaussians_becomes_better():
    """Rendering, gradients, density control and the optimiser's state together."""
    views = orbit_cameras(torch.tensor([-0.6, 0.0, 0.6]), 0.0, 1.5, fov_rad=0.6)
    target = Gaussians(
        torch.randn(150, 3) * 0.2,
        torch.randn(150, 4),
        torch.full((150, 3), 0.03),
        torch.full((150,), 0.9),
        torch.rand(150, 3),
    )
    target = render(target, views, 40).color
    alone, few = fit(target, views, densify=False)
    grown, many = fit(target, views, densify=True)
    assert few == 20 and 40 < many <= 120
    assert alone < 0.25 * target.square().mean() and grown < 0.6 * alone


def test_reset_lowers_opacities_and_forgets_momentum():
    parameters, optimizer = parameters_and_optimizer()
    logits = parameters["opacities"]
    logits.data[0] = -9.0
    reset_opacities(logits, optimizer, CONFIG)
    assert torch.sigmoid(logits).max() <= 0.01 + 1e-6 and logits[0] == -9.0
    assert optimizer.state[logits]["exp_avg"].abs().max() == 0 and optimizer.state[logits]["exp_avg_sq"].max() == 0
    assert optimizer.state[parameters["means"]]["exp_avg"].abs().min() > 0


def test_wrong_parameters_are_refused():
    parameters, optimizer = parameters_and_optimizer()
    result = plan([0.0] * 6, [0.05] * 6, [0.9] * 6)
    with pytest.raises(ValueError, match="must have quats"):
        apply_density(result, {k: v for k, v in parameters.items() if k != "quats"}, optimizer, CONFIG)
    with pytest.raises(ValueError, match="a row for each"):
        apply_density(result, parameters | {"extra": nn.Parameter(torch.ones(2))}, optimizer, CONFIG)
