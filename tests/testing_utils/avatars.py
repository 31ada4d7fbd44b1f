"""Avatars for tests: the built-in head, a disc on each triangle, striped colours, moved by known codes."""

import torch

from vasa_hf import Vasa3DGaussianAvatar, load_parametric_head
from vasa_hf.geometry.landmarks import NUM_LANDMARKS, rows

OWN_POSE = (0.05, 0.03, -0.02, 0.5, 0.52, 0.26)
_heads = []


def make_avatar(seed=0, motion_dim=10, motion_space="vasa1", **config):
    """A head with as few Gaussians as it can have; the first channel of z_dyn opens the mouth."""
    if not _heads:
        _heads.append(load_parametric_head())
    (head,) = _heads
    generator = torch.Generator().manual_seed(seed)
    settings = {"hidden_size": 128, "pose_prior": True, **config}
    avatar = Vasa3DGaussianAvatar.from_head(
        head, len(head.faces), motion_dim=motion_dim, motion_space=motion_space, **settings
    )
    own = torch.tensor([*OWN_POSE, *[0.0] * (motion_dim - 6)])
    moves = 0.02 * torch.randn(motion_dim - 6, NUM_LANDMARKS, 2, generator=generator)
    moves[0, rows(14, 17)] += torch.tensor([0.0, 0.2])  # the lower lip, down
    motions = own + torch.randn(64, motion_dim, generator=generator) * (torch.arange(motion_dim) >= 6)
    avatar.fit_motion(motions, moves, generator=generator)
    with torch.no_grad():
        avatar.own_motion.copy_(own)
        place = head.template[head.faces[avatar.triangles, 0]]
        place = (place - place.amin(0)) / (place.amax(0) - place.amin(0))
        stripes = 0.5 + 0.5 * torch.sin(8 * place + 6 * torch.rand(3, generator=generator))
        avatar.colors.copy_(0.15 + 0.7 * stripes)
    return avatar.eval()
