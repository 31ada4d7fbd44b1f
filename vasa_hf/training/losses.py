"""Losses of VASA-1's face latent space (paper §3.1; the base losses are MegaPortraits', its reference [19]).

Every loss is a plain function of tensors, so that a stage can weigh it or leave it out for an ablation.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Features = Callable[[Tensor], list[Tensor]]


def reconstruction_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """L1 between images, optionally weighted by place (mouth and eyes).

    Args:
        prediction (`torch.Tensor` of shape `(batch, 3, height, width)`): Decoded image.
        target (`torch.Tensor` of the same shape): Driving frame.
        weight (`torch.Tensor` of shape `(batch, 1, height, width)`, *optional*): Importance of each pixel.
    """
    error = (prediction - target).abs()
    if weight is None:
        return error.mean()
    return (error * weight).sum() / (weight.sum() * error.shape[1]).clamp_min(1e-6)


def pyramid_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None, levels: int = 3) -> Tensor:
    """L1 of image gradients at several scales: keeps edges sharp where plain L1 would blur them.

    # Not in the paper: stands next to the perceptual loss where no pretrained network is at hand.
    """
    total = prediction.new_zeros(())
    for level in range(levels):
        if level:
            prediction, target = F.avg_pool2d(prediction, 2), F.avg_pool2d(target, 2)
            weight = None if weight is None else F.avg_pool2d(weight, 2)
        for axis in (2, 3):
            place = None if weight is None else weight.narrow(axis, 1, weight.shape[axis] - 1)
            total = total + reconstruction_loss(prediction.diff(dim=axis), target.diff(dim=axis), place)
    return total / (2 * levels)


def perceptual_loss(features: Features, prediction: Tensor, target: Tensor) -> Tensor:
    """L1 between deep features of prediction and target (MegaPortraits' VGG19 / VGGFace terms).

    Args:
        features (`Callable`): Images in [-1, 1] to a list of feature maps; any pretrained network.
        prediction (`torch.Tensor` of shape `(batch, 3, height, width)`): Decoded image.
        target (`torch.Tensor` of the same shape): Driving frame.
    """
    with torch.no_grad():
        wanted = features(target)
    return sum(F.l1_loss(a.float(), b.float()) for a, b in zip(features(prediction), wanted, strict=True)) / len(wanted)


def discriminator_loss(real: list[Tensor], fake: list[Tensor], weight: Tensor | None = None) -> Tensor:
    """Hinge loss of the multi-scale patch discriminator, averaged over scales.

    Args:
        real (`list[torch.Tensor]`): Scores of driving frames, one map for each scale.
        fake (`list[torch.Tensor]`): Scores of decoded images.
        weight (`torch.Tensor` of shape `(batch, 1, height, width)`, *optional*): Importance of each pixel.
    """
    scores = zip(real, fake, strict=True)
    return sum(_mean(F.relu(1 - r), weight) + _mean(F.relu(1 + f), weight) for r, f in scores) / len(real)


def generator_loss(fake: list[Tensor], weight: Tensor | None = None) -> Tensor:
    """Hinge adversarial loss of the decoder, averaged over scales; arguments as for `discriminator_loss`."""
    return -sum(_mean(score, weight) for score in fake) / len(fake)


def _mean(scores: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of a score map, weighted by the importance of the pixels that each score stands for."""
    if weight is None:
        return scores.mean()
    weight = F.adaptive_avg_pool2d(weight, scores.shape[-2:])
    return (scores * weight).sum() / weight.sum().clamp_min(1e-6)


def feature_matching_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """L1 between the discriminator's features of real and decoded images, averaged over scales and layers."""
    pairs = [(r, f) for rs, fs in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True)]
    return sum(F.l1_loss(f.float(), r.detach().float()) for r, f in pairs) / len(pairs)


def motion_contrastive_loss(
    prediction: Tensor, driving: Tensor, others: Tensor, scale: float = 5.0, margin: float = 0.2
) -> Tensor:
    """Cycle / contrastive term: the dynamics read from the result match the driver's and no one else's.

    Source: MegaPortraits' cosine loss on motion descriptors, scale s = 5 and margin m = 0.2.

    Args:
        prediction (`torch.Tensor` of shape `(batch, dim)`): z_dyn encoded from the decoded image.
        driving (`torch.Tensor` of shape `(batch, dim)`): z_dyn of the driver.
        others (`torch.Tensor` of shape `(batch, negatives, dim)`): z_dyn of other frames.
        scale (`float`): Inverse temperature.
        margin (`float`): What the driver's similarity must be ahead by.
    """
    positive = scale * (F.cosine_similarity(prediction, driving, dim=-1) - margin)
    negative = scale * F.cosine_similarity(prediction[:, None], others, dim=-1)
    return -(positive - torch.cat([positive[:, None], negative], 1).logsumexp(1)).mean()


