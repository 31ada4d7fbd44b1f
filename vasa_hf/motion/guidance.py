"""Classifier-free guidance with one scale per condition (VASA-1 §3.2, Eq. 2), as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vasa_hf.checks import is_finite_number, shorten

# `previous` covers X_pre and A_pre, that is the arguments `previous_motion` and `previous_audio`.
GUIDANCE_NAMES = ("audio", "gaze", "head_distance", "emotion", "previous")


def check_guidance_scale(guidance_scale: Mapping[str, float]) -> dict[str, float]:
    """Return the scales that are not zero.

    Raises:
        ValueError: If a name is unknown or a scale is no finite number >= 0.
    """
    for name, scale in guidance_scale.items():
        if not set(name.split("+")) <= set(GUIDANCE_NAMES):
            raise ValueError(f"`guidance_scale` knows the names {list(GUIDANCE_NAMES)}, got {name!r}.")
        if not is_finite_number(scale) or scale < 0:
            raise ValueError(f"`guidance_scale` expects finite numbers >= 0, got {shorten(scale)} for {name!r}.")
    return {name: float(scale) for name, scale in guidance_scale.items() if scale != 0}


def guided_prediction(
    predict: Callable[..., Tensor],
    sample: Tensor,  # [B, W, M]
    conditions: Mapping[str, Tensor | None],
    guidance_scale: Mapping[str, float],
    **shared: Any,
) -> Tensor:
    """Guided prediction of the clean motion.

    Source: VASA-1 Eq. 2: X0 = (1 + sum_c lambda_c) H(X_t, t, C) - sum_c lambda_c H(X_t, t, C | c = null).

    All passes run as one batch. A scale of zero, and a condition that is absent anyway, cost nothing.

    Args:
        predict (`Callable`):
            `predict(sample, drop=..., **conditions, **shared) -> X0`. `drop` maps names of conditions to boolean
            tensors of shape `(batch,)`: for these samples the condition is null.
        sample (`torch.Tensor` of shape `(batch, frames, channels)`): Noisy motion X_t.
        conditions (`Mapping[str, torch.Tensor | None]`): C; every tensor has the batch first. `None` is null.
        guidance_scale (`Mapping[str, float]`):
            lambda_c by name, see `GUIDANCE_NAMES`. `"audio+emotion"` is one scale for both, which are null together.
        **shared: More keyword arguments of `predict`; tensors with the batch first are repeated, others passed on.

    Returns:
        `torch.Tensor` of the shape of `sample`.
    """
    scales = {
        name: scale
        for name, scale in check_guidance_scale(guidance_scale).items()
        if any(value is not None for key, value in conditions.items() if _belongs(key, name.split("+")))
    }
    batch, passes = sample.shape[0], 1 + len(scales)

    def repeat(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch:
            return value.repeat(passes, *[1] * (value.ndim - 1))
        return value

    drop: dict[str, Tensor] = {}
    for place, name in enumerate(scales, start=1):
        mask = torch.zeros(passes, batch, dtype=torch.bool, device=sample.device)
        mask[place] = True
        for part in name.split("+"):
            drop[part] = drop[part] | mask.flatten() if part in drop else mask.flatten()
    arguments = {key: repeat(value) for key, value in {**conditions, **shared}.items()}
    outputs = predict(repeat(sample), drop=drop, **arguments).unflatten(0, (passes, batch))
    guided = (1.0 + sum(scales.values())) * outputs[0]
    for place, scale in enumerate(scales.values(), start=1):
        guided = guided - scale * outputs[place]
    return guided


def _belongs(condition: str, names: Sequence[str]) -> bool:
    """Whether a condition of the model is dropped under one of these guidance names."""
    return any(condition == name or condition.startswith(f"{name}_") for name in names)
