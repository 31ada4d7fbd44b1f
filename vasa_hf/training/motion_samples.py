"""Motion drawn from a model in training, and its curves next to those of real motion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn
from torch.utils.data import Dataset

from vasa_hf.motion.guidance import guided_prediction
from vasa_hf.training.sheets import draw_curves, save_columns


@torch.no_grad()
def sample_motion(
    model: Any,
    scheduler: SchedulerMixin,
    conditions: dict[str, Tensor],
    frame_mask: Tensor | None = None,
    guidance_scale: dict[str, float] | None = None,
    num_inference_steps: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw motion for one window, `(batch, frames, channels)`, not normalised.

    Args:
        model (`Any`): The motion generator.
        scheduler (`diffusers.SchedulerMixin`): Its sampler.
        conditions (`dict[str, torch.Tensor]`): As for the model's `forward`, `audio` among them.
        frame_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*): True where there is motion.
        guidance_scale (`dict[str, float]`, *optional*): See `guided_prediction`.
        num_inference_steps (`int`, defaults to 10): Denoising steps.
        generator (`torch.Generator`, *optional*): Random numbers.
    """
    scheduler.set_timesteps(num_inference_steps, device=model.device)
    shape = (*conditions["audio"].shape[:2], model.config.motion_dim)
    sample = torch.randn(shape, generator=generator, device=model.device)
    for timestep in scheduler.timesteps:
        prediction = guided_prediction(
            lambda x, **kwargs: model(x, **kwargs).sample,
            sample,
            conditions,
            guidance_scale or {},
            timestep=timestep,
            frame_mask=frame_mask,
        )
        sample = scheduler.step(prediction, timestep, sample).prev_sample
    return model.denormalize(sample)


def make_sample_sheet(
    dataset: Dataset,
    name: str,
    scheduler: SchedulerMixin,
    guidance_scale: dict[str, float],
    describe: Callable[[Any, dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, int]]],
) -> Callable[[dict[str, nn.Module], int, Path], None]:
    """Callback for the loop: curves of four samples, real and drawn with two seeds.

    Args:
        dataset (`torch.utils.data.Dataset`): The samples, with `motion` and `frame_mask`.
        name (`str`): The model's name in the loop.
        scheduler (`diffusers.SchedulerMixin`): Its sampler.
        guidance_scale (`dict[str, float]`): See `guided_prediction`.
        describe (`Callable`): From the model and a batch to its conditions, and the channels to draw by name.
    """
    samples = [dataset[10**9 + i] for i in range(4)]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def on_sample(modules: dict[str, nn.Module], step: int, folder: Path) -> None:
        model = modules[name]
        moved = {key: value.to(model.device) for key, value in batch.items()}
        conditions, channels = describe(model, moved)
        draws = []
        for seed in (0, 1):
            generator = torch.Generator(model.device).manual_seed(seed)
            drawn = sample_motion(
                model, scheduler, conditions, moved["frame_mask"], guidance_scale, generator=generator
            )
            draws.append(drawn.cpu())
        sheets = []
        for i in range(len(samples)):
            lines = [motion[i][batch["frame_mask"][i]].numpy() for motion in (batch["motion"], *draws)]
            sheets.append(draw_curves({key: [line[:, c] for line in lines] for key, c in channels.items()}))
        save_columns(sheets, folder / f"samples-{step:08d}.png")

    return on_sample
