"""Bad input is rejected by the name of its argument, before any heavy work."""

import logging
import math

import numpy as np
import pytest
import torch

from tests.testing_utils.pipelines import (
    BOX,
    call,
    generator,
    make_audio,
    make_image,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "nowhere.png"}, "`image` must be an existing image file, got 'nowhere.png'"),
        (
            {"image": 3},
            "`image` must be a file, a PIL image, an array, a tensor, or a list of them .or of Portrait., got int",
        ),
        ({"image": []}, "`image` must be at least one image"),
        ({"image": np.zeros((96, 96, 7), np.uint8)}, "`image` must be of shape .*7"),
        ({"image": np.full((96, 96, 3), np.nan, np.float32)}, "`image` must hold finite numbers"),
        ({"image": np.zeros((8, 8, 3), np.uint8)}, "`image` must be at least 64 pixels"),
        ({"image": np.full((96, 96, 3), 128, np.uint8), "box": None}, "`image` must show a face, but none was found"),
        ({"audio": "nowhere.wav"}, "`audio` must be an existing audio or video file, got 'nowhere.wav'"),
        ({"audio": 3}, "`audio` must be a file, samples, .samples, rate., or a list of them, got int"),
        ({"audio": []}, "`audio` must be at least one audio"),
        ({"audio": np.zeros(0, np.float32)}, "`audio` must hold at least one sample"),
        ({"audio": make_audio(0.1)}, "`audio` must be at least 0.2 s long; got 0.100 s"),
        ({"audio": np.full(8000, np.nan, np.float32)}, "`audio` must be finite; got 8000 NaN"),
        ({"audio": (make_audio(0.5), 4000)}, "`sampling_rate` must lie in .8000, 96000."),
        ({"audio": np.array(["a", "b"])}, "`audio` must hold real numbers"),
        ({"sampling_rate": 1}, "`sampling_rate` must be a whole number in .8,000, 96,000., got 1"),
        ({"image": [make_image()] * 2, "audio": [make_audio(0.5)] * 3}, "equally many.*got 2 and 3"),
        ({"gaze": 0.3}, "`gaze` must be .yaw, pitch. in radians, or keyframes"),
        ({"gaze": (2.0, 0.0)}, "`gaze` must lie in .-0.8, 0.8. radians .46 degrees., got .2.0, 0.0."),
        ({"gaze": [(1.0, (0.1, 0)), (0.5, (0, 0))]}, "`gaze` must have keyframes at rising times"),
        ({"head_distance": 0}, "`head_distance` must lie in .0.5, 2.0."),
        ({"head_distance": "near"}, "`head_distance` must be a number, or keyframes"),
        ({"emotion": {"hungry": 1.0}}, "`emotion` knows the names .*'happy'.*got 'hungry'"),
        ({"emotion": {"happy": 2}}, "`emotion` must have weights in .-1, 1., got 2 for 'happy'"),
        ({"emotion": "gleeful"}, "`emotion` knows the names .*'happy'.*got 'gleeful'"),
        ({"emotion": 3}, "`emotion` must be a name or a dict of weights, or keyframes"),
        ({"camera": "orbit"}, "`camera` is no option here: VasaTalkingFacePipeline knows .'gaze', 'head_distance'"),
        ({"guidance_scale": {"light": 1.0}}, "`guidance_scale` knows the names .*got 'light'"),
        ({"guidance_scale": {"audio": -1.0}}, "`guidance_scale` expects finite numbers >= 0"),
        ({"guidance_scale": 2.0}, "`guidance_scale` must be a dict with a scale for each condition, got 2.0"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole number in .1, 1,000., got 0"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` must be a whole number"),
        ({"head_motion": -1}, "`head_motion` must be a number in .0.0, 3.0., got -1"),
        ({"fps": "fast"}, "`fps` must be a number of frames a second in .1, 1000., got 'fast'"),
        ({"fps": 0}, "`fps` must be"),
        ({"generator": 3}, "`generator` must be a torch.Generator or a list of them, got int"),
        ({"generator": [torch.Generator()] * 2}, "`generator` must be one, or one for each of 1 videos, got 2"),
        ({"face": -1}, "`face` must be a whole number"),
        ({"face": 1}, "`face` must be None where `box` is given, got 1"),
        ({"latents": torch.full((1, 10, 10), math.nan)}, "`latents` must be finite, got NaN"),
        ({"box": (0, 0, 500, 500)}, "`box` must be x0 < x1 <= 88"),
        ({"box": (0, 0, 10)}, "`box` must be four numbers"),
        ({"box": (0, 0, 10, 10)}, "`box` must be at least 32 pixels"),
        ({"output_size": 33}, "`output_size` must be one of"),
        ({"output_type": "gif"}, "`output_type` must be one of .'pil', 'np', 'pt', 'latent'., got 'gif'"),
        ({"first_window": 2}, "`first_window` must be a whole number in .3, 10., got 2"),
        ({"callback_on_step_end": 3}, "`callback_on_step_end` must be callable, got 3"),
    ],
)
def test_bad_input_is_rejected_before_any_heavy_work(pipe, changes, message):
    model, heavy = pipe.face_autoencoder, []
    modules = (pipe.audio_encoder, pipe.motion_transformer, model.appearance_encoder, model.merge)
    handles = [module.register_forward_pre_hook(lambda *_: heavy.append(1)) for module in modules]
    try:
        with pytest.raises(ValueError, match=message):
            call(pipe, **changes)
    finally:
        for handle in handles:
            handle.remove()
    assert not heavy


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_motion_that_is_not_finite_is_an_error(pipe, tmp_path, output_type):
    """A renderer may show it as black, or as a face."""
    options = {"num_inference_steps": 1, "box": BOX, "generator": generator(), "output_type": output_type}
    spoil = lambda pipe, step, timestep, tensors: {"latents": tensors["latents"] * math.nan}  # noqa: E731
    with pytest.raises(ValueError, match="`motion` must be finite"):
        pipe(make_image(), make_audio(0.5), callback_on_step_end=spoil, **options)
    weight = next(pipe.motion_transformer.parameters())
    before = weight.data.clone()
    weight.data.fill_(math.nan)
    try:
        with pytest.raises(ValueError, match="`motion` must be finite"):
            list(pipe.stream(make_image(), [make_audio(0.5)], **options))
        with pytest.raises(ValueError, match="`motion` must be finite"):
            pipe.talk_to_file(tmp_path / "out.mp4", make_image(), make_audio(0.5), **options)
    finally:
        weight.data.copy_(before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_frames_that_are_not_finite_are_an_error(pipe, monkeypatch, output_type):
    options = {"box": BOX, "output_type": output_type}
    motion, decode = call(pipe, output_type="latent").motion, pipe.face_autoencoder.decode
    monkeypatch.setattr(pipe.face_autoencoder, "decode", lambda *args, **kwargs: decode(*args, **kwargs) * math.nan)
    with pytest.raises(ValueError, match="`frames` must be finite"):
        pipe.render(make_image(), motion, **options)
    with pytest.raises(ValueError, match="`frames` must be finite"):
        pipe(make_image(), make_audio(0.5), num_inference_steps=1, **options)
    with pytest.raises(ValueError, match="`frames` must be finite"):
        list(pipe.stream(make_image(), [make_audio(0.5)], num_inference_steps=1, **options))


def test_corrupt_files_are_rejected(pipe, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG no image")
    with pytest.raises(ValueError, match="`image` must be"):
        call(pipe, tmp_path / "a.png")
    (tmp_path / "a.wav").write_bytes(b"RIFF no audio")
    with pytest.raises(ValueError, match="`audio` must be a readable audio file"):
        call(pipe, audio=tmp_path / "a.wav")


def test_silence_warns_but_is_allowed(pipe, caplog):
    with caplog.at_level(logging.WARNING):
        out = call(pipe, audio=np.zeros(8000, np.float32))
    assert "`audio` is silent" in caplog.text and torch.isfinite(out.frames).all()
