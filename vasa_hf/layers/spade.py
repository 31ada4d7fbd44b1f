"""Spatially adaptive normalisation (SPADE, arXiv 1903.07291): a feature map modulates another at each position."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolve_enlarged(image: Tensor, conv: nn.Conv2d, factor: int) -> Tensor:
    """Compute a padded 3x3 convolution of a nearest-enlarged map at the map's own resolution.

    Within a cell of the map, only the first row depends on the previous cell and only the last row on the next cell;
    all rows between are equal. The same holds for columns. So a cell has at most nine different results, of two by two
    taps.

    Args:
        image (`torch.Tensor` of shape `(batch, channels, height, width)`): The map, not enlarged.
        conv (`torch.nn.Conv2d`): Convolution with a 3x3 kernel.
        factor (`int`): Enlargement, at least 2.

    Returns:
        `torch.Tensor` of shape `(batch, conv.out_channels, factor * height, factor * width)`.
    """
    height, width = image.shape[2:]
    kinds = [0, 1, 2] if factor > 2 else [0, 2]
    # Taps at (this or the previous cell, the next): collapsed kernels of a cell's first, inner and last rows.
    collapse = conv.weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[0, 0, 0], [1, 1, 1]], [[1, 1, 0], [0, 0, 1]]])[kinds]
    weight = torch.einsum("oihw,aph,bqw->aboipq", conv.weight, collapse, collapse)
    result = F.conv2d(F.pad(image, (1, 1, 1, 1)), weight.flatten(0, 2)).unflatten(1, (len(kinds), len(kinds), -1))
    rows = [kind == 2 for kind in kinds]  # taps of the last row start one cell later
    cells = torch.stack(
        [
            torch.stack([result[:, i, j, :, a : a + height, b : b + width] for j, b in enumerate(rows)], -1)
            for i, a in enumerate(rows)
        ],
        -2,
    )  # [B, C, H, W, kinds, kinds]
    if factor > 3:
        repeats = torch.tensor([1, factor - 2, 1], device=image.device)
        cells = cells.repeat_interleave(repeats, -1).repeat_interleave(repeats, -2)
    enlarged = cells.permute(0, 1, 2, 4, 3, 5).reshape(len(image), -1, factor * height, factor * width)
    return enlarged + conv.bias[:, None, None]


class Spade(nn.Module):
    """Instance norm whose scale and shift are convolutions of a label map.

    Args:
        channels (`int`): Channels of the normalised features.
        label_channels (`int`): Channels of the label map.
        hidden_channels (`int`): Channels between the two convolutions of the label map.
    """

    def __init__(self, channels: int, label_channels: int, hidden_channels: int):
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_channels, hidden_channels, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden_channels, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden_channels, channels, 3, padding=1)

    def forward(self, hidden_states: Tensor, label: Tensor) -> Tensor:
        """Normalise and modulate.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, channels, height, width)`): Features.
            label (`torch.Tensor` of shape `(batch, label_channels, h, w)`): Map, which is nearest-enlarged to the size
                of the features.
        """
        factor = hidden_states.shape[-1] // label.shape[-1]
        if factor == 1:
            shared = self.mlp_shared(label)
        elif self.mlp_shared[0].weight.is_meta:  # offloaded: a call loads the weights
            shared = self.mlp_shared(F.interpolate(label, scale_factor=factor))
        else:
            shared = F.relu(convolve_enlarged(label, self.mlp_shared[0], factor))
        return F.instance_norm(hidden_states) * (1 + self.mlp_gamma(shared)) + self.mlp_beta(shared)


class SpadeResBlock(nn.Module):
    """Two convolutions after SPADE norms; a third is on the skip if the number of channels changes.

    Args:
        in_channels (`int`): Channels in.
        out_channels (`int`): Channels out.
        label_channels (`int`): Channels of the label map.
        hidden_channels (`int`): Channels of the norms' convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, label_channels: int, hidden_channels: int):
        super().__init__()
        middle = min(in_channels, out_channels)
        self.conv_0 = nn.Conv2d(in_channels, middle, 3, padding=1)
        self.conv_1 = nn.Conv2d(middle, out_channels, 3, padding=1)
        self.norm_0 = Spade(in_channels, label_channels, hidden_channels)
        self.norm_1 = Spade(middle, label_channels, hidden_channels)
        self.conv_s = self.norm_s = None
        if in_channels != out_channels:
            self.conv_s = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.norm_s = Spade(in_channels, label_channels, hidden_channels)

    def forward(self, hidden_states: Tensor, label: Tensor) -> Tensor:
        """Map `(batch, in_channels, height, width)` to `(batch, out_channels, height, width)`."""
        skip = hidden_states if self.conv_s is None else self.conv_s(self.norm_s(hidden_states, label))
        x = self.conv_0(F.leaky_relu(self.norm_0(hidden_states, label), 0.2))
        return skip + self.conv_1(F.leaky_relu(self.norm_1(x, label), 0.2))
