"""Train MoDA's motion generator (§3.2.4): rectified flow, velocity loss, and the lip-sync expert if there is one.

    accelerate launch -m vasa_hf.training motion_transformer_moda --pipeline FOLDER --data DIR --output DIR

`DIR/clips/*.mp4` are square face crops with audio at 25 frames per second. The pipeline's renderer reads the motion of
every frame and its audio encoder the audio, once; both are kept in the output folder, and `OUTPUT/pipeline` is that
pipeline with the new generator. Or motion is made of landmark
labels and of talkers (`vasa_hf.data.synthetic.talkers`):

    ... --landmark-dynamics vasa-small/landmark_dynamics.safetensors --priors vasa-small/motion_priors.safetensors \
        --prepared motion_data.safetensors --talkers talkers.safetensors --head ict_facekit.npz --data DIR

`--sync-expert FOLDER` adds the loss of an expert trained by `sync_expert_moda` on the same data (ALSE, Eq. 6 and 7).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset

from vasa_hf.hub import resolve
from vasa_hf.models.motion_transformer_moda import FUSIONS, PRESETS, TIMESTEP_SPACINGS, ModaMotionTransformer
from vasa_hf.models.sync_expert import SyncExpert
from vasa_hf.training.loop import Player, TrainingState
from vasa_hf.training.moda_data import LIP_CHANNELS, ModaDataOptions, as_columns, lips_of, make_dataset
from vasa_hf.training.motion_samples import make_sample_sheet
from vasa_hf.training.options import option
from vasa_hf.training.saving import train_and_save

NAME = "motion_transformer"


@dataclass
class ModaMotionOptions(ModaDataOptions):
    """Options of this stage; those of its data are in `ModaDataOptions`, those of the loop in `LoopOptions`."""

    initial: str | None = option(None, "folder of a motion generator to continue from, instead of random weights")
    preset: str = option("paper", "size of a new model", PRESETS)
    fusion: str = option("coarse_to_fine", "how the streams meet", FUSIONS)
    model: str = option("{}", 'changes of the preset as JSON, such as {"num_single_stream": 2}')
    rotary_conditions: bool = option(False, "rotary positions on emotion and identity too, as in the paper")
    dropout: float = option(0.0, "dropout of the transformer")
    learning_rate: float = 1e-4
    weight_decay: float = 0.0  # Adam, as in the paper
    velocity_weight: float = option(1.0, "weight of the velocity loss")
    lips_weight: float = option(1.0, "weight of the lips' channels; 1 as in the paper")
    sync_expert: str | None = option(None, "folder of an expert trained by sync_expert_moda")
    sync_threshold: float = option(0.4, "the sync loss counts only where it is below this")
    timestep_spacing: str = option(
        "linspace", "steps of the saved pipeline; trailing: N equal ones, as in the paper", TIMESTEP_SPACINGS
    )
    audio_noise: float = option(0.0, "deviation of noise on the audio features, in deviations of the features")


def flow_loss(
    prediction: Tensor,  # [B, N, M]
    target: Tensor,  # [B, N, M]
    frame_mask: Tensor,  # [B, N]
    channel_weight: Tensor,  # [M]
    velocity_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the predicted velocity over real frames, and of its first and second differences in time.

    Source: MoDA Eq. 4 and 5. Differences are taken of the same tensors as there: x = noise - z_0 and its prediction.

    Args:
        prediction (`torch.Tensor` of shape `(batch, frames, channels)`): m.
        target (`torch.Tensor` of shape `(batch, frames, channels)`): x.
        frame_mask (`torch.Tensor` of shape `(batch, frames)`): True where there is motion.
        channel_weight (`torch.Tensor` of shape `(channels,)`): Ones as in the paper.
        velocity_weight (`float`, defaults to 1.0): Of Eq. 5.

    Returns:
        `tuple`: scalar loss, and its parts `flow` and `velocity`.
    """
    weight = frame_mask.float()[..., None] * channel_weight / channel_weight.mean()
    error = prediction.float() - target.float()

    def mean_square(value: Tensor, weight: Tensor) -> Tensor:
        return (weight * value**2).sum() / (weight.sum() + 1e-6)

    flow = mean_square(error, weight)
    # A difference exists where all of its frames do.
    pairs = torch.minimum(weight[:, 1:], weight[:, :-1])
    triples = torch.minimum(pairs[:, 1:], pairs[:, :-1])
    velocity = mean_square(error.diff(dim=1), pairs) + mean_square(error.diff(dim=1, n=2), triples)
    return flow + velocity_weight * velocity, {"flow": flow.detach(), "velocity": velocity.detach()}


