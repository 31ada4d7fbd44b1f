import pytest
import torch

from tests.testing_utils.pipelines import (
    BOX,
    PipelineTesterMixin,
    call,
    generator,
    make_audio,
    make_gaia_components,
    make_gaia_denoiser,
    make_image,
)
from vasa_hf import GaiaAutoencoder, GaiaAvatarPipeline, LandmarkEdit, load_motion
from vasa_hf.geometry.landmarks import GROUPS
from vasa_hf.media.video import VideoWriter
from vasa_hf.models.autoencoder_gaia import TINY_CONFIG
from vasa_hf.models.motion_denoiser_gaia import gaia_scheduler
from vasa_hf.pipelines.motion_gaia import ALL_BUT_MOUTH_AND_JAW, MOUTH_AND_JAW, encode_landmarks
from vasa_hf.training.recipes.gaia_text_denoiser import GaiaTextOptions, make_text_encoder


class TestGaiaAvatarPipeline(PipelineTesterMixin):
    pipeline_class = GaiaAvatarPipeline
    options = {"num_inference_steps": 3, "box": BOX}

    def make_components(self):
        return make_gaia_components()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    """With all models, and poses that P predicts differently for each frame."""
    parts = make_gaia_components()
    torch.manual_seed(1)
    tokenizer, text_encoder = make_text_encoder(GaiaTextOptions(text_width=16))
    parts["motion_transformer"].pose_std.fill_(0.2)
    return quiet(
        GaiaAvatarPipeline(
            **parts,
            landmark_denoiser=make_gaia_denoiser(motion_dim=324, motion_channels=2, predicts="landmarks"),
            text_denoiser=make_gaia_denoiser(),
            text_encoder=text_encoder.eval(),
            text_tokenizer=tokenizer,
        )
    )


# --- pose -------------------------------------------------------------------------------------------------------------


def test_pose_is_what_is_asked_for_and_changes_the_motion(pipe):
    predicted = call(pipe, output_type="latent").motion[0]
    assert predicted[:, 0].std() > 1e-3  # P's own
    held = call(pipe, pose=(0.3, -0.1, 0.2), output_type="latent").motion[0]
    torch.testing.assert_close(held[:, :3], torch.tensor([0.3, -0.1, 0.2]).expand(20, 3))
    assert (held[:, 6:] - predicted[:, 6:]).abs().max() > 1e-3
    keyed = call(pipe, pose=[(0, (0.0, 0, 0)), (0.4, (0.4, 0, 0))], output_type="latent").motion[0]
    torch.testing.assert_close(keyed[:12, 0], (torch.arange(12) / 25).clamp(max=0.4))


def test_pose_of_a_video(pipe, tmp_path):
    path = tmp_path / "driving.mp4"
    with VideoWriter(path, 25, (88, 96), provenance=False) as writer:
        for seed in range(4):
            writer.write(make_image(seed))
    track = pipe.read_pose(path, box=BOX)
    assert track.values.shape == (4, 3) and track.values.std(0).min() > 0
    out = call(pipe, pose=track, output_type="latent").motion[0]
    torch.testing.assert_close(out[:4, :3], track.values.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[4:, :3], track.values[-1:].float().expand(16, 3), atol=1e-5, rtol=0)


# --- landmarks --------------------------------------------------------------------------------------------------------


def test_held_landmarks_are_held_exactly_and_the_rest_is_generated(pipe, monkeypatch):
    """What E_M sees is recorded: held landmarks are as given in every frame, across windows; others move."""
    from vasa_hf.pipelines import motion_gaia

    seen = []
    monkeypatch.setattr(
        motion_gaia, "encode_landmarks", lambda model, points: seen.append(points) or encode_landmarks(model, points)
    )
    edit = LandmarkEdit(0.3 + 0.4 * torch.rand(30, 162, 2, generator=generator(3)))
    out = call(pipe, audio=make_audio(1.0), edit_landmarks=edit)
    points, held = torch.cat(seen), list(ALL_BUT_MOUTH_AND_JAW)
    assert len(points) == len(out.frames) == 25
    assert torch.equal(points[:, held], edit.landmarks[:25, held])
    free = points[:, list(MOUTH_AND_JAW)]
    assert (free - edit.landmarks[:25, list(MOUTH_AND_JAW)]).abs().max() > 0.01
    assert (free[1:] - free[:-1]).abs().max() > 1e-3
    # Any subset, by name and by row.
    seen.clear()
    part = LandmarkEdit(edit.landmarks[0], hold=["left_eye", 0])
    call(pipe, audio=make_audio(0.4), edit_landmarks=part, output_type="latent")
    held = sorted({0, *GROUPS["left_eye"]})
    assert part.held == held and torch.equal(torch.cat(seen)[:, held], edit.landmarks[0, held].expand(10, -1, -1))


