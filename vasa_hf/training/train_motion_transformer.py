"""Train VASA-1's motion generator (§3.2, Eq. 1).

    accelerate launch -m vasa_hf.training.train_motion_transformer --pipeline FOLDER --data DIR [DIR ...] --output DIR

`DIR/clips/*.mp4` are square face crops with sound at 25 frames a second; `DIR/identities.csv` (clip,identity) says
which clips show one person, if given; the order of the clips is that of `names` in `DIR/clips.npz`, else alphabetical.
People of different folders are different people. The conditions g, d and e are read from `gaze`, `head_distance` and
`expression` in `DIR/clips.npz`, as `vasa-hf prepare` writes them. Motion and audio features are computed once by the
pipeline's face autoencoder and audio encoder and kept in the output folder. `--talkers FILE` adds talkers made by
`vasa_hf.data.synthetic.talkers`: clips of 4 to 12 seconds in which heads follow the voice, which short clips cannot
show.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import DDIMScheduler
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vasa_hf.data.clips import (
    MotionData,
    MotionPriors,
    data_folders,
    encode_audio,
    motion_from_labels,
    silent_recordings,
)
from vasa_hf.data.face_pairs import people_of_clips
from vasa_hf.data.filters import speaking
from vasa_hf.data.motion_sequences import MotionSequences
from vasa_hf.hub import resolve
from vasa_hf.models.motion_transformer_vasa1 import CONDITIONS, EMOTIONS, Vasa1MotionTransformer
from vasa_hf.motion import MotionSpec
from vasa_hf.motion.guidance import guided_prediction
from vasa_hf.training.loop import LoopOptions, TrainingState, option, parse_options
from vasa_hf.training.saving import published_dtype, save_pipeline, train_and_save

# The paper's size is the model's default; the small one is for CPUs.
PRESETS = {"paper": {}, "small": {"hidden_size": 192, "num_layers": 6, "num_heads": 6}}


@dataclass
class MotionTransformerOptions(LoopOptions):
    """Options of this stage; those of the loop are in `LoopOptions`."""

    pipeline: str = option(
        "", "pipeline that computes motion and features, such as vasa-small; OUTPUT/pipeline gets the new weights"
    )
    data: list[str] = option([], "one or several folders with clips/*.mp4")
    moving_crops: list[str] = option([], "those of --data whose square follows the head: translation is not learnt")
    prepared: str | None = option(None, "motion_data.safetensors of an earlier run, instead of --pipeline and --data")
    motion_cache: str | None = option(None, "motion of all frames of all folders (.npy), not by the face autoencoder")
    audio_cache: str | None = option(None, "audio features of all frames of all folders (.npy), computed before")
    labels: bool = option(False, "motion and priors from the landmark labels in --data, not by the face autoencoder")
    landmark_dynamics: str | None = option(None, "file that defines z_dyn, such as vasa-small's; goes with --labels")
    head: str | None = option(None, "ict_facekit.npz, for the emotion directions that go with --labels")
    priors: str | None = option(None, "known directions in z_dyn, such as vasa-small/motion_priors.safetensors")
    talkers: list[str] = option([], "files of vasa_hf.data.synthetic.talkers to learn from beside the clips")
    talker_share: float | None = option(None, "share of the windows drawn from talkers (default: by their length)")
    initial: str | None = option(None, "folder of a motion transformer to go on from, instead of random weights")
    preset: str = option("paper", "paper or small")
    dynamics: list[str] = option([], "parts of z_dyn as name=width, in order; one part if left out")
    window: int = option(50, "frames W of a window")
    context: int = option(10, "frames K carried over")
    dropout: float = option(0.05, "dropout of the transformer")
    learning_rate: float = option(3e-4, "peak learning rate")
    weight_decay: float = option(0.01, "weight decay of matrices")
    velocity_weight: float = option(1.0, "weight of the loss on differences of neighbouring frames; 0 as in the paper")
    lips_weight: float = option(1.5, "weight of the lips' channels; 1 as in the paper")
    audio_noise: float = option(0.1, "deviation of noise on the audio features, in deviations of the features")
    previous_noise: float = option(0.03, "noise on X_pre, in deviations: forgives earlier errors; 0 as in the paper")
    smoothing: float = option(1.0, "how much of data.clips.SMOOTHING is applied to real motion; 0 as in the paper")
    natural: float = option(0.35, "share of windows of short clips that are not joined to others; 1 as in the paper")
    silent: float = option(0.16, "share of windows in which nobody speaks; 0 for what the clips hold, as in the paper")
    add_idle_motion: bool = option(False, "add head motion, saccades and blinks to the real motion of short clips")
    add_blinks: bool = option(False, "add blinks to real motion where it has none near: few steps draw too few")
    idle_blinks: float = option(3.5, "excess of blinks in composed pauses: few sampling steps draw too little of them")
    shift_conditions: bool = option(True, "shift gaze, distance and emotion by known amounts; not in the paper")
    save_dtype: str = option("float32", "type of the published weights: float32 or float16")


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


@torch.no_grad()
def sample_motion(
    model: Vasa1MotionTransformer,
    conditions: dict[str, Tensor | None],
    frame_mask: Tensor | None = None,
    guidance_scale: dict[str, float] | None = None,
    num_inference_steps: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw relative motion for one window, `(batch, window, motion_dim)`; `conditions` as of the model's `forward`."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(num_inference_steps, device=model.device)
    batch = next(value.shape[0] for value in conditions.values() if value is not None)
    shape = (batch, model.config.window, model.config.motion_dim)
    sample = torch.randn(shape, generator=generator, device=model.device)
    for timestep in scheduler.timesteps:
        clean = guided_prediction(
            lambda x, **kwargs: model(x, **kwargs).sample,
            sample,
            conditions,
            guidance_scale or {},
            timestep=timestep,
            frame_mask=frame_mask,
        )
        sample = scheduler.step(clean, timestep, sample).prev_sample
    return model.denormalize(sample)


def prepare_motion_data(options: MotionTransformerOptions) -> MotionData:
    """Motion and audio features of all clips, from the prepared file, the caches or the pipeline's models."""
    if options.prepared:
        return MotionData.load(options.prepared)
    kept = Path(options.output) / "motion_data.safetensors"
    if kept.exists():
        return MotionData.load(kept)
    if not options.data or not options.pipeline:
        raise ValueError("`data` and `pipeline` must be given unless `prepared` is.")
    folders, motion, audio = data_folders(options.data), None, None
    moving = data_folders(options.moving_crops)
    if not set(moving) <= set(folders):
        raise ValueError(f"`moving_crops` must be among `data`, got {options.moving_crops}.")
    if options.labels:
        dynamics = resolve(options.landmark_dynamics) if options.landmark_dynamics else None
        motion, priors = motion_from_labels(folders, options.head, dynamics)
        kept.parent.mkdir(parents=True, exist_ok=True)
        priors.save(kept.with_name("priors.safetensors"))
    elif options.motion_cache:
        motion = np.load(options.motion_cache).astype(np.float32)
    if options.audio_cache:
        audio = np.load(options.audio_cache).astype(np.float16)
    encode = _Encoder(options, motion is None)
    parts, first = [], 0
    for folder in folders:
        # Each takes its frames from the caches, which begin with what is left.
        rest = [None if values is None else values[first:] for values in (motion, audio)]
        parts.append(encode(folder, *rest, translates=folder not in moving))
        first += len(parts[-1].motion)
    for name, values in (("motion_cache", motion), ("audio_cache", audio)):
        if values is not None and len(values) != first:
            raise ValueError(f"`{name}` must have the {first} frames of all clips, got {len(values)}.")
    data = parts[0].joined(parts[1:])
    kept.parent.mkdir(parents=True, exist_ok=True)
    data.save(kept)
    return data