def sync_loss(
    expert: SyncExpert,
    motion: Tensor,  # [B, N, 70]
    real_motion: Tensor,  # [B, N, 70]
    audio: Tensor,  # [B, N, L, A]
    frame_mask: Tensor,  # [B, N]
    has_audio: Tensor,  # [B]
    threshold: float = 0.4,
) -> tuple[Tensor, dict[str, Tensor]]:
    """How much worse the lips fit the audio than real lips do, where they fit nearly as well already.

    Source: MoDA Eq. 6 and 7 (ALSE): lambda_sync is 1 where L_ALSE < tau, else 0.
    # Not in the paper: L_ALSE itself (its supplement is not public). Here 1 - cos(lips, audio) / cos(real lips, audio),
    # the latter the mean of the batch: 0 is as good as real lips, whatever the scale of the expert's cosines. Each
    # sample has a lambda of its own, for with much noise the lips cannot be seen.

    Args:
        expert (`SyncExpert`): Of lips and audio features, frozen.
        motion (`torch.Tensor` of shape `(batch, frames, 70)`): Predicted clean motion, not normalised.
        real_motion (`torch.Tensor` of shape `(batch, frames, 70)`): Not normalised.
        audio (`torch.Tensor` of shape `(batch, frames, layers, channels)`): Audio features.
        frame_mask (`torch.Tensor` of shape `(batch, frames)`): True where there is motion.
        has_audio (`torch.Tensor` of shape `(batch,)`): True where the sample has its audio.
        threshold (`float`, defaults to 0.4): tau.

    Returns:
        `tuple`: scalar loss, and its parts `alse` (before the threshold) and `alse_share` (of samples below it).
    """
    windows = frame_mask.unfold(1, expert.config.window, 1).all(-1) & has_audio[:, None]  # [B, N - window + 1]
    sound = expert.encode_mel(as_columns(audio))
    with torch.no_grad():
        real = (expert.encode_motion(lips_of(real_motion)) * sound).sum(-1)
        real = (real * windows).sum() / windows.sum().clamp_min(1)
    cosine = (expert.encode_motion(lips_of(motion)) * sound).sum(-1)
    counts = windows.sum(1)
    cosine = (cosine * windows).sum(1) / counts.clamp_min(1)
    loss = 1.0 - cosine / real.clamp_min(0.05)
    some = counts > 0
    counted = some & (loss.detach() < threshold)
    number = some.sum().clamp_min(1)
    logs = {"alse": (loss.detach() * some).sum() / number, "alse_share": counted.sum() / number}
    return (loss * counted).sum() / number, logs


@torch.no_grad()
def fit_statistics(model: ModaMotionTransformer, dataset: Dataset, samples: int = 300) -> None:
    """Write mean and deviation of the motion into the model, and those of the audio features into its first layer.

    The first layer then begins as if the features were normalised, and the null feature as one of them.
    """
    chosen = [dataset[index] for index in range(samples)]
    motion = torch.cat([sample["motion"][sample["frame_mask"]] for sample in chosen])
    model.motion_mean.copy_(motion.mean(0))
    model.motion_std.copy_(motion.std(0))
    audio = torch.cat([sample["audio"][sample["frame_mask"]] for sample in chosen])  # [n, L, A]
    mean, std = audio.mean(0), audio.std(0).clamp_min(1e-2)
    layer = model.audio_embedder.proj1
    layer.weight.div_(std.flatten())
    layer.bias.sub_(layer.weight @ mean.flatten())
    model.null_audio.copy_(mean.mean(0) + std.mean(0) * torch.randn_like(model.null_audio))


