"""VASA-3D's training data (§3.2): one portrait, moved by VASA-1 in many ways, as shards of frames and motion latents.

```
voices --motion transformer--.                          every shard: frames  uint8 [n, 3, H, W], or JPEG
videos --motion encoders-----+--> motions, a file each  ---decoder--->       motions float32 [n, M]
sweeps of pose, blinks ------'    (motion/*.safetensors)                     background int64 [n]
```
Motion comes first and is small. Frames are a random part of it, so that any first few shards show all of it, and each
shard appears whole or not at all: what was interrupted continues where it stood.

# Not in the paper: sweeps of the head's pose, which a calm voice does not bring; motion from the package's own voice
  where no audio and no video is given; the same person on several plain backgrounds, a frame on one of them in turn:
  rendered over the same colour, they teach opacity without mattes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from vasa_hf.data.clips import MotionPriors
from vasa_hf.gaussians.render import render
from vasa_hf.media.video import VideoReader
from vasa_hf.motion import POSE_DIM
from vasa_hf.motion.controls import rebase_motion
from vasa_hf.training.avatar.losses import cameras_around

FPS = 25
SHARD_FRAMES = 64
_VOICE = Path(__file__).resolve().parents[2] / "assets" / "voice.flac"
_INDEX, _COMPLETE = "index.json", "complete"
#: Half ranges of the sweeps: yaw, pitch, roll (rad), x, y (canonical units), logarithm of the scale.
SWEEP = (math.radians(16), math.radians(12), math.radians(10), 0.15, 0.15, 0.2)
#: Frames with the head turned further from the portrait's own yaw and pitch (rad) are not made: VASA-1 smears them.
MOST_TURN = (math.radians(18), math.radians(15))
#: How far aside the anchors look, in radians: from where VASA-1's frames end.
ANCHOR_AZIMUTH = (math.radians(14), math.radians(80))
#: How much the anchors keep what the portrait shows; the rest counts 1.
SHOWN_ANCHOR = 0.4


# --- motion -----------------------------------------------------------------------------------------------------------


def make_motions(
    talking_face: Any,
    portrait: Any,
    folder: str | os.PathLike,
    minutes: float,
    audios: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
    sweep_share: float = 0.2,
    num_inference_steps: int = 10,
    seed: int = 0,
    deadline: float | None = None,
    on_motion: Callable[[int, int], None] | None = None,
    rebase_videos: bool = True,
) -> list[Path]:
    """Write motion of one portrait, each source in a file of its own; files that are there are kept.

    Videos come once each, then voices in turn, each time with other controls and random numbers, until there is enough;
    in the first round none gets more than its share.

    Args:
        talking_face (`VasaTalkingFacePipeline`): Makes it.
        portrait (`Portrait`): The portrait that moves.
        folder (`str` or `os.PathLike`): Where to.
        minutes (`float`): How much, at 25 frames per second.
        audios (`Sequence`, *optional*): Driving voices; the package's own if there are no videos either.
        videos (`Sequence`, *optional*): Driving clips: files, or sequences of frames.
        sweep_share (`float`, *optional*, defaults to 0.2): Part that sweeps the head's pose.
        num_inference_steps (`int`, *optional*, defaults to 10): Denoising steps.
        seed (`int`, *optional*, defaults to 0): Seed.
        deadline (`float`, *optional*): `time.monotonic()` after which only the sweep follows, but for the first source.
        on_motion (`Callable`, *optional*): `on_motion(frames_done, frames_in_all)`.
        rebase_videos (`bool`, *optional*, defaults to True): See `AvatarPreset`.

    Returns:
        The files, each with `motions` `(frames, channels)`, float32, absolute.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _COMPLETE).is_file():
        return sorted(folder.glob("motion-*.safetensors"))
    audios = list(audios or []) or ([] if videos else [_VOICE])
    total = max(2, round(60 * FPS * minutes))
    driven = total - round(sweep_share * total)
    first_round = [
        functools.partial(_follow_video, talking_face, portrait, video, rebase_videos) for video in videos or []
    ]
    share = -(-driven // (len(first_round) + len(audios)))  # of a source in the first round
    jobs = itertools.chain(
        first_round,
        (
            functools.partial(_speak, talking_face, portrait, audio, number, seed, num_inference_steps)
            for number, audio in enumerate(itertools.cycle(audios))
        ),
    )
    done, files = 0, []
    for number, job in enumerate(jobs):
        most = min(driven - done, share) if number < len(first_round) + len(audios) else driven - done
        path = folder / f"motion-{number:05d}.safetensors"
        files.append(_kept(path, functools.partial(job, most)))
        done += _length(path)
        if on_motion is not None:
            on_motion(done, total)
        if done >= driven or (deadline is not None and time.monotonic() > deadline):
            break
    if total > driven:
        sweep = functools.partial(_sweep, talking_face, portrait, files, total - driven, seed)
        files.append(_kept(folder / "motion-sweep.safetensors", sweep))
    (folder / _COMPLETE).touch()
    return files


def _kept(path: Path, make: Callable[[], Tensor]) -> Path:
    """The file with `make()`, made now unless it is there."""
    if not path.is_file():
        _write(path, {"motions": make().float().cpu().contiguous()})
    return path


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial)
    os.replace(partial, path)


