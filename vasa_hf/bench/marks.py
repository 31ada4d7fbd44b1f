"""Robustness of the watermark: detection rate after common distortions, and false-alarm rate.

Each video is cut to a second, scaled to `SIZE` and written as the pipelines write theirs; then ffmpeg distorts
it as sites and people do, and `detect_mark` scores the result, as `vasa-hf inspect` would.
"""

from __future__ import annotations

import io
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vasa_hf.bench import runs
from vasa_hf.files import temporary_folder
from vasa_hf.media import MARK_THRESHOLD, VideoWriter, detect_mark, embed_mark, read_video
from vasa_hf.media.ffmpeg import FfmpegError, run_ffmpeg, shorten_stderr

SIZE, NUM_FRAMES, FPS = 256, 25, 25
NUM_UNMARKED_FRAMES = 8  # of each unmarked video
VIDEOS, IMAGES = (".mp4", ".mov", ".webm", ".mkv"), (".jpg", ".jpeg", ".png", ".webp")


def _h264(crf: int, *options: str) -> list[str]:
    return ["-c:v", "libx264", "-crf", str(crf), "-pix_fmt", "yuv420p", *options]


def _vp9(crf: int) -> list[str]:
    return ["-c:v", "libvpx-vp9", "-b:v", "0", "-crf", str(crf), "-cpu-used", "8", "-pix_fmt", "yuv420p"]


def _av1(crf: int) -> list[str]:
    return ["-c:v", "libsvtav1", "-preset", "12", "-crf", str(crf), "-svtav1-params", "lp=1", "-pix_fmt", "yuv420p"]


def _scale(factor: float) -> str:
    return f"scale=trunc(iw*{factor}/2)*2:trunc(ih*{factor}/2)*2:flags=bicubic"


_CROP = "crop=trunc(iw*0.9/2)*2:trunc(ih*0.9/2)*2:iw*0.04:ih*0.07"
# Name -> suffix, filters, options of the encoder.
DISTORTIONS: dict[str, tuple[str, str, list[str]]] = {
    **{f"H.264, crf {crf}": (".mp4", "null", _h264(crf)) for crf in (23, 28, 32, 35)},
    **{f"VP9, crf {crf}": (".webm", "null", _vp9(crf)) for crf in (23, 28, 32, 35)},
    **{f"AV1, crf {crf}": (".mp4", "null", _av1(crf)) for crf in (23, 28, 32, 35)},
    **{f"{factor} %, crf 23": (".mp4", _scale(factor / 100), _h264(23)) for factor in (50, 75, 150, 200)},
    **{f"50 %, crf {crf}": (".mp4", _scale(0.5), _h264(crf)) for crf in (28, 32)},
    **{f"cropped by 10 %, crf {crf}": (".mp4", _CROP, _h264(crf)) for crf in (23, 28, 32)},
    "cropped by 10 %, 75 %, crf 28": (".mp4", f"{_CROP},{_scale(0.75)}", _h264(28)),
    **{f"{fps} frames a second, crf 23": (".mp4", f"fps={fps}", _h264(23)) for fps in (15, 30)},
    "50 %, 15 frames a second, crf 28": (".mp4", f"{_scale(0.5)},fps=15", _h264(28)),
    "GIF, 12.5 frames a second": (".gif", "fps=12.5,split[a][b];[a]palettegen[p];[b][p]paletteuse", []),
    "messenger: 480 lines, baseline, crf 30": (
        ".mp4",
        "scale=-2:480",
        _h264(30, "-profile:v", "baseline", "-preset", "veryfast"),
    ),
    "brighter, more contrast, crf 28": (".mp4", "eq=brightness=0.06:contrast=1.15", _h264(28)),
    "mirrored, crf 23": (".mp4", "hflip", _h264(23)),
}
# Name -> scale of one frame, saved as JPEG of quality 70.
STILLS = {"one frame, JPEG 70": 1.0, "one frame, 50 %, JPEG 70": 0.5}


