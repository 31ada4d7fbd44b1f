"""Adaptive density control: Gaussians are added where the picture still pulls at them, and useless ones removed.

```
every step       observe            gradients of the screen positions (`screen_probe` of `render`) are summed up
every interval   plan_density       which are cloned (pulled, small), split (pulled, large), pruned (faint or huge)
                 apply_density      new parameters; the optimiser's state goes along
now and then     reset_opacities    all become faint; those that are needed grow again, the others are pruned
```
Parameters are those of the optimisation: `means`, `quats`, `scales` (logarithms), `opacities` (logits), `colors`,
anything else with a row for each Gaussian. `means` and `scales` may be in the frames of triangles (`binding.py`):
children inherit the triangle, and a face that has Gaussians keeps one at least.

Source: Kerbl et al. 2023 (3DGS) §5.2; bound to triangles: GaussianAvatars §3.3; schedule: VASA-3D appendix A.
"""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vasa_hf.geometry.quaternions import matrix_from_quaternion


@dataclasses.dataclass(frozen=True)
class DensityConfig:
    """When and how the number of Gaussians changes.

    Args:
        start, stop, interval (`int`): Steps (VASA-3D appendix A).
        max_gaussians (`int`): Never more than this (VASA-3D appendix A stops at the same number).
        grow_gradient (`float`): Mean gradient of the screen position, in halves of the picture, from which on a
            Gaussian is cloned or split (3DGS).
        split_scale (`float`): Standard deviation, in fractions of the scene, above which it is split (3DGS).
        split_shrink (`float`): Children of a split are smaller by this factor (3DGS).
        prune_opacity (`float`): Fainter Gaussians are removed (3DGS).
        prune_scale (`float`): Larger ones are removed, in fractions of the scene (3DGS).
        reset_interval (`int`): Steps between resets of opacity (GaussianAvatars).
        reset_opacity (`float`): To which opacities are lowered (3DGS: 0.01).
    """

    start: int = 10_000
    stop: int = 100_000
    interval: int = 2_000
    max_gaussians: int = 200_000
    grow_gradient: float = 2e-4
    split_scale: float = 0.01
    split_shrink: float = 1.6
    prune_opacity: float = 0.005
    prune_scale: float = 0.1
    reset_interval: int = 60_000
    reset_opacity: float = 0.01

    def changes_at(self, step: int) -> bool:
        """Whether Gaussians are added and removed after this step."""
        return self.start <= step <= self.stop and (step - self.start) % self.interval == 0

    def resets_at(self, step: int) -> bool:
        """Whether opacities are reset after this step."""
        return 0 < step <= self.stop and step % self.reset_interval == 0


@dataclasses.dataclass(eq=False)
class DensityState:
    """What has been observed since the last change.

    Args:
        gradient (`torch.Tensor` of shape `(gaussians,)`): Summed lengths of the gradients, in halves of the picture.
        count (`torch.Tensor` of shape `(gaussians,)`): In how many pictures each Gaussian was.
    """

    gradient: Tensor
    count: Tensor

    @classmethod
    def empty(cls, gaussians: int, device: torch.device | str = "cpu") -> "DensityState":
        """Nothing observed yet."""
        return cls(torch.zeros(gaussians, device=device), torch.zeros(gaussians, device=device))


@dataclasses.dataclass(eq=False)
class DensityPlan:
    """Indices of the Gaussians that stay as they are, that get a twin besides, and that two children replace.

    Args:
        keep (`torch.Tensor` of shape `(kept,)`): Stay, with their optimiser state.
        clone (`torch.Tensor` of shape `(cloned,)`): Some of `keep`.
        split (`torch.Tensor` of shape `(split,)`): None of `keep`.
    """

    keep: Tensor
    clone: Tensor
    split: Tensor

    @property
    def total(self) -> int:
        """Number of Gaussians after the change."""
        return len(self.keep) + len(self.clone) + 2 * len(self.split)


@torch.no_grad()
def observe(
    state: DensityState,
    probe_gradient: Tensor,  # [pictures, N, 2]
    radii: Tensor,  # [pictures, N]
    size: tuple[int, int],
) -> None:
    """Add what one backward pass has shown to `state`.

    Args:
        state (`DensityState`): Changed in place.
        probe_gradient (`torch.Tensor` of shape `(pictures, gaussians, 2)`):
            `grad` of `screen_probe` for a loss that is a mean over the pictures.
        radii (`torch.Tensor` of shape `(pictures, gaussians)`): Of the same `RenderOutput`.
        size (`tuple` of two `int`): Height and width of the pictures.
    """
    height, width = size
    # In halves of the picture, and as if each picture had been alone in the loss.
    halves = probe_gradient.new_tensor([width / 2, height / 2]) * len(probe_gradient)
    visible = radii > 0
    state.gradient += ((probe_gradient * halves).norm(dim=-1) * visible).sum(dim=0)
    state.count += visible.sum(dim=0)