def _length(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return file.get_slice("motions").get_shape()[0]


def _speak(
    talking_face: Any, portrait: Any, audio: Any, number: int, seed: int, num_inference_steps: int, most: int
) -> Tensor:
    """Motion `(frames, channels)` for a voice, `most` frames at most; every `number` has its own controls."""
    rng = np.random.default_rng([seed, number])
    controls: dict[str, Any] = {"num_inference_steps": num_inference_steps}
    if number:  # the first is as users will have it
        emotions = talking_face.motion_transformer.config.emotions
        controls["gaze"] = tuple(rng.uniform([-0.35, -0.2], [0.35, 0.2]).tolist())
        controls["head_motion"] = float(rng.uniform(0.8, 2.0))
        controls["head_distance"] = float(rng.uniform(0.85, 1.2))
        controls["emotion"] = {str(rng.choice(emotions)): float(rng.uniform(0.2, 0.9))} if emotions else {}
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    parts, count = [], 0
    for part in talking_face.stream(portrait, audio, output_type="latent", generator=generator, **controls):
        parts.append(part.motion[0])
        count += len(parts[-1])
        if count >= most:
            break
    return torch.cat(parts)[:most]


def _follow_video(talking_face: Any, portrait: Any, video: Any, rebase: bool, most: int) -> Tensor:
    """Motion `(frames, channels)` of a driving clip: its own latents, or moved to begin at the portrait's own pose."""
    frames = VideoReader(video, FPS) if isinstance(video, str | os.PathLike) else video
    motion = talking_face.encode_video(itertools.islice(frames, max(most, 1)))
    return rebase_motion(motion, portrait.motion)[0] if rebase else motion[0]


def _sweep(talking_face: Any, portrait: Any, files: Sequence[Path], count: int, seed: int) -> Tensor:
    """Poses evenly over `SWEEP` about the upright head, with expressions of the other motions; every fourth blinks."""
    own = portrait.motion.cpu()
    # Additive recurrence in six dimensions (Roberts 2018), with the root of x^7 = x + 1.
    step = 1.1127756842787055 ** -torch.arange(1, POSE_DIM + 1, dtype=torch.float64)
    place = ((0.5 + torch.arange(count, dtype=torch.float64)[:, None] * step) % 1).float() * 2 - 1
    offset = place * torch.tensor(SWEEP)
    motions = own.repeat(count, 1)
    motions[:, :3] = offset[:, :3]
    motions[:, 3:5] += offset[:, 3:5] * own[:, 5:6]
    motions[:, 5:6] *= offset[:, 5:6].exp()
    rng = np.random.default_rng([seed, 1 << 20])
    sources = [load_file(file)["motions"] for file in files if _length(file)]
    for row in range(count) if sources else ():
        source = sources[rng.integers(len(sources))]
        motions[row, POSE_DIM:] = source[rng.integers(len(source)), POSE_DIM:]
    blink = motion_priors(talking_face).blink
    if blink is not None and len(blink) == motions.shape[1] - POSE_DIM:
        shut = torch.from_numpy(rng.uniform(0.3, 1.0, (len(motions[::4]), 1))).float()
        motions[::4, POSE_DIM:] = own[:, POSE_DIM:] + shut * torch.from_numpy(blink)
    return motions


def motion_priors(talking_face: Any) -> MotionPriors:
    """Known directions of z_dyn, which may lie next to a pipeline's face autoencoder."""
    name = talking_face.face_autoencoder.config.get("_name_or_path")
    path = Path(name or "").parent / "motion_priors.safetensors"
    return MotionPriors.load(path) if name and path.is_file() else MotionPriors()


# --- frames -----------------------------------------------------------------------------------------------------------


def render_frames(
    talking_face: Any,
    portraits: Sequence[Any],
    backgrounds: Tensor,  # [n, 3]
    motion_files: Sequence[Path],
    folder: str | os.PathLike,
    num_frames: int,
    seed: int = 0,
    jpeg_quality: int = 0,
    deadline: float | None = None,
    on_frames: Callable[[int, int], None] | None = None,
    limit_turn: bool = True,
) -> int:
    """Render a random part of the motions, shard by shard; continues after the last shard that is there.

    Args:
        talking_face (`VasaTalkingFacePipeline`): Its decoder makes the frames.
        portraits (`Sequence` of `Portrait`): One person on plain backgrounds; frames take them in turn.
        backgrounds (`torch.Tensor` of shape `(n, 3)`): RGB in [0, 1] of each.
        motion_files (`Sequence` of `Path`): From `make_motions`.
        folder (`str` or `os.PathLike`): Where to.
        num_frames (`int`): How many, at most.
        seed (`int`, *optional*, defaults to 0): Of the choice.
        jpeg_quality (`int`, *optional*, defaults to 0): Keep frames as JPEG, 1 to 100; 0 keeps them as they are.
        deadline (`float`, *optional*): `time.monotonic()` after which no further shard is begun, but for the first.
        on_frames (`Callable`, *optional*): `on_frames(frames_done, frames_in_all)`.
        limit_turn (`bool`, *optional*, defaults to True): Leave out motion that is turned further than `MOST_TURN`.

    Returns:
        `int`: Frames in the folder.

    Raises:
        ValueError: If portraits and backgrounds do not fit each other, or the shards there are of another choice.
    """
    if len(portraits) != len(backgrounds) or not len(portraits):
        raise ValueError(f"`backgrounds` must be one for each of {len(portraits)} portraits, got {len(backgrounds)}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = torch.cat([load_file(file)["motions"] for file in motion_files])
    turn = (made[:, :2] - portraits[0].motion[0, :2].cpu()).abs()
    usable = (turn <= torch.tensor(MOST_TURN)).all(1).numpy()
    order = np.random.default_rng([seed, 1 << 21]).permutation(len(made))
    order = order[usable[order]][:num_frames] if limit_turn and usable.any() else order[:num_frames]
    chosen = hashlib.sha256(order.tobytes()).hexdigest()
    about: dict[str, Any] = {"order": chosen, "backgrounds": backgrounds.tolist(), "shards": []}
    index_file = folder / _INDEX
    if index_file.is_file():
        found = json.loads(index_file.read_text())
        if any(found[name] != about[name] for name in ("order", "backgrounds")):
            raise ValueError(f"`folder` must be empty or hold frames of these motions, {str(folder)!r} holds others.")
        about = found
    first = sum(about["shards"])
    for start in range(first, len(order), SHARD_FRAMES):
        if deadline is not None and start and time.monotonic() > deadline:
            break
        rows = order[start : start + SHARD_FRAMES]
        motions = made[torch.from_numpy(rows)]
        background = torch.arange(start, start + len(rows)) % len(portraits)
        frames = _decode(talking_face, portraits, motions, background)
        shard = {"motions": motions, "background": background}
        shard |= _compress(frames, jpeg_quality) if jpeg_quality else {"frames": frames}
        _write(_shard(folder, len(about["shards"])), shard)
        about["shards"].append(len(rows))
        _write_text(index_file, json.dumps(about))
        if on_frames is not None:
            on_frames(start + len(rows), len(order))
    return sum(about["shards"])


def _shard(folder: Path, number: int) -> Path:
    return folder / f"frames-{number:05d}.safetensors"


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _decode(talking_face: Any, portraits: Sequence[Any], motions: Tensor, background: Tensor) -> Tensor:
    """Frames `(n, 3, H, W)` uint8, each of the portrait with its background."""
    frames = None
    for number, portrait in enumerate(portraits):
        rows = (background == number).nonzero()[:, 0]
        if not len(rows):
            continue
        made = torch.cat(list(talking_face.decode_frames(portrait, motions[rows])))
        if frames is None:
            frames = torch.empty(len(motions), *made.shape[1:], dtype=torch.uint8)
        frames[rows] = (made * 255).round().byte()
    return frames


def _compress(frames: Tensor, quality: int) -> dict[str, Tensor]:
    """JPEG files one after another, and where each begins."""
    files = []
    for frame in frames.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality, subsampling=0)
        files.append(file.getvalue())
    offsets = torch.tensor([0, *(len(file) for file in files)]).cumsum(0)
    return {"jpegs": torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8), "offsets": offsets}