class FlowLoss:
    """The player's loss: noise, conditions dropped as the samples say, prediction, Eq. 6."""

    def __init__(self, options: ModaMotionOptions, model: ModaMotionTransformer, expert: SyncExpert | None = None):
        self.options, self.model, self.expert = options, model, expert
        self.channel_weight = torch.ones(model.config.motion_dim)
        self.channel_weight[LIP_CHANNELS] = options.lips_weight

    def __call__(self, modules: dict[str, nn.Module], batch: dict, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch."""
        motion, audio, mask = self.model.normalize(batch["motion"]), batch["audio"], batch["frame_mask"]
        noise, device = torch.randn_like(motion), motion.device
        # Times as the sampler has them, 1 to 1000. Not in the paper: all are equally likely.
        timestep = torch.randint(1, 1001, (len(motion),), device=device).float()
        t = (timestep / 1000)[:, None, None]
        sample = (1 - t) * motion + t * noise  # z_t of Eq. 1
        if self.options.audio_noise:
            audio = audio + self.options.audio_noise * audio.std() * torch.randn_like(audio)
        velocity = modules[NAME](
            sample,
            timestep,
            audio=audio,
            emotion=batch["emotion"],
            keypoints=batch["keypoints"],
            previous_motion=self.model.normalize(batch["previous_motion"]),
            frame_mask=mask,
            drop={"audio": batch["drop_audio"], "emotion": batch["drop_emotion"]},
        ).sample
        weight = self.channel_weight.to(device)
        loss, logs = flow_loss(velocity, noise - motion, mask, weight, self.options.velocity_weight)
        if self.expert is not None:
            clean = self.model.denormalize(sample - t * velocity)
            has_audio = ~batch["drop_audio"]
            sync, sync_logs = sync_loss(
                self.expert, clean, batch["motion"], batch["audio"], mask, has_audio, self.options.sync_threshold
            )
            loss, logs = loss + sync, {**logs, **sync_logs}
        return loss, logs


def describe_sheet(model: ModaMotionTransformer, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Conditions and channels of `make_sample_sheet`."""
    conditions = {name: batch[name] for name in ("audio", "emotion", "keypoints")}
    conditions["previous_motion"] = model.normalize(batch["previous_motion"])
    return conditions, {"jaw (20 y)": 61, "lips (14 y)": 43, "eyelid (13 y)": 40, "pitch": 67, "yaw": 68, "roll": 69}


def make_model(options: ModaMotionOptions, dataset: Dataset) -> ModaMotionTransformer:
    """The generator to train, with the statistics of the data."""
    if options.initial:  # with the statistics that its weights are used to
        return ModaMotionTransformer.from_pretrained(resolve(options.initial), torch_dtype=torch.float32)
    audio = dataset[0]["audio"]
    model = ModaMotionTransformer(
        audio_layers=audio.shape[-2],
        audio_dim=audio.shape[-1],
        window=options.window,
        overlap=options.window // 5,  # 16 of 80
        fusion=options.fusion,
        dropout=options.dropout,
        mask_padding=True,
        rotary_conditions=options.rotary_conditions,
        **{**PRESETS[options.preset], **json.loads(options.model)},
    )
    fit_statistics(model, dataset)
    return model


def freeze_unread(model: ModaMotionTransformer) -> None:
    """Freeze what no output depends on: several processes could not agree on gradients that do not exist.

    With four streams to the end, nothing reads what the last block makes of the conditions.
    """
    if model.config.fusion == "four_stream":
        unread = ("audio_mlp", "attn1.au_proj", "attn1.au_q_norm")
        for name, parameter in model.blocks4[-1].named_parameters():
            parameter.requires_grad_(not name.startswith(unread))


def run(options: ModaMotionOptions) -> TrainingState:
    """Prepare the data, train, and save `motion_transformer/` and `scheduler/` with averaged weights in the output."""
    dataset = make_dataset(options)
    torch.manual_seed(options.seed)
    model = make_model(options, dataset)
    freeze_unread(model)
    others: dict[str, nn.Module] = {}
    if options.sync_expert:
        others["sync_expert"] = SyncExpert.from_pretrained(resolve(options.sync_expert), torch_dtype=torch.float32)
    loss = FlowLoss(options, model, others.get("sync_expert"))
    player = Player(NAME, (NAME,), loss, options.learning_rate, weight_decay=options.weight_decay)
    components = {NAME: model, "scheduler": FlowMatchEulerDiscreteScheduler()}
    return train_and_save(
        options,
        {NAME: model, **others},
        [player],
        dataset,
        (NAME,),
        lambda: components,
        options.pipeline,
        make_sample_sheet(dataset, NAME, FlowMatchEulerDiscreteScheduler(), {"audio": 0.2}, describe_sheet),
        pipeline_class="ModaTalkingHeadPipeline",
        pipeline_config={"timestep_spacing": options.timestep_spacing},
    )
