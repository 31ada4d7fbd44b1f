"""Spatially adaptive normalisation (SPADE, arXiv 1903.07291): a feature map modulates another, position by position."""

from torch import Tensor, nn
from torch.nn import functional as F


class Spade(nn.Module):
    """Instance norm whose scale and shift are convolutions of a label map.

    Args:
        channels (`int`): Channels of what is normalised.
        label_channels (`int`): Channels of the label map.
        hidden_channels (`int`): Between the two convolutions of the label map.
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
            label (`torch.Tensor` of shape `(batch, label_channels, h, w)`): Map of any size, nearest-resized.
        """
        if label.shape[-2:] != hidden_states.shape[-2:]:
            label = F.interpolate(label, hidden_states.shape[-2:], mode="nearest")
        shared = self.mlp_shared(label)
        return F.instance_norm(hidden_states) * (1 + self.mlp_gamma(shared)) + self.mlp_beta(shared)


class SpadeResBlock(nn.Module):
    """Two convolutions behind SPADE norms; a third joins the skip when the number of channels changes.

    Args:
        in_channels (`int`): Channels in.
        out_channels (`int`): Channels out.
        label_channels (`int`): Channels of the label map.
        hidden_channels (`int`): Of the norms' convolutions.
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
