"""Train VASA-1's motion generator (§3.2, Eq. 1).

    accelerate launch -m vasa_hf.training motion_transformer --pipeline FOLDER --data DIR [DIR ...] --output DIR

`DIR/clips/*.mp4` are square face crops with audio at 25 frames per second; `DIR/identities.csv` (clip,identity) says
which clips show one person, if given; the order of the clips is that of `names` in `DIR/clips.npz`, else alphabetical.
People of different folders are different people. The conditions g, d and e are read from `gaze`, `head_distance` and
`expression` in `DIR/clips.npz`, as `vasa-hf prepare` writes them. Motion and audio features are computed once by the
pipeline's face autoencoder and audio encoder and kept in the output folder. `--talkers FILE` adds talkers made by
`vasa_hf.data.synthetic.talkers`: clips of 4 to 12 seconds in which heads follow the voice, which short clips cannot
show. With `--pipeline`, `OUTPUT/pipeline` is a whole pipeline with the new weights.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vasa_hf.data.clips import MotionData, MotionPriors
from vasa_hf.data.motion_sequences import MotionSequences
from vasa_hf.hub import resolve
from vasa_hf.models.motion_transformer_vasa1 import CONDITIONS, EMOTIONS, PRESETS, Vasa1MotionTransformer
from vasa_hf.motion import MotionSpec
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.motion_data import MotionDataOptions, load_priors, prepare_motion_data
from vasa_hf.training.motion_samples import make_sample_sheet
from vasa_hf.training.options import option
from vasa_hf.training.saving import train_and_save

NAME = "motion_transformer"


@dataclass
class MotionTransformerOptions(MotionDataOptions):
    """Options of this recipe; those of its data are in `MotionDataOptions`, those of all recipes in `LoopOptions`."""

    priors: str | None = option(None, "known directions in z_dyn, such as vasa-small/motion_priors.safetensors")
    talker_share: float | None = option(None, "share of the windows drawn from talkers (default: by their length)")
    initial: str | None = option(None, "folder of a motion transformer to continue from, instead of random weights")
    preset: str = option("paper", "size of a new model", PRESETS)
    model: str = option("{}", 'changes of the preset as JSON, such as {"num_layers": 4}')
    dynamics: list[str] = option([], "parts of z_dyn as name=width, in order; one part if left out")
    window: int = option(50, "frames W of a window")
    context: int = option(10, "frames K carried over")
    drop_condition: float = option(0.1, "drop probability of each of audio, gaze, distance and emotion")
    drop_previous: float = option(0.5, "drop probability of the context X_pre and A_pre")
    drop_audio_tail: float = option(0.15, "how often the last frames of the audio are dropped")
    data_share: float = option(1.0, "share of the clips that are used; 0.1 is the paper's experiment with 10 % data")
    dropout: float = option(0.05, "dropout of the transformer")
    velocity_weight: float = option(1.0, "weight of the loss on differences of neighbouring frames; 0 as in the paper")
    lips_weight: float = option(1.5, "weight of the lips' channels; 1 as in the paper")
    audio_noise: float = option(0.1, "deviation of noise on the audio features, in deviations of the features")
    previous_noise: float = option(0.03, "noise on X_pre, in deviations: forgives earlier errors; 0 as in the paper")
    smoothing: float = option(1.0, "how much of data.clips.SMOOTHING is applied to real motion; 0 as in the paper")
    natural: float = option(0.35, "share of windows of short clips that are not joined to others; 1 as in the paper")
    silent: float = option(0.16, "share of windows without speech; 0 for what the clips hold, as in the paper")
    add_idle_motion: bool = option(False, "add head motion, saccades and blinks to the real motion of short clips")
    add_blinks: bool = option(False, "add blinks to real motion where it has none near: few steps draw too few")
    idle_blinks: float = option(3.5, "excess of blinks in composed pauses: few sampling steps draw too little of them")
    shift_conditions: bool = option(True, "shift gaze, distance and emotion by known amounts; not in the paper")


def make_scheduler() -> DDIMScheduler:
    """The noise schedule of training and the default sampler.

    # Not in the paper: it names neither schedule nor sampler, only 50 (or 10) steps.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def motion_loss(
    prediction: Tensor,  # [B, W, M]
    target: Tensor,  # [B, W, M]
    frame_mask: Tensor,  # [B, W]
    channel_weight: Tensor,  # [M] or [B, 1, M]
    velocity_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the predicted clean motion over real frames, and of its frame differences.

    Source: VASA-1 Eq. 1, the simplified loss ||X_0 - H(X_t, t, C)||².
    # Not in the paper: channel weights and the term on differences (1 and 0 give Eq. 1).

    Returns:
        `tuple`: scalar loss, and its parts `position` and `velocity`.
    """
    weight = frame_mask.float()[..., None] * channel_weight / channel_weight.mean()
    error = prediction.float() - target.float()
    position = (weight * error**2).sum() / (weight.sum() + 1e-6)
    both = torch.minimum(weight[:, 1:], weight[:, :-1])
    velocity = (both * error.diff(dim=1) ** 2).sum() / (both.sum() + 1e-6)
    return position + velocity_weight * velocity, {"position": position.detach(), "velocity": velocity.detach()}


def fit_statistics(model: Vasa1MotionTransformer, dataset: MotionSequences, samples: int = 300) -> None:
    """Write mean and deviation of the relative motion and of the audio features into the model."""
    chosen = [dataset[index] for index in range(samples)]
    for name, least in (("motion", 1e-4), ("audio", 1e-2)):
        rows = torch.cat([sample[name][sample["frame_mask"]] for sample in chosen])
        getattr(model, f"{name}_mean").copy_(rows.mean(0))
        getattr(model, f"{name}_std").copy_(rows.std(0).clamp_min(least))


def check_conditions(dataset: MotionSequences, samples: int = 200) -> None:
    """See that each of the conditions g, d and e takes different values: else nothing is learnt about it.

    Raises:
        ValueError: If one of them never varies.
    """
    chosen = [dataset[index] for index in range(samples)]
    sources = {"gaze": "gaze", "head_distance": "head_distance", "emotion": "expression"}
    for name, array in sources.items():
        values = [sample[name] for sample in chosen if not sample[f"drop_{name}"]]
        if len(values) < 2 or torch.stack(values).std(0).max() < 1e-6:
            raise ValueError(
                f"The condition `{name}` must vary, but it never does: `data` must have `{array}` in clips.npz, as "
                f"vasa-hf prepare writes it, or `priors` a direction for it that `shift_conditions` can use."
            )


class MotionLoss:
    """The player's loss: noise, conditions dropped as the samples say, prediction, Eq. 1."""

    def __init__(self, options: MotionTransformerOptions, model: Vasa1MotionTransformer):
        self.options, self.model, self.scheduler = options, model, make_scheduler()
        self.channel_weight = torch.ones(model.config.motion_dim)
        if "lips" in model.motion_spec.dynamics:
            self.channel_weight[model.motion_spec.slices["lips"]] = options.lips_weight

    def __call__(self, modules: dict[str, nn.Module], batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch of `MotionSequences`."""
        target, previous = self.model.normalize(batch["motion"]), self.model.normalize(batch["previous_motion"])
        noise = torch.randn_like(target)
        timestep = torch.randint(0, self.scheduler.config.num_train_timesteps, target.shape[:1], device=target.device)
        # With windows this short, the fused attention's backward pass on a CPU is slower than the plain one.
        plain_attention = sdpa_kernel(SDPBackend.MATH) if target.device.type == "cpu" else nullcontext()
        with plain_attention:
            output = self.predict(modules["motion_transformer"], batch, target, noise, timestep, previous)
        weight = self.channel_weight.to(target.device).repeat(len(target), 1, 1)  # [B, 1, M]
        weight[..., self.model.motion_spec.slices["translation"]] *= batch["translates"].view(-1, 1, 1)
        return motion_loss(output, target, batch["frame_mask"], weight, self.options.velocity_weight)

    def predict(
        self, model: nn.Module, batch: dict, target: Tensor, noise: Tensor, timestep: Tensor, previous: Tensor
    ) -> Tensor:
        """Prediction of the clean motion from noisy motion under the conditions of the batch."""
        audio_noise = self.options.audio_noise * self.model.audio_std  # [A]
        return model(
            self.scheduler.add_noise(target, noise, timestep),
            timestep,
            audio=batch["audio"] + audio_noise * torch.randn_like(batch["audio"]),
            previous_motion=previous + self.options.previous_noise * torch.randn_like(previous),
            previous_audio=batch["previous_audio"] + audio_noise * torch.randn_like(batch["previous_audio"]),
            gaze=batch["gaze"],
            head_distance=batch["head_distance"],
            emotion=batch["emotion"],
            frame_mask=batch["frame_mask"],
            drop={name: batch[f"drop_{name}"] for name in CONDITIONS},
        ).sample


def describe_sheet(model: Vasa1MotionTransformer, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Conditions and channels of `make_sample_sheet`."""
    conditions = {name: batch[name] for name in ("audio", "gaze", "head_distance", "emotion")}
    channels = {name: part.start for name, part in model.motion_spec.slices.items() if name != "rotation"}
    return conditions, {"yaw": 0, "pitch": 1, "roll": 2, **channels}


def run(options: MotionTransformerOptions) -> TrainingState:
    """Prepare the data, train, and save `motion_transformer/` and `scheduler/`, and `pipeline/` with `pipeline`."""
    with PartialState(cpu=options.cpu).main_process_first():
        data = prepare_motion_data(options, options.window).take(options.data_share)
    num_clips = len(data.person)
    data = data.join([MotionData.load(path) for path in options.talkers])
    spec = MotionSpec({"dynamics": data.motion.shape[-1] - 6})
    if options.dynamics:
        spec = MotionSpec({name: int(width) for name, width in (part.split("=") for part in options.dynamics)})
    if spec.dim != data.motion.shape[-1]:
        raise ValueError(f"`dynamics` must have {data.motion.shape[-1] - 6} channels in all, got {spec.dynamics}.")
    priors = load_priors(options, options.priors)
    dataset = MotionSequences(
        data,
        spec,
        priors or MotionPriors(),
        options.window,
        options.context,
        len(EMOTIONS),
        options.seed,
        exact=np.arange(len(data.person)) >= num_clips,  # talkers
        exact_share=options.talker_share,
        drop_condition=options.drop_condition,
        drop_previous=options.drop_previous,
        drop_audio_tail=options.drop_audio_tail,
        natural=options.natural,
        silent=options.silent,
        smoothing=options.smoothing,
        add_idle_motion=options.add_idle_motion,
        add_blinks=options.add_blinks,
        idle_blinks=options.idle_blinks,
        shifted=options.shift_conditions,
    )
    check_conditions(dataset)
    torch.manual_seed(options.seed)
    if options.initial:  # with the statistics of the data that its weights were trained on
        model = Vasa1MotionTransformer.from_pretrained(resolve(options.initial), torch_dtype=torch.float32)
    else:
        model = Vasa1MotionTransformer(
            motion_dim=spec.dim,
            audio_dim=data.audio.shape[-1],
            window=options.window,
            context=options.context,
            dropout=options.dropout,
            dynamics=spec.dynamics,
            **{**PRESETS[options.preset], **json.loads(options.model)},
        )
        fit_statistics(model, dataset)
    components = {NAME: model, "scheduler": make_scheduler()}
    if priors is not None:  # the gaze and the emotions that this training knows
        components["motion_priors.safetensors"] = priors
    player = Player(NAME, (NAME,), MotionLoss(options, model), options.learning_rate, weight_decay=options.weight_decay)
    return train_and_save(
        options,
        {NAME: model},
        [player],
        dataset,
        (NAME,),
        lambda: components,
        options.pipeline,
        make_sample_sheet(dataset, NAME, make_scheduler(), {"audio": 0.5}, describe_sheet),
    )