class _Encoder:
    """Makes `MotionData` of a folder of clips by the pipeline's networks, or by what is computed already."""

    def __init__(self, options: MotionTransformerOptions, reads_motion: bool):
        from transformers import Wav2Vec2Model

        from vasa_hf.models.face_autoencoder_vasa1 import Vasa1FaceAutoencoder
        from vasa_hf.processors.audio import VasaAudioProcessor

        pipeline, self.window, self.autoencoder = resolve(options.pipeline), options.window, None
        device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
        self.processor = VasaAudioProcessor.from_pretrained(pipeline, subfolder="audio_processor")
        self.encoder = Wav2Vec2Model.from_pretrained(pipeline, subfolder="audio_encoder").to(device).eval()
        if reads_motion:
            autoencoder = Vasa1FaceAutoencoder.from_pretrained(pipeline, subfolder="face_autoencoder")
            self.autoencoder = autoencoder.to(device).eval()
        silence = [self.encode_audio(samples, 75) for samples in silent_recordings(24, 75)]
        self.silence = np.stack(silence)

    def encode_audio(self, samples: np.ndarray, frames: int) -> np.ndarray:
        return encode_audio(self.processor, self.encoder, samples, frames, self.window)

    def __call__(
        self, folder: Path, motion: np.ndarray | None, audio: np.ndarray | None, translates: bool
    ) -> MotionData:
        """Data of a folder; motion and audio features that are given begin with its own frames."""
        from vasa_hf.media.video import VideoReader

        names, counts, labels = _clip_names(folder)
        if counts is None and motion is not None:
            raise ValueError(
                "`motion_cache` needs `data` with a clips.npz, whose `offsets` say where each clip begins."
            )
        motions, audios, quiet, offsets, speaks = [], [], [], [0], []
        for i, name in enumerate(names):
            reader = VideoReader(folder / "clips" / f"{name}.mp4", fps=self.processor.fps)
            if motion is None:
                motions.append(_encode_frames(self.autoencoder, reader)[: None if counts is None else counts[i]])
            frames = len(motions[-1]) if motion is None else int(counts[i])
            length = frames * self.processor.samples_per_frame
            samples = self.processor.load(reader.path) if reader.has_audio else np.zeros(0, np.float32)
            samples = np.pad(samples, (0, length))[:length]
            # A clip that is quiet throughout shows a face without its sound.
            speaks.append(bool(np.sqrt((samples**2).mean()) > 3e-3))
            quiet.append(~speaking(torch.from_numpy(samples), frames).numpy())
            if audio is None:
                audios.append(self.encode_audio(samples, frames))
            offsets.append(offsets[-1] + frames)
        if labels:  # a clip may hold a frame less than its labels
            starts = np.cumsum([0, *counts])
            rows = np.concatenate([start + np.arange(n) for start, n in zip(starts, np.diff(offsets), strict=False)])
            labels = {name: values[rows] for name, values in labels.items()}
        return MotionData(
            motion=np.concatenate(motions) if motion is None else motion[: offsets[-1]],
            audio=np.concatenate(audios) if audio is None else audio[: offsets[-1]],
            offsets=np.array(offsets),
            person=np.unique(people_of_clips(folder, names), return_inverse=True)[1],
            speaks=np.array(speaks),
            silence=self.silence,
            quiet=np.concatenate(quiet),
            translates=np.full(len(names), translates),
            **labels,
        )