@torch.no_grad()
def plan_density(
    state: DensityState,
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    scene_extent: float,
    config: DensityConfig,
    triangles: Tensor | None = None,  # [N]
) -> DensityPlan:
    """Decide what becomes of each Gaussian.

    Args:
        state (`DensityState`): What has been observed.
        scales (`torch.Tensor` of shape `(gaussians, 3)`): Standard deviations in the world, not logarithms.
        opacities (`torch.Tensor` of shape `(gaussians,)`): In [0, 1], not logits.
        scene_extent (`float`): Size of the scene in world units, such as the radius of the cameras' orbit.
        config (`DensityConfig`): Thresholds.
        triangles (`torch.Tensor` of shape `(gaussians,)`, *optional*): Faces that the Gaussians are bound to.

    Returns:
        `DensityPlan`.
    """
    largest = scales.amax(dim=-1)
    pruned = (opacities < config.prune_opacity) | (largest > config.prune_scale * scene_extent)
    if triangles is not None:
        pruned &= ~_last_of_their_face(pruned, opacities, triangles)
    gradient = state.gradient / state.count.clamp_min(1)
    grown = (gradient > config.grow_gradient) & ~pruned
    # Not in the papers: where not all may grow, those that are pulled at most. Each adds one.
    budget = max(config.max_gaussians - int((~pruned).sum()), 0)
    if int(grown.sum()) > budget:
        chosen = torch.where(grown, gradient, -1.0).topk(budget).indices
        grown = torch.zeros_like(grown).index_fill(0, chosen, True)
    large = largest > config.split_scale * scene_extent
    keep, clone, split = ~pruned & ~(grown & large), grown & ~large, grown & large
    return DensityPlan(*(mask.nonzero()[:, 0] for mask in (keep, clone, split)))


def _last_of_their_face(pruned: Tensor, opacities: Tensor, triangles: Tensor) -> Tensor:
    """Of each face that would lose all its Gaussians, the one that covers most."""
    # By face, then those that stay, then by opacity: the first of each face shows whether and which one to save.
    order = torch.argsort(opacities, descending=True, stable=True)
    order = order[torch.argsort(pruned[order].int(), stable=True)]
    order = order[torch.argsort(triangles[order], stable=True)]
    faces = triangles[order]
    is_first = torch.ones_like(pruned)
    is_first[1:] = faces[1:] != faces[:-1]
    saved = torch.zeros_like(pruned)
    saved[order[is_first]] = True
    return saved & pruned


@torch.no_grad()
def apply_density(
    plan: DensityPlan,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    config: DensityConfig,
    triangles: Tensor | None = None,  # [N]
    generator: torch.Generator | None = None,
) -> tuple[dict[str, nn.Parameter], Tensor | None]:
    """Carry out a plan.

    Args:
        plan (`DensityPlan`): Of `plan_density`.
        parameters (mapping of names to `torch.nn.Parameter`):
            With a row for each Gaussian; `means`, `quats`, `scales` (logarithms) at least.
        optimizer (`torch.optim.Optimizer`):
            Changed in place: it holds the new parameters, with its state for those that stay, and zeros for new ones.
        config (`DensityConfig`): For `split_shrink`.
        triangles (`torch.Tensor` of shape `(gaussians,)`, *optional*): Faces that the Gaussians are bound to.
        generator (`torch.Generator`, *optional*): Of the places of the children of a split.

    Returns:
        The new parameters, and the triangles of the new Gaussians.

    Raises:
        ValueError: If a needed parameter is missing, or the rows differ in number.
    """
    missing = {"means", "quats", "scales"} - set(parameters)
    if missing:
        raise ValueError(f"`parameters` must have {', '.join(sorted(missing))}, got {', '.join(parameters)}.")
    counts = {name: len(value) for name, value in parameters.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"`parameters` must have a row for each Gaussian, got {counts}.")
    source = torch.cat([plan.keep, plan.clone, plan.split, plan.split])
    fresh = torch.arange(len(source), device=source.device) >= len(plan.keep)
    rows = {name: value[source] for name, value in parameters.items()}
    children = slice(len(plan.keep) + len(plan.clone), None)
    # Children of a split are drawn from their parent, taken as a distribution.
    spread = rows["scales"][children].exp()
    noise = torch.randn(spread.shape, generator=generator, device="cpu" if generator is None else generator.device)
    offset = matrix_from_quaternion(rows["quats"][children]) @ (spread * noise.to(spread))[..., None]
    rows["means"][children] += offset[..., 0]
    rows["scales"][children] -= math.log(config.split_shrink)
    new = {name: nn.Parameter(rows[name], value.requires_grad) for name, value in parameters.items()}
    for name, value in parameters.items():
        _replace_parameter(optimizer, value, new[name], source, fresh)
    return new, None if triangles is None else triangles[source]


def _replace_parameter(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, source: Tensor, fresh: Tensor
) -> None:
    """Put `new` in the place of `old`, with the rows `source` of its state, zero where `fresh`."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is None:
        return
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape:
            state[key] = value[source]
            state[key][fresh] = 0
    optimizer.state[new] = state


@torch.no_grad()
def reset_opacities(
    logits: nn.Parameter,  # [N]
    optimizer: torch.optim.Optimizer,
    config: DensityConfig,
) -> None:
    """Lower all opacities to `reset_opacity` at most, in place, and forget the optimiser's momentum for them.

    Args:
        logits (`torch.nn.Parameter` of shape `(gaussians,)`): Opacities before the sigmoid.
        optimizer (`torch.optim.Optimizer`): That of `logits`.
        config (`DensityConfig`): For `reset_opacity`.
    """
    logits.clamp_(max=math.log(config.reset_opacity / (1 - config.reset_opacity)))
    for value in optimizer.state.get(logits, {}).values():
        if isinstance(value, Tensor) and value.shape == logits.shape:
            value.zero_()