def gaze_loss(predicted_gaze: Tensor, target_gaze: Tensor) -> Tensor:
    """Angle between gaze directions, as 1 - cos.

    Args:
        predicted_gaze (`torch.Tensor` of shape `(batch, 2)`): Yaw and pitch in radians.
        target_gaze (`torch.Tensor` of shape `(batch, 2)`): Yaw and pitch in radians.
    """
    direction = lambda g: torch.stack([g[:, 1].cos() * g[:, 0].sin(), g[:, 1].sin(), g[:, 1].cos() * g[:, 0].cos()], 1)  # noqa: E731
    return (1 - (direction(predicted_gaze) * direction(target_gaze)).sum(1)).mean()


def consistency_loss(pose_moved: Tensor, dynamics_moved: Tensor) -> Tensor:
    """`l_consist` (VASA-1 §3.1): pose of i onto j and dynamics of j onto i give the same image.

    Args:
        pose_moved (`torch.Tensor` of shape `(batch, 3, height, width)`): D(V_j, id_j, pose_i, dyn_j).
        dynamics_moved (`torch.Tensor` of the same shape): D(V_i, id_i, pose_i, dyn_j).
    """
    return (pose_moved - dynamics_moved).abs().mean()


def cross_identity_loss(identity: Callable[[Tensor], Tensor], source: Tensor, transferred: Tensor) -> Tensor:
    """`l_cross_id` (VASA-1 §3.1): a person driven by someone else keeps deep identity features.

    Args:
        identity (`Callable`): Images in [-1, 1] to identity features `(batch, dim)`, a face recogniser.
        source (`torch.Tensor` of shape `(batch, 3, height, width)`): I_s.
        transferred (`torch.Tensor` of the same shape): D(V_s, id_s, pose_d, dyn_d).
    """
    with torch.no_grad():
        wanted = identity(source)
    return (1 - F.cosine_similarity(identity(transferred).float(), wanted.float(), dim=-1)).mean()


def landmark_flow_loss(
    flow: Tensor,
    target_landmarks: Tensor,
    source_landmarks: Tensor,
    weight: Tensor | None = None,
    beta: float = 1.0,
) -> Tensor:
    """The pixel flow at the target's landmarks points to the source's landmarks.

    # Not in the paper: labels teach the warp first; pixels refine it.

    Args:
        flow (`torch.Tensor` of shape `(batch, size, size, 2)`): Source position of each pixel, xy in [-1, 1].
        target_landmarks (`torch.Tensor` of shape `(batch, points, 2)`): Fractions of the crop.
        source_landmarks (`torch.Tensor` of shape `(batch, points, 2)`): Fractions of the crop.
        weight (`torch.Tensor` of shape `(points,)` or `(batch, points)`, *optional*): Importance of each landmark.
        beta (`float`): Error in pixels of a 256-pixel crop under which the loss is quadratic.

    Returns:
        `torch.Tensor`: Mean smooth-L1 error in pixels of a 256-pixel crop.
    """
    grid = target_landmarks[:, :, None] * 2 - 1
    found = F.grid_sample(flow.permute(0, 3, 1, 2), grid, align_corners=False)[..., 0].mT
    inside = ((target_landmarks > 0) & (target_landmarks < 1)).all(-1, keepdim=True).float()
    if weight is not None:
        inside = inside * weight[..., None]
    error = F.smooth_l1_loss(found * 128, (source_landmarks * 2 - 1) * 128, beta=beta, reduction="none")
    # Each sample counts alike, whatever of it is hidden and however a batch is split over processes.
    return ((error * inside).sum((1, 2)) / (2 * inside.sum((1, 2)).clamp_min(1))).mean()


class MultiScalePatchDiscriminator(nn.Module):
    """Patch discriminators on the image and on its halvings.

    Args:
        channels (`int`): Width of the first layer.
        layers (`int`): Strided layers of each discriminator.
        scales (`int`): Number of discriminators.
        in_channels (`int`): Channels of the image; more than 3 where it is judged next to another one.
    """

    def __init__(self, channels: int = 64, layers: int = 3, scales: int = 2, in_channels: int = 3):
        super().__init__()
        self.scales = nn.ModuleList()
        for _ in range(scales):
            widths = [in_channels, *(min(channels << i, 8 * channels) for i in range(layers))]
            convs = [
                nn.utils.parametrizations.spectral_norm(nn.Conv2d(a, b, 4, 2, 1))
                for a, b in zip(widths[:-1], widths[1:], strict=True)
            ]
            self.scales.append(nn.ModuleList([*convs, nn.Conv2d(widths[-1], 1, 3, padding=1)]))

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Score images `(batch, in_channels, height, width)`: score maps and inner features, one for each scale."""
        scores, features = [], []
        for index, layers in enumerate(self.scales):
            x = F.avg_pool2d(image, 2**index) if index else image
            inner = []
            for layer in layers[:-1]:
                x = F.leaky_relu(layer(x), 0.2)
                inner.append(x)
            scores.append(layers[-1](x))
            features.append(inner)
        return scores, features