def test_what_is_held_shapes_the_rest_in_every_step(pipe):
    """The model sees held landmarks while it denoises: the free ones depend on them."""
    speech = pipe.create_motion_generator()
    portrait = pipe.prepare_portrait(make_image(), box=BOX)
    generated = []
    for value in (0.2, 0.8):
        edit = LandmarkEdit(torch.full((162, 2), value))
        kwargs = {"model": pipe.landmark_denoiser, "reference": portrait.landmarks.flatten()[None], "index": 0}
        kwargs |= {"start": 0, "lengths": [10], "controls": pipe.controls_type(edit_landmarks=edit)}
        kwargs["sampling"] = sampling(3)
        features = torch.zeros(1, 10, 16)
        made = speech.sample_window(features, torch.ones(1, 10, dtype=torch.bool), None, None, **kwargs)
        generated.append(made[..., :324].unflatten(2, (-1, 2))[:, :, list(MOUTH_AND_JAW)])
    assert (generated[0] - generated[1]).abs().max() > 1e-3


def sampling(steps):
    from vasa_hf.pipelines.motion_generator import Sampling

    return Sampling(num_inference_steps=steps, generator=generator())


def test_landmarks_of_a_video_are_followed(pipe, tmp_path, monkeypatch):
    path = tmp_path / "driving.mp4"
    with VideoWriter(path, 25, (88, 96), provenance=False) as writer:
        for seed in range(3):
            writer.write(make_image(seed))
    with pytest.raises(ValueError, match="face"):  # the random analyzer finds none in it
        call(pipe, edit_landmarks=path)
    driving_face = pipe._driving_face
    monkeypatch.setattr(pipe, "_driving_face", lambda frames, face, box, count: driving_face(frames, face, BOX, count))
    out = call(pipe, audio=make_audio(0.4), edit_landmarks=path)
    assert len(out.frames) == 10 and torch.isfinite(out.frames).all()


# --- text -------------------------------------------------------------------------------------------------------------


def test_text_takes_the_place_of_speech(pipe):
    smile = call(pipe, text="please smile", output_type="latent").motion
    other_voice = call(pipe, audio=make_audio(0.8, seed=4), text="please smile", output_type="latent").motion
    torch.testing.assert_close(smile, other_voice)
    assert (call(pipe, text="turn your head left", output_type="latent").motion - smile).abs().max() > 1e-4
    # Instructions begin at their times: until then nothing differs, as the windows before are the same.
    later = call(pipe, text=[(0, "please smile"), (0.6, "turn your head left")], output_type="latent").motion
    torch.testing.assert_close(later[:, :10], smile[:, :10])
    assert (later - smile)[:, 15:].abs().max() > 1e-4


def test_text_needs_no_audio(pipe, caplog):
    options = {"num_inference_steps": 2, "box": BOX, "output_type": "pt"}
    out = pipe(make_image(), text="nod", seconds=1.0, generator=generator(), **options)
    assert out.frames.shape == (25, 3, 32, 32) and out.audio is None and "silent" not in caplog.text
    both = pipe([make_image(0), make_image(1)], text="nod", seconds=0.4, **options)
    assert [len(frames) for frames in both.frames] == [10, 10] and both.audio is None
    (frames,) = pipe(make_image(), text="nod", seconds=1.0, generator=generator(), return_dict=False, **options)
    assert torch.equal(frames, out.frames)
    with pytest.raises(ValueError, match="`seconds`"):
        pipe(make_image(), text="nod", seconds=1000.0, box=BOX)
    with pytest.raises(ValueError, match="`audio`"):
        pipe(make_image(), box=BOX)


# --- other drivers ----------------------------------------------------------------------------------------------------


def test_animate_relative_to_the_first_frame_begins_with_the_portrait(pipe):
    portrait = pipe.prepare_portrait(make_image(), box=BOX)
    frames = [make_image(seed) for seed in range(1, 4)]
    out = pipe.animate(portrait, frames, driving_box=BOX, output_type="pt")
    torch.testing.assert_close(out.motion[:, 0], portrait.motion, atol=1e-4, rtol=0)
    absolute = pipe.animate(portrait, frames, driving_box=BOX, output_type="pt", relative=False)
    torch.testing.assert_close(absolute.motion, pipe.encode_video(frames, box=BOX))
    assert not torch.equal(absolute.motion, out.motion)


def test_motion_can_be_saved_and_rendered_again(pipe, tmp_path):
    portrait = pipe.prepare_portrait(make_image(), box=BOX)
    out = call(pipe, portrait, box=None)
    out.save(tmp_path / "motion.safetensors")
    motion, spec, _, _ = load_motion(tmp_path / "motion.safetensors")
    assert spec.dynamics == {"latent": 12} and torch.equal(motion, out.motion)
    again = pipe.render(portrait, tmp_path / "motion.safetensors", output_type="pt")
    torch.testing.assert_close(again.frames, out.frames)
    moved = pipe.render(portrait, tmp_path / "motion.safetensors", output_type="latent", relative=True)
    torch.testing.assert_close(moved.motion[0, 0], portrait.motion[0], atol=1e-5, rtol=0)


