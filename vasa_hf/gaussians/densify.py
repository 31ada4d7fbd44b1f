"""Adaptive density control: adds Gaussians where the image gradient is large, and removes useless ones.

```
every step       observe            sums the gradients of the screen positions (`screen_probe` of `render`)
every interval   plan_density       selects Gaussians to clone (large gradient, small), to split (large gradient,
                                    large) and to prune (transparent or huge)
                 apply_density      new parameters and optimiser state
rarely           reset_opacities    makes all transparent; the needed ones recover, the others are pruned
```
Parameters are those of the optimisation: `means`, `quats`, `scales` (logarithms), `opacities` (logits), `colors`, and
any other with a row for each Gaussian. `means` and `scales` may be in the frames of triangles (`binding.py`): children
inherit the triangle, and a face with Gaussians keeps at least one.

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
    """Schedule and thresholds of density control.

    Args:
        start, stop, interval (`int`): Steps (VASA-3D appendix A).
        max_gaussians (`int`): Maximal number (VASA-3D appendix A).
        grow_gradient (`float`): Mean gradient of the screen position, in halves of the image, above which a Gaussian
            is cloned or split (3DGS).
        split_scale (`float`): Standard deviation, in fractions of the scene, above which it is split (3DGS).
        split_shrink (`float`): Children of a split are smaller by this factor (3DGS).
        prune_opacity (`float`): Gaussians with a smaller opacity are removed (3DGS).
        prune_scale (`float`): Larger Gaussians are removed, in fractions of the scene (3DGS).
        reset_interval (`int`): Steps between resets of opacity (GaussianAvatars).
        reset_opacity (`float`): Opacity after a reset (3DGS: 0.01).
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
    """Observations since the last change.

    Args:
        gradient (`torch.Tensor` of shape `(gaussians,)`): Summed lengths of the gradients, in halves of the image.
        count (`torch.Tensor` of shape `(gaussians,)`): Number of images with each Gaussian.
    """

    gradient: Tensor
    count: Tensor

    @classmethod
    def empty(cls, gaussians: int, device: torch.device | str = "cpu") -> "DensityState":
        """Make a state without observations."""
        return cls(torch.zeros(gaussians, device=device), torch.zeros(gaussians, device=device))


@dataclasses.dataclass(eq=False)
class DensityPlan:
    """Indices of the Gaussians to keep, to clone and to split.

    Args:
        keep (`torch.Tensor` of shape `(kept,)`): Kept with their optimiser state.
        clone (`torch.Tensor` of shape `(cloned,)`): Those of `keep` that get a copy.
        split (`torch.Tensor` of shape `(split,)`): Replaced by two children; not in `keep`.
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
    probe_gradient: Tensor,  # [images, N, 2]
    radii: Tensor,  # [images, N]
    size: tuple[int, int],
) -> None:
    """Add the observations of one backward pass to `state`.

    Args:
        state (`DensityState`): Changed in place.
        probe_gradient (`torch.Tensor` of shape `(images, gaussians, 2)`):
            `grad` of `screen_probe` for a loss that is a mean over the images.
        radii (`torch.Tensor` of shape `(images, gaussians)`): Of the same `RenderOutput`.
        size (`tuple` of two `int`): Height and width of the images.
    """
    height, width = size
    # In halves of the image, and as if each image were alone in the loss.
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
    """Choose the Gaussians to keep, clone, split and prune.

    Args:
        state (`DensityState`): Observations.
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
        pruned &= ~_select_last_of_faces(pruned, opacities, triangles)
    gradient = state.gradient / state.count.clamp_min(1)
    grown = (gradient > config.grow_gradient) & ~pruned
    # Not in the papers: if the budget is too small, the largest gradients grow. Each adds one Gaussian.
    budget = max(config.max_gaussians - int((~pruned).sum()), 0)
    if int(grown.sum()) > budget:
        chosen = torch.where(grown, gradient, -1.0).topk(budget).indices
        grown = torch.zeros_like(grown).index_fill(0, chosen, True)
    large = largest > config.split_scale * scene_extent
    keep, clone, split = ~pruned & ~(grown & large), grown & ~large, grown & large
    return DensityPlan(*(mask.nonzero()[:, 0] for mask in (keep, clone, split)))


def _select_last_of_faces(pruned: Tensor, opacities: Tensor, triangles: Tensor) -> Tensor:
    """Select the most opaque Gaussian of each face that would lose all of them."""
    # Sort by face, then kept before pruned, then by opacity: the first of each face is the one to save, if any.
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
    """Apply a plan to the parameters and the optimiser.

    Args:
        plan (`DensityPlan`): Of `plan_density`.
        parameters (mapping of names to `torch.nn.Parameter`):
            With a row for each Gaussian; `means`, `quats`, `scales` (logarithms) at least.
        optimizer (`torch.optim.Optimizer`):
            Changed in place: new parameters, with the old state for kept Gaussians and zeros for new ones.
        config (`DensityConfig`): For `split_shrink`.
        triangles (`torch.Tensor` of shape `(gaussians,)`, *optional*): Faces that the Gaussians are bound to.
        generator (`torch.Generator`, *optional*): Generator for the positions of split children.

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
    # Children of a split are sampled from their parent's distribution.
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
    """Replace `old` by `new`, with the rows `source` of its state, zero where `fresh`."""
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
    """Clamp all opacities to `reset_opacity`, in place, and reset the optimiser's state for them.

    Args:
        logits (`torch.nn.Parameter` of shape `(gaussians,)`): Opacities before the sigmoid.
        optimizer (`torch.optim.Optimizer`): The optimiser of `logits`.
        config (`DensityConfig`): For `reset_opacity`.
    """
    logits.clamp_(max=math.log(config.reset_opacity / (1 - config.reset_opacity)))
    for value in optimizer.state.get(logits, {}).values():
        if isinstance(value, Tensor) and value.shape == logits.shape:
            value.zero_()