def _frame(shard: dict[str, Tensor], row: int) -> Tensor:
    """One frame `(3, H, W)` uint8."""
    if "frames" in shard:
        return shard["frames"][row]
    start, stop = shard["offsets"][row : row + 2].tolist()
    with Image.open(io.BytesIO(shard["jpegs"][start:stop].numpy().tobytes())) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@torch.no_grad()
def render_anchors(start: Any, frames: AvatarFrames, path: str | os.PathLike, count: int = 48, seed: int = 0) -> None:
    """Write what the avatar looks like from the sides before it is fitted, where the portrait does not show it.

    Args:
        start (`AvatarStart`): The avatar, and which of its Gaussians the portrait shows.
        frames (`AvatarFrames`): Gives the motions and backgrounds.
        path (`str` or `os.PathLike`): The file: `picture` uint8 `(count, 3, H, W)`; `weight` uint8 `(count, 1, H, W)`,
            255 where the avatar must stay as it is; `motion`, `background`, `camera_from_world` `(count, 4, 4)`.
        count (`int`, *optional*, defaults to 48): How many images.
        seed (`int`, *optional*, defaults to 0): Of the choice.
    """
    avatar, generator = start.avatar, torch.Generator().manual_seed(seed)
    rows = torch.randint(len(frames), (count,), generator=generator).tolist()
    nearest, farthest = ANCHOR_AZIMUTH
    azimuth = nearest + (farthest - nearest) * torch.rand(count, generator=generator)
    azimuth[::2] *= -1
    elevation = math.radians(15) * (2 * torch.rand(count, generator=generator) - 1)
    hidden = torch.where(start.shown, SHOWN_ANCHOR, 1.0)[:, None].expand(-1, 3)
    size, parts = tuple(frames[0]["frame"].shape[-2:]), []
    for number, row in enumerate(rows):
        sample, view = frames[row], slice(number, number + 1)
        gaussians = avatar(sample["motion"][None].to(avatar.device)).gaussians
        camera = cameras_around(avatar, gaussians, azimuth[view] - sample["motion"][:1], elevation[view])
        picture = render(gaussians, camera, size, sample["background"]).color[0]
        shade = dataclasses.replace(gaussians, colors=hidden.to(picture)[None])
        weight = render(shade, camera, size, (1.0, 1.0, 1.0)).color[0, :1]
        pictures = ((value.clamp(0, 1) * 255).round().byte().cpu() for value in (picture, weight))
        parts.append((*pictures, sample["motion"], sample["background"], camera.camera_from_world[0].cpu()))
    names = ("picture", "weight", "motion", "background", "camera_from_world")
    _write(
        Path(path), {name: torch.stack(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}
    )


class AvatarFrames(Dataset):
    """Endless random order over the frames of a folder; `dataset[i]` is a pure function of the seed and `i`.

    Each round takes all frames once. Frames are shuffled within groups of shards, so that `max_shards` of them are held
    at a time when `i` rises.

    A sample has `frame` (3, H, W) in [0, 1], `motion` (M,) and `background` (3,).

    Args:
        folder (`str` or `os.PathLike`): Written by `render_frames`.
        seed (`int`, *optional*, defaults to 0): Of the order.
        max_shards (`int`, *optional*, defaults to 16): Shards in memory, of 64 frames: 12 MB each at 256 pixels.

    Raises:
        ValueError: If there are no frames.
    """

    def __init__(self, folder: str | os.PathLike, seed: int = 0, max_shards: int = 16):
        self.folder, self.seed, self.max_shards = Path(folder), seed, max_shards
        path = self.folder / _INDEX
        about = json.loads(path.read_text()) if path.is_file() else {"shards": []}
        if not about["shards"]:
            raise ValueError(f"`folder` must hold frames of `render_frames`, {str(folder)!r} does not.")
        self.sizes = np.array(about["shards"])
        self.starts = np.cumsum([0, *self.sizes])
        self.backgrounds = torch.tensor(about["backgrounds"])
        self._open: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._round: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __len__(self) -> int:
        """Frames in the folder; any index from 0 on may be asked for."""
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        frame = int(self._order(index // len(self))[index % len(self)])
        number = int(np.searchsorted(self.starts, frame, side="right") - 1)
        shard, row = self._shard(number), frame - int(self.starts[number])
        background = self.backgrounds[shard["background"][row]]
        return {"frame": _frame(shard, row).float() / 255, "motion": shard["motions"][row], "background": background}

    def _order(self, round_: int) -> np.ndarray:
        """All frames, in the order of a round."""
        if self._round[0] != round_:
            rng = np.random.default_rng([self.seed, round_])
            shards = rng.permutation(len(self.sizes))
            groups = [shards[i : i + self.max_shards] for i in range(0, len(shards), self.max_shards)]
            frames = [np.concatenate([np.arange(*self.starts[s : s + 2]) for s in group]) for group in groups]
            self._round = (round_, np.concatenate([rng.permutation(group) for group in frames]))
        return self._round[1]

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._open:
            while len(self._open) >= self.max_shards:
                self._open.popitem(last=False)
            self._open[number] = load_file(_shard(self.folder, number))
        self._open.move_to_end(number)
        return self._open[number]
