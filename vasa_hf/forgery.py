"""Judge a video file with the forgery detector: find the face, cut windows, judge them (VASA-1 appendix A)."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from vasa_hf.geometry.crops import cut_crop
from vasa_hf.media.video import VideoReader
from vasa_hf.models.face_analyzer import FaceAnalyzer
from vasa_hf.models.forgery_detector import ForgeryDetector
from vasa_hf.processors.image import FaceImageProcessor

FPS = 25
WINDOWS = 8


@dataclass(frozen=True)
class ForgeryVerdict:
    """What the detector says of a video.

    Args:
        probability (`float`): That the face is synthetic, as calibrated on people and videos that were held out. It
            is an estimate of a small network, and proves nothing.
        windows (`int`): How many windows were judged.
    """

    probability: float
    windows: int


@torch.no_grad()
def judge_video(
    path: str | os.PathLike,
    detector: ForgeryDetector,
    analyzer: FaceAnalyzer,
    processor: FaceImageProcessor,
    max_windows: int = WINDOWS,
) -> ForgeryVerdict | None:
    """Judge the largest face of a video.

    Args:
        path (`str` or `os.PathLike`): The video; it is read at 25 frames a second.
        detector (`ForgeryDetector`): Judges.
        analyzer (`FaceAnalyzer`): Finds the face at the start of each window; its square stays for the window.
        processor (`FaceImageProcessor`): Knows the square that belongs to a face.
        max_windows (`int`, *optional*, defaults to 8): Windows spread over the video, at most.

    Returns:
        `ForgeryVerdict`, or `None` if the video is shorter than a window or no window begins with a face.

    Raises:
        ValueError: If the file cannot be read.
    """
    reader, length = VideoReader(path, FPS), detector.config.frames
    last = max(0, (reader.num_frames or 10**9) - length)
    step = max(length, last // max(1, max_windows - 1))
    windows: list[torch.Tensor] = []
    square: torch.Tensor | None = None
    crops: list[torch.Tensor] = []
    for index, frame in enumerate(reader):
        place = index % step
        if len(windows) == max_windows:
            break
        if place >= length:
            continue
        image = processor.load(frame)
        if place == 0:
            crops = []
            faces = analyzer.detect(image)
            square = processor.find_square(tuple(image.shape[-2:]), faces[0]) if faces else None
        if square is None:
            continue
        crops.append(cut_crop(image, square.float(), 2 * detector.config.image_size))
        if len(crops) == length:
            windows.append(torch.stack(crops))
    if not windows:
        return None
    return ForgeryVerdict(detector.judge(torch.stack(windows)), len(windows))