def measure(
    data: str | None = None,
    limit: int = 24,
    unmarked: int = 1000,
    model: str = "vasa-small",
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure detection and false alarms.

    Args:
        data (`str`, *optional*):
            Folder with unmarked videos and images, searched with its subfolders. Without it, the package's portrait
            is animated, and all else is synthetic.
        limit (`int`, defaults to 24): Videos to mark and distort, evenly from all.
        unmarked (`int`, defaults to 1000): Videos and images, evenly from all, to test without a mark.
        model (`str`, defaults to `"vasa-small"`): What animates the portrait.
        device (`str`, defaults to `"cpu"`): Where.
        threads (`int`, *optional*): CPU threads.

    Returns:
        `dict`: `detection` (distortion -> scores), `false_alarms`, `unmarked_videos`, `unmarked_images`,
        `highest_unmarked`, `psnr_db` (of each marked video), and milliseconds to embed and detect.

    Raises:
        ValueError: If `data` has no video.
    """
    videos, images = _find_files(data)
    clips = (list(_read(path, NUM_FRAMES)) for path in _spread(videos, limit))
    if data is None:
        clips = (_animate(model, device, threads) if i == 0 else _scene(i, NUM_FRAMES) for i in range(limit))
    detection: dict[str, list[float]] = {name: [] for name in ("as written, crf 18", *DISTORTIONS, *STILLS)}
    psnr = []
    with temporary_folder() as folder:
        for frames in clips:
            psnr.append(_psnr(frames))
            for name, score in _distort(frames, Path(folder)):
                detection[name].append(score)
            print(f"distorted video {len(psnr)}", file=sys.stderr)
    share = round(unmarked * len(videos) / max(len(videos) + len(images), 1))
    chosen = _spread(videos, share)
    num_videos = len(chosen)
    chosen += _spread(images, unmarked - share)
    tested: Iterator[Iterable[np.ndarray]] = (_read(path, NUM_UNMARKED_FRAMES) for path in chosen)
    if data is None:
        tested, num_videos = (_scene(limit + i, NUM_UNMARKED_FRAMES) for i in range(unmarked)), unmarked
    scores = [detect_mark(frames) for frames in tested]
    return {
        "detection": detection,
        "false_alarms": sum(score > MARK_THRESHOLD for score in scores),
        "unmarked_videos": num_videos,
        "unmarked_images": len(scores) - num_videos,
        "highest_unmarked": max(scores, default=0.0),
        "psnr_db": psnr,
        **{f"embed_ms_{side}": _embed_ms(side) for side in (256, 512)},
    }


def format_results(results: Sequence[dict[str, Any]]) -> str:
    """Return the results of `measure` as a table in Markdown."""
    result = results[0]
    lines = ["| after | found | lowest score | median score |", "| --- | --- | --- | --- |"]
    for name, scores in filter(lambda item: item[1], result["detection"].items()):
        found = sum(score > MARK_THRESHOLD for score in scores)
        share = f"{found} of {len(scores)} ({100 * found / len(scores):.0f} %)"
        lines.append(f"| {name} | {share} | {min(scores):.1f} | {np.median(scores):.1f} |")
    tested = result["unmarked_videos"] + result["unmarked_images"]
    lines += [
        "",
        f"False alarms: {result['false_alarms']} of {tested} ({result['unmarked_videos']} videos, "
        f"{result['unmarked_images']} images); highest score {result['highest_unmarked']:.1f}, "
        f"threshold {MARK_THRESHOLD:.1f}.",
        f"Marking a frame of 256 / 512 pixels: {result['embed_ms_256']:.1f} / {result['embed_ms_512']:.1f} ms.",
    ]
    if result["psnr_db"]:
        lines.append(f"Marked to unmarked frames: {min(result['psnr_db']):.1f} to {max(result['psnr_db']):.1f} dB.")
    return "\n".join(lines)


def _find_files(data: str | None) -> tuple[list[Path], list[Path]]:
    """Return videos and images."""
    if data is None:
        return [], []
    files = sorted(path for path in Path(data).rglob("*") if path.is_file())
    videos = [path for path in files if path.suffix.lower() in VIDEOS]
    if not videos:
        raise ValueError(f"`data` must be a folder with videos, found none in {data!r}.")
    return videos, [path for path in files if path.suffix.lower() in IMAGES]


def _spread(items: Sequence[Path], count: int) -> list[Path]:
    return [items[i * len(items) // count] for i in range(count)] if count < len(items) else list(items)


def _read(path: Path, count: int) -> Iterator[np.ndarray]:
    """Yield the first frames of a video, or a image, with the shorter side of `SIZE` pixels."""
    if path.suffix.lower() in IMAGES:
        with Image.open(path) as image:
            frames: Iterable[np.ndarray] = [np.asarray(image.convert("RGB"))]
    else:
        frames = itertools.islice(read_video(path), count)
    for frame in frames:
        height, width = frame.shape[:2]
        factor = SIZE / min(height, width)
        size = (round(width * factor / 2) * 2, round(height * factor / 2) * 2)
        yield np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def _animate(model: str, device: str, threads: int | None) -> list[np.ndarray]:
    """Return frames of the package's portrait, as they are before they are marked."""
    pipe, _ = runs.load_pipeline("VasaTalkingFacePipeline", model, device, threads)
    samples, rate = runs.load_voice()
    voice = (samples[: rate * NUM_FRAMES // FPS], rate)
    result = pipe(runs.PORTRAIT, voice, generator=runs.make_generator(), output_size=SIZE)
    return [np.asarray(frame) for frame in result.frames]


def _scene(seed: int, count: int) -> list[np.ndarray]:
    """Return frames of blurred colours with grain that move: flat and busy in turn, as seeds differ."""
    random = np.random.default_rng(seed)
    side, cells = SIZE + 2 * count, int(random.integers(4, 40))
    coarse = Image.fromarray(random.integers(0, 255, (cells, cells, 3), np.uint8)).resize((side, side), 3)
    image = np.clip(np.asarray(coarse) + random.normal(0, random.uniform(0, 6), (side, side, 1)), 0, 255)
    return [np.ascontiguousarray(image[i : i + SIZE, 2 * i : 2 * i + SIZE].astype(np.uint8)) for i in range(count)]


def _distort(frames: Sequence[np.ndarray], folder: Path) -> Iterator[tuple[str, float]]:
    """Mark, write and distort one video; yield the name of each distortion and the score after it."""
    source = folder / "marked.mp4"
    with VideoWriter(source, FPS, frames[0].shape[1::-1]) as writer:
        for frame in frames:
            writer.write(frame)
    written = list(read_video(source))
    yield "as written, crf 18", detect_mark(written)
    for name, (suffix, filters, options) in DISTORTIONS.items():
        target = folder / f"distorted{suffix}"
        done = run_ffmpeg(["-v", "error", "-y", "-i", str(source), "-an", "-vf", filters, *options, str(target)])
        if done.returncode != 0:
            raise FfmpegError(f"ffmpeg could not make {name!r}: {shorten_stderr(done.stderr)}")
        yield name, detect_mark(read_video(target))
    for name, factor in STILLS.items():
        image, file = Image.fromarray(written[len(written) // 2]), io.BytesIO()
        image.resize([round(side * factor) for side in image.size]).save(file, format="JPEG", quality=70)
        yield name, detect_mark(np.asarray(Image.open(file)))


def _psnr(frames: Sequence[np.ndarray]) -> float:
    error = np.mean([np.square(embed_mark(frame).astype(np.float32) - frame).mean() for frame in frames])
    return float(10 * np.log10(255**2 / error))


def _embed_ms(side: int) -> float:
    """Milliseconds that marking a frame takes; the fastest of ten."""
    frame, seconds = np.asarray(Image.fromarray(_scene(0, 1)[0]).resize((side, side))), []
    for _ in range(10):
        start = time.process_time()
        embed_mark(frame)
        seconds.append(time.process_time() - start)
    return 1000 * min(seconds)


if __name__ == "__main__":
    runs.print_measurement(measure)
