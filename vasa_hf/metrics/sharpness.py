"""Sharpness of an image or of a region, to compare with the same region of the true image.

Not in the papers, which report no sharpness. The Laplacian measures detail of one or two pixels, which blending,
resampling and an L1 loss remove first. Noise and seams raise it as well: also look at the images.
"""

from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def laplacian(
    images: Tensor,  # [..., 3, H, W]
) -> Tensor:
    """Laplacian of the luma where it fits: neighbours left, right, above and below less four times the pixel.

    Args:
        images (`torch.Tensor` of shape `(..., 3, height, width)`): RGB.

    Returns:
        `torch.Tensor` of shape `(..., height - 2, width - 2)`, in the units of the colours.

    Raises:
        ValueError: If the images are not RGB of at least 3 x 3 pixels.
    """
    if images.ndim < 3 or images.shape[-3] != 3 or min(images.shape[-2:]) < 3:
        raise ValueError(
            f"`images` must have shape (..., 3, height, width) with sides of at least 3, got {tuple(images.shape)}."
        )
    red, green, blue = images.unbind(-3)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    inner = luma[..., 1:-1, 1:-1]
    across = luma[..., 1:-1, :-2] + luma[..., 1:-1, 2:]
    return across + luma[..., :-2, 1:-1] + luma[..., 2:, 1:-1] - 4 * inner


def laplacian_sharpness(
    images: Tensor,  # [T, 3, H, W]
    mask: Tensor | None = None,  # [T or 1, 1, H, W]
) -> Tensor:
    """Mean absolute Laplacian of the luma, `(frames,)`.

    Its value depends on the image's size and content: divide it by that of the true images of the same size under
    the same mask.

    Args:
        images (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
        mask (`torch.Tensor` of shape `(frames or 1, 1, height, width)`, *optional*): Weights of the pixels, at least
            0; by default all pixels. The outermost pixels of the image have no Laplacian and are ignored.

    Returns:
        `torch.Tensor` of shape `(frames,)`; NaN where the mask is empty.

    Raises:
        ValueError: If a shape is wrong.
    """
    if images.ndim != 4:
        raise ValueError(f"`images` must have shape (frames, 3, height, width), got {tuple(images.shape)}.")
    strength = laplacian(images).abs()  # [T, H - 2, W - 2]
    if mask is None:
        return strength.mean((1, 2))
    frames, _, height, width = images.shape
    if mask.ndim != 4 or mask.shape[0] not in (1, frames) or mask.shape[1:] != (1, height, width):
        raise ValueError(f"`mask` must have shape ({frames} or 1, 1, {height}, {width}), got {tuple(mask.shape)}.")
    weight = mask[:, 0, 1:-1, 1:-1].to(strength).expand_as(strength)
    return (strength * weight).sum((1, 2)) / weight.sum((1, 2))