def _clip_names(folder: Path) -> tuple[list[str], np.ndarray | None, dict[str, np.ndarray]]:
    """Names of the clips, frames of each, and the arrays that g, d and e are made of; the latter two if known."""
    if (folder / "clips.npz").exists():
        with np.load(folder / "clips.npz") as labels:
            conditions = {name: labels[name] for name in ("gaze", "head_distance", "expression") if name in labels}
            return [str(name) for name in labels["names"]], np.diff(labels["offsets"]), conditions
    names = sorted(path.stem for path in (folder / "clips").glob("*.mp4"))
    if not names:
        raise ValueError(f"`data` must hold clips/*.mp4, but {str(folder)!r} has none.")
    return names, None, {}


@torch.no_grad()
def _encode_frames(autoencoder: nn.Module, frames) -> np.ndarray:
    """Motion of every frame, 32 at a time, [T, M]."""
    size, motions, batch = autoencoder.config.image_size, [], []

    def flush() -> None:
        images = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float().to(autoencoder.device) / 127.5 - 1.0
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        motions.append(autoencoder.encode_motion(images).float().cpu().numpy())
        batch.clear()

    for frame in frames:
        batch.append(frame)
        if len(batch) == 32:
            flush()
    if batch:
        flush()
    return np.concatenate(motions)