# --- windows and schedulers -------------------------------------------------------------------------------------------


def test_windows_share_frames_without_a_seam(pipe):
    """The model sees the last frames of the window before at every step: another past, another continuation."""
    speech = pipe.create_motion_generator()
    reference, mask = torch.zeros(1, 12), torch.ones(1, 10, dtype=torch.bool)
    kwargs = {"model": pipe.motion_transformer, "reference": reference, "index": 1, "start": 10, "lengths": [10]}
    kwargs |= {"controls": pipe.controls_type(), "sampling": sampling(3)}
    made = []
    for past in (-1.0, 1.0):
        kwargs["sampling"] = sampling(3)
        previous = torch.full((1, 3, 15), past)
        made.append(speech.sample_window(torch.zeros(1, 10, 16), mask, previous, torch.zeros(1, 3, 16), **kwargs))
    assert made[0].shape == (1, 10, 15)
    assert (made[0] - made[1])[..., :12].abs().max() > 1e-3


def test_the_sde_makes_other_motion_of_the_same_noise(pipe):
    noise = torch.randn(1, 10, 12, generator=generator())
    options = {"latents": noise, "output_type": "latent", "audio": make_audio(0.36)}
    ode = [call(pipe, generator=generator(seed), **options).motion for seed in (1, 2)]
    assert torch.equal(*ode)
    stochastic = quiet(GaiaAvatarPipeline(**{**pipe.components, "scheduler": gaia_scheduler("sde")}))
    sde = [call(stochastic, generator=generator(seed), **options).motion for seed in (1, 2)]
    assert (sde[0] - sde[1]).abs().max() > 1e-3


# --- ablations --------------------------------------------------------------------------------------------------------


def test_without_disentanglement_frames_are_encoded(pipe):
    torch.manual_seed(0)
    plain = GaiaAutoencoder(**{**TINY_CONFIG, "source_passthrough": False, "motion_input": "frame"}).eval()
    whole = quiet(GaiaAvatarPipeline(**{**make_gaia_components(), "autoencoder": plain}))
    assert torch.isfinite(call(whole).frames).all()
    first, second = (call(whole, make_image(seed), output_type="latent").motion for seed in (0, 1))
    assert (first - second).abs().max() > 1e-4


def test_landmark_prediction_as_the_motion_model(pipe):
    model = make_gaia_denoiser(motion_dim=324, motion_channels=2, predicts="landmarks")
    landmarks = quiet(GaiaAvatarPipeline(**{**make_gaia_components(), "motion_transformer": model}))
    out = call(landmarks, edit_landmarks=LandmarkEdit(torch.rand(162, 2)))
    assert len(out.frames) == 20 and call(landmarks).motion.shape == (1, 20, 18)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"pose": (0.1, 0.2)}, "pose"),
        ({"pose": (3.0, 0, 0)}, "pose"),
        ({"pose": [(0.5, (0, 0, 0)), (0.1, (0, 0, 0))]}, "pose"),
        ({"pose": "no_such.mp4"}, "driving_video"),
        ({"edit_landmarks": torch.zeros(162, 2)}, "edit_landmarks"),
        ({"edit_landmarks": LandmarkEdit(torch.zeros(68, 2))}, "edit_landmarks"),
        ({"edit_landmarks": LandmarkEdit(torch.zeros(162, 2), hold=["ears"])}, "edit_landmarks"),
        ({"edit_landmarks": LandmarkEdit(torch.full((162, 2), float("nan")))}, "edit_landmarks"),
        ({"edit_landmarks": LandmarkEdit(torch.zeros(162, 2)), "text": "nod"}, "edit_landmarks"),
        ({"text": ""}, "text"),
        ({"text": [(1.0, "nod"), (0.5, "smile")]}, "text"),
        ({"guidance_scale": {"gaze": 1.0}}, "guidance_scale"),
    ],
)
def test_bad_controls_say_so(pipe, options, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        call(pipe, **options)


def test_controls_without_their_models_say_so():
    plain = quiet(GaiaAvatarPipeline(**make_gaia_components()))
    with pytest.raises(ValueError, match="`text` needs"):
        call(plain, text="nod")
    with pytest.raises(ValueError, match="`edit_landmarks` needs"):
        call(plain, edit_landmarks=LandmarkEdit(torch.zeros(162, 2)))


def test_components_that_do_not_fit_say_so():
    parts = make_gaia_components()
    for changes, name in (
        ({"motion_transformer": make_gaia_denoiser(motion_dim=24)}, "motion_transformer"),
        ({"motion_transformer": make_gaia_denoiser(audio_dim=8)}, "motion_transformer"),
        ({"landmark_denoiser": make_gaia_denoiser()}, "landmark_denoiser"),
        ({"text_denoiser": make_gaia_denoiser()}, "text_encoder"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            GaiaAvatarPipeline(**{**parts, **changes})
