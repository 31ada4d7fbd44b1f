import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vasa_hf.media import MARK_THRESHOLD, VideoWriter, detect_mark, embed_mark, read_provenance, read_video
from vasa_hf.media import provenance as provenance_module

CLIPS = sorted((Path(__file__).parents[3] / "shared" / "data" / "eval" / "clips").glob("*.mp4"))


def scene(seed, size=256, count=12):
    """Frames of moving blurred shapes with grain, as unlike a flat test card as a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (9, 9, 3), np.uint8)).resize((size + 40, size + 40), 3)
    fine = random.normal(0, 3, (size + 40, size + 40, 1))
    image = np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)
    return [np.ascontiguousarray(image[i : i + size, 2 * i : 2 * i + size]) for i in range(count)]


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize(("size", "shown"), [(256, 256), (512, 512), (512, 256), ((640, 360), (640, 360))])
def test_mark_outlives_h264_and_is_invisible(tmp_path, size, shown):
    width, height = (size, size) if isinstance(size, int) else size
    frames = [np.asarray(Image.fromarray(frame).resize((width, height))) for frame in scene(0)]
    assert min(psnr(embed_mark(frame), frame) for frame in frames) >= 45
    scores = []
    for marked in (True, False):
        with VideoWriter(tmp_path / "a.mp4", 25, (width, height), provenance=marked, crf=23, preset="medium") as writer:
            for frame in frames:
                writer.write(frame)
        target = shown if isinstance(shown, tuple) else (shown, shown)
        back = [np.asarray(Image.fromarray(frame).resize(target)) for frame in read_video(tmp_path / "a.mp4")]
        scores += [detect_mark(back), detect_mark(back[0])]
    assert min(scores[:2]) > MARK_THRESHOLD + 2 and max(scores[2:]) < MARK_THRESHOLD - 2


def test_false_positives_follow_the_bound(monkeypatch):
    # 20 unmarked pictures against 1000 other keys each: scores must look like chance, whatever the picture is.
    random, scores = np.random.default_rng(0), []
    for seed in range(20):
        cells = provenance_module._residual(
            np.asarray(Image.fromarray(scene(seed, count=1)[0]).convert("L").convert("F").resize((64, 64), 4))
        )
        keys = random.choice([-1.0, 1.0], size=(1000, 64 * 64))
        scores.append(keys @ cells.reshape(-1) / np.linalg.norm(cells))
    scores = np.concatenate(scores)
    assert abs(scores.std() - 1) < 0.02 and np.mean(scores > 3) <= np.exp(-4.5) and scores.max() < MARK_THRESHOLD


def test_mark_is_fast():
    frame = scene(0)[0]
    embed_mark(frame)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        embed_mark(frame)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 3e-3


def test_mark_refuses_other_frames():
    with pytest.raises(ValueError, match="`frame` must be uint8"):
        embed_mark(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="`frames` must hold at least one frame"):
        detect_mark([])


@pytest.mark.skipif(not CLIPS, reason="needs the evaluation clips")
def test_mark_on_real_faces(tmp_path):
    for clip in CLIPS[::12]:
        frames = [frame for frame, _ in zip(read_video(clip), range(15), strict=False)]
        with VideoWriter(tmp_path / "a.mp4", 25, frames[0].shape[1::-1], crf=23, preset="medium") as writer:
            for frame in frames:
                writer.write(frame)
        assert detect_mark(frames) < MARK_THRESHOLD - 2
        assert detect_mark(read_video(tmp_path / "a.mp4")) > MARK_THRESHOLD + 2


def test_manifest(tmp_path):
    for provenance in (True, {"model": "vasa-small; a=b \\ #1 'é\n\""}, False):
        with VideoWriter(tmp_path / "a.mp4", 25, (64, 48), provenance=provenance) as writer:
            writer.write(np.full((48, 64, 3), 90, np.uint8))
        manifest = read_provenance(tmp_path / "a.mp4")
        if provenance is False:
            assert manifest is None
        else:
            assert manifest["tool"] == "vasa_hf" and manifest["synthetic"] is True and manifest["time"][:2] == "20"
            assert manifest["model"] == (provenance["model"] if isinstance(provenance, dict) else None)
            assert b"AI-generated (vasa_hf" in (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match="existing file"):
        read_provenance(tmp_path / "missing.mp4")
