"""The optimisation of an avatar (VASA-3D §3.3, appendix A): one iteration after another, to be stopped and resumed.

Not `training/loop.py`: here parameters change in number, each kind has a learning rate of its own, and images are
rendered. What they share is the rule by which a resumed run equals an uninterrupted one: nothing random is carried
over. Frame `i` is a pure function of `i`, and each iteration seeds its own random numbers.

With several processes each takes its own frames; gradients and densification are averaged explicitly, since the modules
that average them by themselves need parameters that stay.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vasa_hf.gaussians.binding import POSITION_THRESHOLD, SCALING_THRESHOLD, binding_losses
from vasa_hf.gaussians.densify import DensityState, apply_density, observe, plan_density, reset_opacities
from vasa_hf.gaussians.render import RenderOutput, render
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.cameras import Cameras
from vasa_hf.models.gaussian_avatar_vasa3d import Vasa3DGaussianAvatar, Vasa3DGaussianAvatarOutput, Vasa3DRestState
from vasa_hf.outputs import to_images
from vasa_hf.training import losses
from vasa_hf.training.avatar.frames import AvatarFrames
from vasa_hf.training.avatar.losses import (
    PerceptualDistance,
    ScoreDistillation,
    cameras_around,
    consistency_cameras,
    random_cameras,
    recon_loss,
    sds_t_max,
    sharpening_loss,
)
from vasa_hf.training.avatar.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from vasa_hf.training.avatar.presets import AvatarPreset
from vasa_hf.training.loop import checkpoints

logger = logging.getLogger(__name__)

_FEW = 0.2  # of the iterations, after which the clock ends a fit too early
_SIDE_RAD = math.radians(45)  # of the previews' side views


@dataclass
class FitProgress:
    """What `on_progress` takes.

    Attributes:
        stage (`str`): "start" (mesh and colours), "motion", "frames", "fit" or "sharpen".
        done (`int`), total (`int`): Steps of the stage; its end may come earlier, by the clock.
        logs (`dict[str, float]`): Means of the losses since the last report.
        preview (`Path`, *optional*): The newest sheet: target, G', G'', and G'' from 45 degrees to either side.
    """

    stage: str
    done: int
    total: int
    logs: dict[str, float] = field(default_factory=dict)
    preview: Path | None = None


class AvatarFit:
    """An avatar while it is fitted to frames.

    Args:
        avatar (`Vasa3DGaussianAvatar`): Changed in place.
        frames (`AvatarFrames`): What to fit it to.
        preset (`AvatarPreset`): How.
        accelerator (`accelerate.Accelerator`): Device, precision and processes.
        folder (`Path`, *optional*): For checkpoints, previews and the log; nothing is written without.
        seed (`int`, *optional*, defaults to 0): Of all random numbers.
        limit_minutes (`float`, *optional*): Wall-clock time for all iterations.
        distance (`PerceptualDistance`, *optional*): Needed by the perceptual losses.
        sds (`ScoreDistillation`, *optional*): Without it there is no L_sds.
        on_progress (`Callable`, *optional*): Takes a `FitProgress`.
    """

    def __init__(
        self,
        avatar: Vasa3DGaussianAvatar,
        frames: AvatarFrames,
        preset: AvatarPreset,
        accelerator: Accelerator,
        folder: Path | None = None,
        seed: int = 0,
        limit_minutes: float | None = None,
        distance: PerceptualDistance | None = None,
        sds: ScoreDistillation | None = None,
        on_progress: Callable[[FitProgress], None] | None = None,
    ):
        self.preset, self.accelerator, self.folder, self.seed = preset, accelerator, folder, seed
        self.limit_minutes, self.on_progress, self.frames = limit_minutes, on_progress, frames
        device = accelerator.device
        self.avatar = avatar.to(device).train().requires_grad_(True)
        self.distance = None if distance is None else distance.to(device)
        self.sds = None if sds is None else sds.to(device)
        self.optimizer = make_optimizer(avatar, preset)
        self.density_config = preset.density()
        self.density = DensityState.empty(len(avatar.means), device)
        self.room = _room(avatar)
        self.discriminator = None
        if preset.weight_adversarial and preset.adversarial_every:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.discriminator = losses.MultiScalePatchDiscriminator(scales=3).to(device)  # §3.3: three
            rate = preset.lr_discriminator
            self.judge = torch.optim.Adam(self.discriminator.parameters(), lr=rate, betas=(0.5, 0.999))
        self.step, self.minutes = 0, 0.0
        anchors = frames.folder / "anchors.safetensors"
        self.anchors = load_file(anchors) if anchors.is_file() else None
        self.size = tuple(frames[0]["frame"].shape[-2:])
        self.preview: Path | None = None

    # --- the loop -----------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """How much is done, by iterations or by the clock, 0 to 1."""
        clock = 0.0 if self.limit_minutes is None else self.minutes / max(self.limit_minutes, 1e-9)
        return max(self.step / self.preset.total_iterations, clock)

    @property
    def sharpens(self) -> bool:
        """Whether the main part is over and L_cas is on."""
        return self.progress * self.preset.total_iterations >= self.preset.iterations

    def run(self) -> Vasa3DGaussianAvatar:
        """Fit until all iterations are done or the time is up."""
        preset, values = self.preset, {}
        start = time.monotonic() - 60 * self.minutes
        while not self._is_finished():
            for name, value in self.iterate().items():
                values.setdefault(name, []).append(value)
            self.minutes = (time.monotonic() - start) / 60
            if self._due(preset.preview_every):
                self.save_preview()
            if self._due(preset.log_every):
                self._report(values)
                values = {}
            if self._due(preset.checkpoint_every):
                self.save_checkpoint()
        self.save_preview()
        self._report(values)
        if self.step < _FEW * preset.iterations:
            logger.warning(
                "The time was up after %d of %d iterations: allow more `max_minutes`.", self.step, preset.iterations
            )
        return self.avatar.eval()

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _is_finished(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.progress >= 1
        finished = torch.tensor([float(self.progress >= 1)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(finished, "sum").item() > 0)  # all end together

    def iterate(self) -> dict[str, Tensor]:
        """One iteration; returns the values of its losses."""
        preset, sharpens = self.preset, self.sharpens
        decay = preset.final_lr_ratio ** min(1.0, self.progress * preset.total_iterations / preset.iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * decay
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.step * 997 + self._rank) % 2**63)
        batch = self._batch()
        rest = self.avatar.rest_state()
        out = self.avatar(batch["motion"], deform=preset.deform, return_base=preset.deform, rest=rest)
        probe = self._probe(len(batch["motion"]))
        shown = self._render(out.gaussians, self.avatar.portrait_camera, batch["background"], probe)
        pictures = [shown.color]
        if preset.deform and self._uses(preset.base_every):
            pictures.append(self._render(out.base, self.avatar.portrait_camera, batch["background"]).color)
        terms = self._picture_losses(pictures, batch["frame"], sharpens)
        terms |= self._view_losses(out, batch, generator) | self._anchor_loss(rest)
        visible = (shown.radii > 0).any(dim=0)
        distance, size = self.room[visible].split(1, dim=1)
        position, scaling = binding_losses(
            self.avatar.means[visible] / distance, self.avatar.scales[visible].exp() / size
        )
        terms |= {"position": preset.weight_position * position, "scaling": preset.weight_scaling * scaling}
        sum(terms.values()).backward()
        self._average_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # Not in the papers: what frames hide but for a rim would else become any colour, as sides would show.
        self.avatar.colors.data.clamp_(0.0, 1.0)
        if self.discriminator is not None and self._uses(preset.adversarial_every):
            terms["discriminator"] = self._teach_discriminator(pictures, batch["frame"])
        if probe is not None:
            observe(self.density, probe.grad, shown.radii, self.size)
        self.step += 1
        self._change_density(out, generator)
        return {name: value.detach() for name, value in terms.items()}

    # --- parts of an iteration ----------------------------------------------------------------------------------------

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index

    def _uses(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _batch(self) -> dict[str, Tensor]:
        size = self.preset.batch_size
        first = (self.step * self.accelerator.num_processes + self._rank) * size
        samples = [self.frames[index] for index in range(first, first + size)]
        device = self.accelerator.device
        return {name: torch.stack([sample[name] for sample in samples]).to(device) for name in samples[0]}

    def _render(self, gaussians: Gaussians, cameras: Cameras, background: Tensor, probe: Any = None) -> RenderOutput:
        return render(gaussians, cameras, self.size, background, screen_probe=probe)

    def _probe(self, count: int) -> Tensor | None:
        config = self.density_config
        if self.step >= min(config.stop, self.preset.total_iterations) or not self.preset.densify_every:
            return None
        return torch.zeros(count, len(self.avatar.means), 2, device=self.accelerator.device, requires_grad=True)

    def _picture_losses(self, pictures: list[Tensor], frame: Tensor, sharpens: bool) -> dict[str, Tensor]:
        """L_recon, L_perc and L_cas of G'' and G', summed over the two, weighed."""
        preset = self.preset
        weight_ssim = preset.weight_ssim if self._uses(preset.ssim_every) else 0.0
        terms = {"recon": sum(recon_loss(picture, frame, weight_ssim) for picture in pictures)}
        both = torch.cat(pictures)
        with self.accelerator.autocast():
            if self.distance is not None and preset.weight_perceptual and self._uses(preset.perceptual_every):
                terms["perceptual"] = preset.weight_perceptual * len(pictures) * self.distance(both, frame)
            if self.discriminator is not None and self._uses(preset.adversarial_every):
                self.discriminator.requires_grad_(False)
                scores, _ = self.discriminator(both * 2 - 1)
                terms["adversarial"] = preset.weight_adversarial * len(pictures) * losses.generator_loss(scores)
                self.discriminator.requires_grad_(True)
            if sharpens and self.distance is not None:
                terms["sharpen"] = preset.weight_sharpen * len(pictures) * sharpening_loss(self.distance, both)
        return terms

    def _view_losses(
        self, out: Vasa3DGaussianAvatarOutput, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """L_sds of G'' and G', and L_consist between them, from new views; weighed."""
        preset, terms = self.preset, {}
        if preset.weight_consist and preset.deform and self.distance is not None and self._uses(preset.consist_every):
            cameras = consistency_cameras(self.avatar, out.gaussians, batch["motion"], generator)
            deformed = self._render(out.gaussians, cameras, batch["background"]).color
            with torch.no_grad():
                base = self._render(out.base, cameras, batch["background"]).color
            with self.accelerator.autocast():
                terms["consist"] = preset.weight_consist * self.distance(deformed, base)
        if self.sds is not None and preset.weight_sds and self._uses(preset.sds_every):
            cameras = random_cameras(self.avatar, out.gaussians, generator)
            sets = [out.gaussians, out.base] if preset.deform else [out.gaussians]
            pictures = torch.cat([self._render(one, cameras, batch["background"]).color for one in sets])
            t_max = sds_t_max(self.step, preset.sds_t_max, preset.sds_decay, preset.sds_decay_every)
            with self.accelerator.autocast():
                loss = self.sds(pictures, preset.sds_t_min, max(t_max, preset.sds_t_min), generator)
            terms["sds"] = preset.weight_sds * len(sets) * loss
        return terms

    def _anchor_loss(self, rest: Vasa3DRestState) -> dict[str, Tensor]:
        """L1 to what the start looked like from the sides, where the portrait did not show it."""
        preset, anchors = self.preset, self.anchors
        if anchors is None or not preset.weight_anchor or not self._uses(preset.anchor_every):
            return {}
        number = self.step // preset.anchor_every % len(anchors["motion"])
        one = {name: value[number : number + 1].to(self.accelerator.device) for name, value in anchors.items()}
        camera = dataclasses.replace(self.avatar.portrait_camera, camera_from_world=one["camera_from_world"])
        gaussians = self.avatar(one["motion"], deform=preset.deform, rest=rest).gaussians
        error = (self._render(gaussians, camera, one["background"]).color - one["picture"] / 255).abs()
        return {"anchor": preset.weight_anchor * (error * (one["weight"] / 255)).mean()}

    def _teach_discriminator(self, pictures: list[Tensor], frame: Tensor) -> Tensor:
        with self.accelerator.autocast():
            real, _ = self.discriminator(frame * 2 - 1)
            fake, _ = self.discriminator(torch.cat(pictures).detach() * 2 - 1)
            loss = losses.discriminator_loss(real, fake)
        loss.backward()
        self._average(self.discriminator.parameters())
        self.judge.step()
        self.judge.zero_grad(set_to_none=True)
        return loss

    def _average_gradients(self) -> None:
        self._average(self.avatar.parameters())

    def _average(self, parameters: Any) -> None:
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    @torch.no_grad()
    def _change_density(self, out: Vasa3DGaussianAvatarOutput, generator: torch.Generator) -> None:
        """Densification and pruning (appendix A); `step` counts the iteration that has just been."""
        config, avatar = self.density_config, self.avatar
        if config.changes_at(self.step):
            state = DensityState(*(self.accelerator.reduce(v, "sum") for v in vars(self.density).values()))
            scales = self.accelerator.reduce(out.gaussians.scales.mean(dim=0), "mean")
            extent = avatar.config.camera_distance_cm
            plan = plan_density(state, scales, avatar.opacities.sigmoid(), extent, config, avatar.triangles)
            generator.manual_seed(self.seed * 1_000_003 + self.step)  # alike on all processes
            parameters = {**avatar.gaussian_parameters, "room": nn.Parameter(self.room, requires_grad=False)}
            new, triangles = apply_density(plan, parameters, self.optimizer, config, avatar.triangles, generator)
            self.room = new.pop("room").data
            avatar.set_gaussians(new, triangles)
            self.density = DensityState.empty(len(avatar.means), self.accelerator.device)
        if config.resets_at(self.step):
            reset_opacities(avatar.opacities, self.optimizer, config)

    # --- what is seen of it -------------------------------------------------------------------------------------------

    def _report(self, values: dict[str, list[Tensor]]) -> None:
        means = torch.stack([torch.stack(parts).mean() for parts in values.values()] or [torch.zeros(())])
        means = self.accelerator.reduce(means.to(self.accelerator.device), "mean").tolist()  # over the processes
        logs = dict(zip(values, means, strict=False))
        if not self.accelerator.is_main_process:
            return
        if self.folder is not None:
            line = {"step": self.step, "minutes": round(self.minutes, 4), "gaussians": len(self.avatar.means), **logs}
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
        if self.on_progress is not None:
            stage = "sharpen" if self.preset.sharpen_iterations and self.sharpens else "fit"
            self.on_progress(FitProgress(stage, self.step, self.preset.total_iterations, logs, self.preview))

    @torch.no_grad()
    def save_preview(self) -> None:
        """Write `preview-<iteration>.png`."""
        if self.folder is None or not self.accelerator.is_main_process or not self.preset.preview_every:
            return
        sample = {name: value[None].to(self.accelerator.device) for name, value in self.frames[0].items()}
        out = self.avatar(sample["motion"], return_base=True)
        camera, background = self.avatar.portrait_camera, sample["background"]
        front = [self._render(one, camera, background).color[0] for one in (out.base, out.gaussians)]
        neutral = self.avatar(self.avatar.neutral_motion.expand(2, -1)).gaussians
        angles = torch.tensor([-_SIDE_RAD, _SIDE_RAD])
        beside = cameras_around(self.avatar, neutral, angles, 0 * angles)
        sides = self._render(neutral, beside, background[0])
        row = torch.cat([sample["frame"][0], *front, *sides.color], dim=2).clamp(0, 1).float().cpu()
        path = self.folder / f"preview-{self.step:06d}.png"
        (picture,) = to_images(row[None], "pil")
        _save_picture(picture, path)
        self.preview = path

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write `checkpoint-<iteration>` under another name, rename it, then drop the older ones."""
        if self.folder is None or not self.accelerator.is_main_process:
            return
        target, partial = self.folder / f"checkpoint-{self.step:08d}", self.folder / "checkpoint.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.avatar.save_pretrained(partial / "avatar")
        names = {parameter: name for name, parameter in self.avatar.named_parameters()}
        tensors = optimizer_tensors("avatar", self.optimizer, names)
        tensors |= {f"density.{name}": value for name, value in vars(self.density).items()} | {"room": self.room}
        if self.discriminator is not None:
            names = {parameter: name for name, parameter in self.discriminator.named_parameters()}
            tensors |= optimizer_tensors("judge", self.judge, names)
            tensors |= {f"discriminator.{name}": value for name, value in self.discriminator.state_dict().items()}
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        save_file(tensors, partial / "training.safetensors")
        progress = {"step": self.step, "minutes": self.minutes, "limit_minutes": self.limit_minutes}
        (partial / "progress.json").write_text(json.dumps(progress))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        for old in checkpoints(self.folder)[:-1]:
            shutil.rmtree(old)

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Continue from a checkpoint whose `avatar` this fit was made with."""
        tensors = load_file(checkpoint / "training.safetensors", device=str(self.accelerator.device))
        parameters = dict(self.avatar.named_parameters())
        load_optimizer("avatar", self.optimizer, parameters, tensors)
        self.density = DensityState(tensors["density.gradient"], tensors["density.count"])
        self.room = tensors["room"]
        if self.discriminator is not None:
            load_optimizer("judge", self.judge, dict(self.discriminator.named_parameters()), tensors)
            prefix = "discriminator."
            state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            self.discriminator.load_state_dict(state)
        progress = json.loads((checkpoint / "progress.json").read_text())
        self.step, self.minutes, self.limit_minutes = (progress[k] for k in ("step", "minutes", "limit_minutes"))


@torch.no_grad()
def _room(avatar: Vasa3DGaussianAvatar) -> Tensor:
    """How much farther and larger than usual each Gaussian may be before the binding losses hold it: `(N, 2)`, >= 1.

    Not in the papers: hair and shoulders begin well away from the triangles that carry them, and may stay there.
    """
    distance = avatar.means.norm(dim=1) / POSITION_THRESHOLD
    size = avatar.scales.exp().amax(dim=1) / SCALING_THRESHOLD
    return torch.stack([distance, size], dim=1).clamp_min(1.0)


def _save_picture(picture: Image.Image, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    picture.save(partial, format="PNG")
    os.replace(partial, path)
