import base64
import os
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from vasa_hf.media import MARK_THRESHOLD, detect_mark, load_audio, read_provenance, read_video
from vasa_hf.motion import MotionSpec, load_motion
from vasa_hf.outputs import TalkingFaceOutput

ARRAY = np.linspace(0, 1, 5 * 128 * 128 * 3).reshape(5, 128, 128, 3).astype(np.float32)


@pytest.mark.parametrize(
    "frames",
    [
        ARRAY,
        torch.tensor(ARRAY).movedim(-1, 1),
        torch.tensor(ARRAY).movedim(-1, 1).bfloat16(),
        [Image.fromarray((frame * 255).astype(np.uint8)) for frame in ARRAY],
        [ARRAY],
        ARRAY[None],
    ],
)
def test_save_video_from_each_type(tmp_path, frames):
    audio = np.zeros(3200, np.float32)
    output = TalkingFaceOutput(
        frames=frames, audio=audio, sampling_rate=16000, fps=Fraction(30000, 1001), model_name="vasa-small"
    )
    output.save(tmp_path / "a.mp4")
    reader = read_video(tmp_path / "a.mp4")
    back = list(reader)
    assert reader.fps == output.fps and len(back) == 5 and reader.has_audio
    assert abs(back[4] / 255.0 - ARRAY[4]).mean() < 0.02
    assert read_provenance(tmp_path / "a.mp4")["model"] == "vasa-small" and detect_mark(back) > MARK_THRESHOLD
    output.save(tmp_path / "a.mp4", provenance=False)
    assert read_provenance(tmp_path / "a.mp4") is None and detect_mark(read_video(tmp_path / "a.mp4")) < MARK_THRESHOLD


def test_batch_needs_an_index(tmp_path):
    audios = [np.zeros(3200, np.float32), np.full(3200, 0.5, np.float32)]
    output = TalkingFaceOutput(frames=[ARRAY, ARRAY[:3]], audio=audios, sampling_rate=16000)
    with pytest.raises(ValueError, match="`index` must say which of 2 videos"):
        output.save(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"`index` must be a whole number in \[0, 1\], got 2"):
        output.save(tmp_path / "a.mp4", index=2)
    assert os.listdir(tmp_path) == []
    output.save(tmp_path / "a.mp4", index=1)
    assert len(list(read_video(tmp_path / "a.mp4"))) == 3
    assert abs(load_audio(tmp_path / "a.mp4")[0]).max() > 0.3


def test_a_notebook_shows_the_video_and_a_shell_one_line():
    frames, voice = np.zeros((5, 32, 32, 3), np.float32), np.zeros(3200, np.float32)
    out = TalkingFaceOutput(frames, voice, 16_000, motion=torch.zeros(1, 5, 8))
    assert repr(out) == ("TalkingFaceOutput([5] frames at 25 per second, audio at 16000 Hz, motion (1, 5, 8))")
    page = out._repr_html_()
    assert page.startswith("<video controls") and len(base64.b64decode(page.split("base64,")[1].split('"')[0])) > 500
    assert TalkingFaceOutput([frames, frames])._repr_html_().count("<video") == 2
    for empty in ([], torch.zeros(5, 8)):
        assert TalkingFaceOutput(empty, motion=torch.zeros(1, 5, 8))._repr_html_() is None


def test_save_motion(tmp_path):
    motion, spec = torch.randn(2, 5, 10), MotionSpec({"lips": 4})
    output = TalkingFaceOutput(frames=[ARRAY, ARRAY], motion=motion, motion_spec=spec)
    output.save(tmp_path / "a.safetensors", index=1)
    back, back_spec, fps, _ = load_motion(tmp_path / "a.safetensors")
    assert torch.equal(back, motion[1:]) and back_spec == spec and fps == 25
    with pytest.raises(ValueError, match="holds no `motion`"):
        TalkingFaceOutput(frames=ARRAY).save(tmp_path / "b.safetensors")


def test_unfit_outputs(tmp_path):
    for frames, name, message in [
        (ARRAY, "a.avi", "`path` must end in .mp4 or .webm or .gif or .safetensors"),
        (ARRAY[:0], "a.mp4", "`frames` must hold at least one frame"),
        ([], "a.mp4", "`index` must say which of 0 videos"),
        (ARRAY * np.nan, "a.mp4", "`frames` must be finite"),
        (ARRAY[..., :1], "a.mp4", "`frames` must be RGB images"),
    ]:
        with pytest.raises(ValueError, match=message):
            TalkingFaceOutput(frames=frames).save(tmp_path / name)
    assert os.listdir(tmp_path) == []
