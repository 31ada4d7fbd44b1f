"""Sharpness of a picture or of a part of it, to be compared with the same part of the true picture.

Not in the papers, which report no sharpness. The Laplacian answers to detail of one or two pixels, which is what
blending, resampling and an L1 loss take away first. It does not know detail from noise or from a seam: look, too.
"""

from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def laplacian(
    pictures: Tensor,  # [..., 3, H, W]
) -> Tensor:
    """Laplacian of the luma where it fits: neighbours left, right, above and below less four times the pixel.

    Args:
        pictures (`torch.Tensor` of shape `(..., 3, height, width)`): RGB.

    Returns:
        `torch.Tensor` of shape `(..., height - 2, width - 2)`, in the units of the colours.

    Raises:
        ValueError: If these are no RGB pictures of at least 3 x 3 pixels.
    """
    if pictures.ndim < 3 or pictures.shape[-3] != 3 or min(pictures.shape[-2:]) < 3:
        raise ValueError(
            f"`pictures` must have shape (..., 3, height, width) with sides of at least 3, got {tuple(pictures.shape)}."
        )
    red, green, blue = pictures.unbind(-3)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    inner = luma[..., 1:-1, 1:-1]
    across = luma[..., 1:-1, :-2] + luma[..., 1:-1, 2:]
    return across + luma[..., :-2, 1:-1] + luma[..., 2:, 1:-1] - 4 * inner


def laplacian_sharpness(
    pictures: Tensor,  # [T, 3, H, W]
    mask: Tensor | None = None,  # [T or 1, 1, H, W]
) -> Tensor:
    """Mean absolute Laplacian of the luma, `(frames,)`.

    Its value depends on the picture's size and content: divide it by that of the true pictures of the same size under
    the same mask.

    Args:
        pictures (`torch.Tensor` of shape `(frames, 3, height, width)`): RGB in [0, 1].
        mask (`torch.Tensor` of shape `(frames or 1, 1, height, width)`, *optional*): Weights of the pixels, at least
            0; the picture's outermost pixels have no Laplacian and do not count. All pixels if not given.

    Returns:
        `torch.Tensor` of shape `(frames,)`; NaN where the mask is empty.

    Raises:
        ValueError: If the shapes are others.
    """
    if pictures.ndim != 4:
        raise ValueError(f"`pictures` must have shape (frames, 3, height, width), got {tuple(pictures.shape)}.")
    strength = laplacian(pictures).abs()  # [T, H - 2, W - 2]
    if mask is None:
        return strength.mean((1, 2))
    frames, _, height, width = pictures.shape
    if mask.ndim != 4 or mask.shape[0] not in (1, frames) or mask.shape[1:] != (1, height, width):
        raise ValueError(f"`mask` must have shape ({frames} or 1, 1, {height}, {width}), got {tuple(mask.shape)}.")
    weight = mask[:, 0, 1:-1, 1:-1].to(strength).expand_as(strength)
    return (strength * weight).sum((1, 2)) / weight.sum((1, 2))