def draw_curves(curves: dict[str, list[np.ndarray]], size: tuple[int, int] = (420, 110)) -> Image.Image:
    """Sheet of small line plots, one row a name: real motion in grey, then generated motion in colours."""
    colours = [(150, 150, 150), (200, 40, 40), (40, 90, 200), (30, 140, 60)]
    width, height = size
    sheet = Image.new("RGB", (width, height * len(curves)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, lines) in enumerate(curves.items()):
        low, high = min(line.min() for line in lines), max(line.max() for line in lines)
        for line, colour in zip(lines, colours, strict=False):
            x = np.linspace(4, width - 4, len(line))
            y = height * (row + 1) - 6 - (line - low) / (high - low + 1e-6) * (height - 24)
            draw.line([*zip(x.tolist(), y.tolist(), strict=True)], fill=colour, width=1)
        draw.text((4, row * height + 2), f"{name}  [{low:.2f}, {high:.2f}]", fill="black")
    return sheet


def make_sample_sheet(dataset: MotionSequences):
    """Callback for the loop: curves of four samples, real and drawn with two seeds."""
    samples = [dataset[10**9 + i] for i in range(4)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def on_sample(modules: dict[str, nn.Module], step: int, folder: Path) -> None:
        model = modules["motion_transformer"]
        names = ("audio", "gaze", "head_distance", "emotion")
        conditions = {name: batch[name].to(model.device) for name in names}
        mask = batch["frame_mask"].to(model.device)
        draws = []
        for seed in (0, 1):
            generator = torch.Generator(model.device).manual_seed(seed)
            draws.append(sample_motion(model, conditions, mask, {"audio": 0.5}, generator=generator).cpu().numpy())
        channels = {name: part.start for name, part in model.motion_spec.slices.items() if name != "rotation"}
        channels = {"yaw": 0, "pitch": 1, "roll": 2, **channels}
        sheets = []
        for i in range(len(samples)):
            valid = batch["frame_mask"][i].numpy()
            lines = [batch["motion"][i].numpy(), *(draw[i] for draw in draws)]
            sheets.append(draw_curves({n: [line[valid, c] for line in lines] for n, c in channels.items()}))
        picture = Image.new("RGB", (sum(sheet.width for sheet in sheets), sheets[0].height))
        for i, sheet in enumerate(sheets):
            picture.paste(sheet, (i * sheet.width, 0))
        picture.save(folder / f"samples-{step:08d}.png")

    return on_sample


def run(options: MotionTransformerOptions) -> TrainingState:
    """Prepare the data, train, and save `motion_transformer/` and `scheduler/` with averaged weights in the output."""
    if options.preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {list(PRESETS)}, got {options.preset!r}.")
    published_dtype(options.save_dtype)
    process = PartialState(cpu=options.cpu)
    with process.main_process_first():
        data = prepare_motion_data(options)
    num_clips = len(data.person)
    data = data.joined([MotionData.load(path) for path in options.talkers])
    spec = MotionSpec({"dynamics": data.motion.shape[-1] - 6})
    if options.dynamics:
        spec = MotionSpec({name: int(width) for name, width in (part.split("=") for part in options.dynamics)})
    if spec.dim != data.motion.shape[-1]:
        raise ValueError(f"`dynamics` must have {data.motion.shape[-1] - 6} channels in all, got {spec.dynamics}.")
    priors_file = options.priors or Path(options.output) / "priors.safetensors"  # the latter is written by --labels
    priors = MotionPriors.load(resolve(priors_file)) if options.priors or options.labels else MotionPriors()
    dataset = MotionSequences(
        data,
        spec,
        priors,
        options.window,
        options.context,
        len(EMOTIONS),
        options.seed,
        exact=np.arange(len(data.person)) >= num_clips,  # talkers
        exact_share=options.talker_share,
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
    if options.initial:  # with the statistics that its weights are used to
        model = Vasa1MotionTransformer.from_pretrained(resolve(options.initial), torch_dtype=torch.float32)
    else:
        model = Vasa1MotionTransformer(
            motion_dim=spec.dim,
            audio_dim=data.audio.shape[-1],
            window=options.window,
            context=options.context,
            dropout=options.dropout,
            dynamics=spec.dynamics,
            **PRESETS[options.preset],
        )
        fit_statistics(model, dataset)
    name, loss = "motion_transformer", MotionLoss(options, model)
    state = train_and_save(options, name, model, loss, dataset, make_sample_sheet(dataset))
    if not process.is_main_process:
        return state
    make_scheduler().save_pretrained(Path(options.output) / "scheduler")
    if options.pipeline:
        parts = {name: model, "scheduler": make_scheduler()}
        folder = Path(options.output) / "pipeline"
        save_pipeline(options.pipeline, folder, **parts)
        if options.priors or options.labels:
            priors.save(folder / "motion_priors.safetensors")  # what this training means by a gaze and an emotion
    return state


if __name__ == "__main__":
    run(parse_options(MotionTransformerOptions, description=__doc__))
