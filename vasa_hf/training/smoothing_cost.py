"""What smoothing of real motion takes away, and how much of it was label noise.

    python -m vasa_hf.training.smoothing_cost --data DIR [DIR ...] --dynamics vasa-small/landmark_dynamics.safetensors

White noise of deviation s has third differences of variance 20 s² whose neighbours correlate by -0.75, while those of
smooth motion are small and correlate positively: near -0.75, the median of the third differences measures the noise.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch

from vasa_hf.data.clips import SMOOTHING, data_folders, motion_from_labels, smooth_in_time
from vasa_hf.data.landmark_dynamics import PARTS, FaceLabels
from vasa_hf.geometry.rotations import matrix_from_euler
from vasa_hf.hub import resolve
from vasa_hf.metrics.motion import angle_between
from vasa_hf.motion import MotionSpec

SIGMAS = (0.0, 0.5, 0.7, 1.0, 1.5, 2.0)


def measure_noise(clips: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Deviation of white noise in each channel, and how third differences of neighbouring frames correlate.

    Args:
        clips (`list` of `numpy.ndarray` of shape `(frames, channels)`): Motion of single clips.
    """
    third = [np.diff(clip, 3, axis=0) for clip in clips if len(clip) > 4]
    before, after = (np.concatenate([clip[span] for clip in third]) for span in (slice(-1), slice(1, None)))
    noise = np.median(np.abs(np.concatenate(third)), 0) / 0.6745 / 20**0.5
    return noise, float((before * after).mean() / (np.concatenate(third) ** 2).mean())


def measure_motion(clips: list[np.ndarray]) -> tuple[float, float]:
    """Deviation within clips, and root mean square of the differences of neighbouring frames, over all channels."""
    frames = sum(map(len, clips))
    amplitude = sum(clip.var(0).mean() * len(clip) for clip in clips) / frames
    return amplitude**0.5, float(np.concatenate([np.diff(clip, axis=0) for clip in clips]).std())


def pose_variation_of(angles: list[np.ndarray]) -> float:
    """ΔP as `metrics.motion.pose_variation`, over clips of yaw, pitch and roll in radians; degrees per frame."""
    rotations = [matrix_from_euler(*torch.from_numpy(clip).unbind(-1)) for clip in angles]
    return float(torch.cat([angle_between(rotation[:-1], rotation[1:]) for rotation in rotations]).mean())


def study(motion: np.ndarray, offsets: np.ndarray) -> Iterator[str]:
    """Lines of a table in Markdown.

    Args:
        motion (`numpy.ndarray` of shape `(frames, 34)`): As `motion_from_labels` gives it.
        offsets (`numpy.ndarray`): First frame of each clip, and the end.
    """
    yield "| part | noise | third differences | chosen | " + " | ".join(f"{sigma:g}" for sigma in SIGMAS) + " |"
    yield "|---" * (4 + len(SIGMAS)) + "|"
    for part, channels in MotionSpec(dict(PARTS)).slices.items():
        raw = [motion[start:stop, channels] for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]
        if part == "scale":
            raw = [np.log(clip) for clip in raw]
        noise, correlation = measure_noise(raw)
        cells, first = [], measure_motion(raw)
        for sigma in SIGMAS:
            smooth = [smooth_in_time(clip, sigma) for clip in raw]
            shares = [value / whole for value, whole in zip(measure_motion(smooth), first, strict=True)]
            angle = f"ΔP {pose_variation_of(smooth):.2f}, " if part == "rotation" else ""
            cells.append(f"{angle}{shares[0]:.2f} / {shares[1]:.2f}")
        yield f"| {part} | {noise.mean():.4f} | {correlation:.2f} | {SMOOTHING[part]} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table for labelled clips."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="folders with clips.npz")
    parser.add_argument("--dynamics", default="vasa-small/landmark_dynamics.safetensors", help="meaning of z_dyn")
    options = parser.parse_args()
    for folder in data_folders(options.data):
        labels = FaceLabels.load(folder / "clips.npz")
        motion, _ = motion_from_labels(folder, dynamics=resolve(options.dynamics))
        print(f"\n{folder.name}: {len(labels.names)} clips, {len(motion)} frames\n")
        print("\n".join(study(motion, labels.offsets)))


if __name__ == "__main__":
    main()
