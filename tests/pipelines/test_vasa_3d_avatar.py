import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.testing_utils.avatars import make_avatar
from tests.testing_utils.fresh_process import reload_pipeline, run_in_fresh_process
from tests.testing_utils.pipelines import (
    BOX,
    PipelineTesterMixin,
    generator,
    make_audio,
    make_image,
    make_vasa1_components,
)
from vasa_hf import OrbitCamera, Vasa3DAvatarPipeline, Vasa3DGaussianAvatar, VasaTalkingFacePipeline, orbit_cameras
from vasa_hf.gaussians.export import load_ply, load_splat
from vasa_hf.gaussians.render import render
from vasa_hf.hub import embedded_path
from vasa_hf.media import VideoWriter, read_provenance, read_video
from vasa_hf.motion import to_relative
from vasa_hf.pipelines.avatar_view import head_sphere

_avatars = {}


def avatar(seed=0):
    """One of a few avatars, made once. Tests must not change it."""
    if seed not in _avatars:
        _avatars[seed] = make_avatar(seed)
    return _avatars[seed]


def make_pipe():
    pipe = Vasa3DAvatarPipeline(**make_vasa1_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


def call(pipe, who=None, audio=None, **changes):
    options = {"output_type": "pt", "generator": generator(), "num_inference_steps": 2, "output_size": 32, **changes}
    return pipe(avatar() if who is None else who, make_audio(0.8) if audio is None else audio, **options)


def choose_avatar(image):
    """The avatars that replace the images of the shared tests."""
    if isinstance(image, list):
        return [choose_avatar(one) for one in image]
    return avatar(next((seed for seed in range(3) if np.array_equal(image, make_image(seed))), 0))


class TestVasa3DAvatarPipeline(PipelineTesterMixin):
    """All that holds for a pipeline that makes portraits talk."""

    pipeline_class = Vasa3DAvatarPipeline
    options = {"num_inference_steps": 3, "output_size": 32}
    drawing = {"output_size": 32}
    subject = staticmethod(avatar)

    def make_components(self):
        return make_vasa1_components()

    def call(self, pipe, image=None, audio=None, **changes):
        return super().call(pipe, choose_avatar(make_image() if image is None else image), audio, **changes)

    def stream(self, pipe, chunks, image=None, **changes):
        return super().stream(pipe, chunks, choose_avatar(make_image() if image is None else image), **changes)

    def test_save_and_load_in_a_fresh_process(self, tmp_path):
        pipe = self.make_pipeline()
        pipe.add_avatar("anna", avatar(1))
        pipe.save_pretrained(tmp_path / "pipe")
        files = [path for path in (tmp_path / "pipe").rglob("*") if path.is_file()]
        assert not [path for path in files if path.suffix not in (".json", ".safetensors")]
        assert (tmp_path / "pipe" / "avatars" / "anna" / "config.json") in files
        audio = make_audio(0.7)
        save_file({"audio": torch.from_numpy(audio)}, tmp_path / "in.safetensors")
        names = [str(tmp_path / name) for name in ("pipe", "in.safetensors", "out.safetensors")]
        options = {**self.options, "output_type": "pt"}
        run_in_fresh_process(reload_pipeline, "Vasa3DAvatarPipeline", *names, "anna", options)
        result = load_file(names[-1])
        expected = call(pipe, "anna", audio, num_inference_steps=3, generator=generator(3))
        # Another process may have another number of threads and sum in another order.
        torch.testing.assert_close(result["motion"], expected.motion, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result["frames"], expected.frames, rtol=1e-3, atol=1e-2)


# --- what a call returns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fps", "frames"), [(25, 33), ("30000/1001", 40), ("60", 79), (12.5, 17)])
def test_audio_and_frames_are_equally_long_at_any_rate(pipe, fps, frames):
    out = call(pipe, audio=make_audio(1.31), fps=fps)
    assert len(out.frames) == frames
    assert abs(len(out.frames) / out.fps - len(out.audio) / out.sampling_rate) <= 1 / out.fps
    assert out.motion.shape == (1, 33, 10) and out.motion_fps == 25


def test_frames_are_those_of_the_renderer(pipe):
    """The frames are what `forward` and `render` give for the returned motion."""
    out = call(pipe, background=(0.2, 0.4, 0.6))
    who = avatar()
    gaussians = who(out.motion[0]).gaussians
    expected = render(gaussians, who.portrait_camera, 32, (0.2, 0.4, 0.6)).color.clamp(0, 1)
    torch.testing.assert_close(out.frames, expected.detach(), rtol=0, atol=2e-3)
    corner = out.frames[0, :, 0, 0]
    torch.testing.assert_close(corner, torch.tensor([0.2, 0.4, 0.6]), rtol=0, atol=0.02)
    assert (out.frames - torch.tensor([0.2, 0.4, 0.6])[:, None, None]).abs().mean() > 0.05


def test_motion_is_vasa1s_about_the_portraits_own_pose(pipe):
    """The same motion as the 2D pipeline generates from this audio, from the portrait's own pose."""
    portrait = pipe.talking_face.prepare_portrait(make_image(), box=(20, 20, 70, 76))
    flat = pipe.talking_face(
        portrait, make_audio(0.8), num_inference_steps=2, generator=generator(), output_type="latent"
    ).motion
    solid = call(pipe, output_type="latent").motion
    torch.testing.assert_close(
        to_relative(solid, avatar().own_motion[None]), to_relative(flat, portrait.motion), rtol=1e-4, atol=1e-4
    )
    still = call(pipe, output_type="latent", head_motion=0.0).motion
    torch.testing.assert_close(still[0, :, :6], avatar().own_motion[:6].expand_as(still[0, :, :6]))


def test_speech_moves_the_face(pipe):
    """With the head held still, all that differs between frames is what z_dyn does."""
    frames = call(pipe, head_motion=0.0, output_size=64).frames
    assert (frames - frames[0]).abs().amax() > 0.05


def test_output_size_is_free_and_only_changes_the_resolution(pipe):
    small, large = call(pipe), call(pipe, output_size=96)
    assert large.frames.shape[1:] == (3, 96, 96) and torch.equal(small.motion, large.motion)
    shrunk = torch.nn.functional.interpolate(large.frames, 32, mode="area")
    assert (shrunk - small.frames).abs().mean() < 0.05


def test_saved_video_is_complete_and_marked_as_synthetic(pipe, tmp_path):
    pipe.model_name = "vasa3d-tiny"
    try:
        out = call(pipe, audio=make_audio(1.31), fps="30000/1001", output_type="pil")
    finally:
        pipe.model_name = None
    out.save(tmp_path / "out.mp4")
    assert sum(1 for _ in read_video(tmp_path / "out.mp4")) == 40
    assert read_provenance(tmp_path / "out.mp4")["model"] == "vasa3d-tiny"


def test_talk_to_file_writes_what_a_call_makes(pipe, tmp_path):
    seen, options = [], {"num_inference_steps": 2, "output_size": 64, "camera": OrbitCamera(period_seconds=2.0)}
    out = pipe.talk_to_file(
        tmp_path / "out.mp4",
        avatar(),
        make_audio(1.3),
        generator=generator(),
        crf=4,
        provenance=False,
        on_frames=lambda done, total: seen.append((done, total)),
        **options,
    )
    expected = call(pipe, audio=make_audio(1.3), **options)
    torch.testing.assert_close(out.motion, expected.motion)
    frames = np.stack(list(read_video(tmp_path / "out.mp4")))
    assert frames.shape == (33, 64, 64, 3) and seen[-1] == (33, 33)
    # Little of H.264 at this quality is lost but half of the colours' resolution.
    assert np.abs(frames.mean(-1) - expected.frames.mean(1).numpy() * 255).mean() < 3
    assert read_provenance(tmp_path / "out.mp4") is None


def test_frames_rendered_in_parallel_or_in_batches_are_the_same(pipe):
    before, expected = torch.get_num_threads(), call(pipe)
    try:
        for threads, batch_size in ((1, None), (3, None), (2, 7)):
            torch.set_num_threads(threads)
            pipe.draw_batch_size = batch_size
            drawn = torch.cat(list(pipe.view(avatar(), output_size=32).draw(expected.motion[0])))
            torch.testing.assert_close(drawn, expected.frames, rtol=0, atol=1e-3)  # sums in another order
    finally:
        torch.set_num_threads(before)
        pipe.draw_batch_size = None


def test_exchanged_components_are_used_at_once():
    pipe = make_pipe()
    first = call(pipe, output_type="latent").motion
    other = make_vasa1_components()["motion_transformer"]
    with torch.no_grad():
        other.motion_std.mul_(2)
    pipe.motion_transformer = other
    assert pipe.talking_face.motion_transformer is other
    assert (call(pipe, output_type="latent").motion - first).abs().max() > 1e-3


# --- cameras ----------------------------------------------------------------------------------------------------------


def test_fixed_camera_is_the_portraits(pipe):
    center = head_sphere(avatar())[0]
    out = call(pipe)
    for camera in (avatar().portrait_camera, [(0.0, 0.0, 0.0, 1.0)], lambda seconds: avatar().portrait_camera):
        torch.testing.assert_close(call(pipe, camera=camera).frames, out.frames, rtol=0, atol=1e-3)
    pixel, depth = avatar().portrait_camera.project(center[None], (1, 1))
    assert (pixel - 0.5).abs().max() < 0.25 and 50 < float(depth) < 150


@pytest.mark.parametrize("fps", [25, Fraction(50)])
def test_moving_camera_is_at_its_place_in_each_frame(pipe, fps):
    """Each frame as seen from where the path is at its time, whatever windows and groups it came in."""
    orbit = OrbitCamera(azimuth_deg=40.0, period_seconds=1.0)
    out = call(pipe, audio=make_audio(1.0), camera=orbit, fps=fps, head_motion=0.0)
    assert len(out.frames) == 1.0 * fps
    view = pipe.view(avatar(), orbit, fps=fps)
    for index in (0, 7, 13, 24):
        frame = index * int(fps) // 25
        camera = view.camera(torch.tensor([index / 25.0], dtype=torch.float64))
        gaussians = avatar()(out.motion[0, index][None]).gaussians.map(lambda value: value[0])
        expected = render(gaussians, camera, 32, (1.0, 1.0, 1.0)).color[0].clamp(0, 1)
        torch.testing.assert_close(out.frames[frame], expected.detach(), rtol=0, atol=2e-3)
    assert (out.frames[6 * int(fps) // 25] - out.frames[0]).abs().mean() > 0.02


def test_each_video_of_a_batch_begins_its_own_path(pipe):
    orbit = OrbitCamera(period_seconds=1.0)
    batch = call(pipe, audio=[make_audio(0.5), make_audio(0.5)], camera=orbit, generator=[generator(), generator()])
    torch.testing.assert_close(batch.frames[0], batch.frames[1], rtol=0, atol=1e-3)


def test_a_camera_function_is_called_as_late_as_possible(pipe):
    asked = []

    def camera(seconds):
        asked.append(seconds)
        return avatar().portrait_camera

    frames = pipe.view(avatar(), camera, output_size=32).draw(avatar().own_motion.expand(20, -1))
    next(frames)
    assert len(asked) <= 3 + torch.get_num_threads()  # the check, this frame, and those under way
    list(frames)
    assert asked == [0.0, *[pytest.approx(index / 25) for index in range(20)]]


# --- other drivers ----------------------------------------------------------------------------------------------------


def test_render_of_a_calls_motion_gives_its_frames(pipe, tmp_path):
    out = call(pipe, fps=30)
    again = pipe.render(avatar(), out.motion, fps=30, output_size=32, output_type="pt")
    torch.testing.assert_close(again.frames, out.frames, rtol=0, atol=1e-3)
    out.save(tmp_path / "motion.safetensors")
    audio = make_audio(0.8)
    saved = pipe.render(
        avatar(), tmp_path / "motion.safetensors", fps=30, output_size=32, audio=audio, output_type="pt"
    )
    assert torch.equal(saved.frames, again.frames)
    np.testing.assert_array_equal(saved.audio, audio)
    moved = pipe.render(avatar(1), out.motion, relative=True, output_type="latent").motion
    torch.testing.assert_close(moved[:, 0], avatar(1).own_motion[None])


def driving_frames(count=6):
    return [np.roll(make_image(7), 2 * i, axis=1) for i in range(count)]


def test_animate_relative_and_absolute(pipe):
    box = (20, 20, 70, 76)
    driving = pipe.talking_face.encode_video(driving_frames(), box=box)
    absolute = pipe.animate(avatar(), driving_frames(), driving_box=box, relative=False, output_type="latent")
    assert torch.equal(absolute.motion, driving)
    relative = pipe.animate(avatar(), driving_frames(), driving_box=box, output_size=32, output_type="pt")
    torch.testing.assert_close(relative.motion[:, 0], avatar().own_motion[None])
    torch.testing.assert_close(relative.motion[..., :3].diff(dim=1), driving[..., :3].diff(dim=1))
    assert relative.frames.shape == (6, 3, 32, 32) and relative.fps == 25


def test_animate_by_a_video_file_keeps_its_rate_and_audio(pipe, tmp_path):
    with VideoWriter(tmp_path / "drive.mp4", "30000/1001", (88, 96), (make_audio(0.2), 16_000)) as writer:
        for frame in driving_frames():
            writer.write(frame)
    times = []

    def camera(seconds):
        times.append(seconds)
        return avatar().portrait_camera

    view = pipe.view(avatar(), camera, fps="30000/1001", output_size=32)
    assert pipe.animate(view, tmp_path / "drive.mp4", driving_box=BOX, output_type="latent").fps == view.fps
    with pytest.raises(ValueError, match="`fps` must be 30000/1001, as the view was made for, got 30"):
        pipe.animate(view, tmp_path / "drive.mp4", driving_box=BOX, fps=30)
    out = pipe.animate(avatar(), tmp_path / "drive.mp4", driving_box=(20, 20, 70, 76), output_size=32, camera=camera)
    assert out.fps == Fraction(30000, 1001) and len(out.frames) == 6 and np.abs(out.audio).max() > 0.1
    assert times[-1] == pytest.approx(5 * 1001 / 30000)  # the camera's clock is the video's


def test_contact_sheet_shows_each_side_in_its_place(pipe):
    who, motion = avatar(), call(pipe, output_type="latent").motion[0, [3, 15]]
    sheet = np.asarray(pipe.contact_sheet(who, (-45, 0, 45), motion, output_size=48))
    assert sheet.shape == (96, 144, 3)
    for row, frame in enumerate(motion):
        expected = np.asarray(pipe.render(who, frame[None], output_size=48).frames[0]).astype(int)
        middle = sheet[48 * row : 48 * (row + 1), 48:96]
        assert np.abs(middle - expected).max() <= 1  # rounded from other sums
    own = np.asarray(pipe.contact_sheet(who, output_size=48)).astype(int)
    assert own.shape == (48, 144, 3)
    for column, azimuth in enumerate((-45, 0, 45)):
        out = pipe.render(who, who.own_motion[None], camera=[(0, azimuth, 0, 1)], output_size=48)
        seen = own[:, 48 * column : 48 * (column + 1)]
        assert np.abs(seen - np.asarray(out.frames[0])).max() <= 1
        assert azimuth == 0 or np.abs(seen - own[:, 48:96]).mean() > 5
    for angles in ((), (400,), ("left",)):
        with pytest.raises(ValueError, match="`azimuths_deg` must be a "):
            pipe.contact_sheet(who, angles)


# --- files ------------------------------------------------------------------------------------------------------------


def test_export_is_the_avatar_at_rest(tmp_path):
    who = avatar()
    assert who.neutral_motion[:3].abs().max() == 0 and torch.equal(who.neutral_motion[3:], who.own_motion[3:])
    expected = render(who(who.neutral_motion[None]).gaussians, who.portrait_camera, 64, (1.0, 1.0, 1.0)).color
    for name, load, atol in (("a.ply", load_ply, 2e-3), ("a.splat", load_splat, 0.1)):
        who.export(tmp_path / name)
        seen = render(load(tmp_path / name), who.portrait_camera, 64, (1.0, 1.0, 1.0)).color
        torch.testing.assert_close(seen, expected.detach(), rtol=0, atol=atol)
    who.export(tmp_path / "b.ply", who.own_motion)
    assert (load_ply(tmp_path / "b.ply").means - load_ply(tmp_path / "a.ply").means).abs().max() > 0.1
    with pytest.raises(ValueError, match="`path` must end in .ply or .splat, got .*a.obj"):
        who.export(tmp_path / "a.obj")


@pytest.mark.parametrize(("suffix", "load"), [(".ply", load_ply), (".splat", load_splat)])
def test_export_sequence_has_a_file_for_each_frame(pipe, tmp_path, suffix, load):
    motion = call(pipe, output_type="latent").motion
    files = pipe.export_sequence(avatar(), motion[:, :4], tmp_path / "frames", suffix)
    assert [file.name for file in files] == [f"0000{index}{suffix}" for index in range(4)]
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "frames", *files])
    means = avatar()(motion[0, 2:3]).gaussians.means[0]
    torch.testing.assert_close(load(files[2]).means.sum(0), means.sum(0), rtol=1e-3, atol=1e-2)
    with pytest.raises(ValueError, match="`folder` must be new or empty"):
        pipe.export_sequence(avatar(), motion, tmp_path / "frames", suffix)
    with pytest.raises(ValueError, match="`suffix` must be one of .'.ply', '.splat'., got '.obj'"):
        pipe.export_sequence(avatar(), motion, tmp_path / "other", ".obj")


def test_broken_sequence_leaves_nothing(pipe, tmp_path):
    motion = avatar().own_motion.repeat(3, 1)
    who = make_avatar()
    with torch.no_grad():
        who.colors[5] = float("nan")
    with pytest.raises(ValueError, match="`gaussians` must hold finite numbers, but colors has NaN or infinity"):
        pipe.export_sequence(who, motion, tmp_path / "frames")
    assert not list(tmp_path.iterdir())


# --- avatars by name --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pipeline with two avatars, and one that takes VASA-1's components from it."""
    folder = tmp_path_factory.mktemp("saved")
    pipe = make_pipe()
    pipe.add_avatar("anna", avatar(1))
    pipe.add_avatar("ben", avatar(2))
    pipe.save_pretrained(folder / "whole")
    pipe.save_pretrained(folder / "light", talking_face=str(folder / "whole"))
    return folder


def test_avatars_are_called_by_their_names(saved, tmp_path, monkeypatch):
    pipe = Vasa3DAvatarPipeline.from_pretrained(saved / "whole")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.avatars == ["anna", "ben"] and pipe.model_name == "whole"
    expected = call(pipe, avatar(1)).frames
    assert torch.equal(call(pipe, "anna").frames, expected)
    assert torch.equal(call(pipe, saved / "whole" / "avatars" / "anna").frames, expected)
    assert pipe.load_avatar("anna") is pipe.load_avatar("anna")  # read once
    monkeypatch.chdir(tmp_path)
    (tmp_path / "anna").write_bytes(b"a file that bears her name")
    assert torch.equal(call(pipe, "anna").frames, expected)
    with pytest.raises(ValueError, match=r"`avatar` must be one of \['anna', 'ben'\], an existing folder .*'carl'"):
        call(pipe, "carl")


def test_components_come_from_another_model(saved, tmp_path):
    files = sorted(path.relative_to(saved / "light").parts[0] for path in (saved / "light").iterdir())
    assert files == ["avatars", "model_index.json"]
    pipe = Vasa3DAvatarPipeline.from_pretrained(saved / "light")
    pipe.set_progress_bar_config(disable=True)
    whole = Vasa3DAvatarPipeline.from_pretrained(saved / "whole")
    whole.set_progress_bar_config(disable=True)
    assert pipe.avatars == ["anna", "ben"] and pipe.model_name == "light" and pipe.talking_face.model_name == "whole"
    assert torch.equal(call(pipe, "ben").frames, call(whole, "ben").frames)
    # Saved from there it is whole unless it is asked otherwise; avatars are copied as they were.
    pipe.save_pretrained(tmp_path / "again")
    again = Vasa3DAvatarPipeline.from_pretrained(tmp_path / "again")
    again.set_progress_bar_config(disable=True)
    assert (tmp_path / "again" / "face_autoencoder").is_dir()
    assert torch.equal(call(again, "ben").frames, call(pipe, "ben").frames)
    weights = "avatars/ben/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (saved / "light" / weights).read_bytes()


def test_saving_over_itself_keeps_the_avatars(saved, tmp_path):
    shutil.copytree(saved / "whole", tmp_path / "pipe")
    pipe = Vasa3DAvatarPipeline.from_pretrained(tmp_path / "pipe")
    pipe.add_avatar("dora", avatar(0))
    pipe.save_pretrained(tmp_path / "pipe")
    again = Vasa3DAvatarPipeline.from_pretrained(tmp_path / "pipe")
    assert again.avatars == ["anna", "ben", "dora"]
    assert torch.equal(again.load_avatar("dora").colors, avatar(0).colors)
    assert torch.equal(again.load_avatar("anna").colors, avatar(1).colors)


def test_vasa1s_weights_make_a_pipeline_without_avatars(tmp_path):
    VasaTalkingFacePipeline(**make_vasa1_components()).save_pretrained(tmp_path)
    pipe = Vasa3DAvatarPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.avatars == [] and torch.equal(call(pipe).frames, call(make_pipe()).frames)


# --- bad input --------------------------------------------------------------------------------------------------------

INSIDE = orbit_cameras(0.0, distance=3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"who": []}, "`avatar` must be at least one avatar, got an empty list"),
        ({"who": 3}, "`avatar` must be a Vasa3DGaussianAvatar, got int"),
        ({"who": "nobody"}, r"`avatar` must be one of \[\], .*, got 'nobody'"),
        ({"who": "photos/me.jpg"}, "`avatar` must be .*, got 'photos/me.jpg'"),
        ({"who": [None, None], "audio": [make_audio(0.3)] * 3}, "`avatar` and `audio` must be equally many"),
        ({"camera": "spiral"}, "`camera` must be one of"),
        ({"camera": INSIDE}, r"`camera` must stay outside of the head, at least \d+.\d cm from its middle, but is"),
        ({"camera": [(0, 0, 0, 1), (9, 0, 0, 0.05)]}, "`camera` must stay outside of the head"),
        ({"output_size": 8}, r"`output_size` must be a whole number in \[16, 2,048\], got 8"),
        ({"output_size": 64.0}, "`output_size` must be a whole number"),
        ({"output_size": (64, 64)}, "`output_size` must be a whole number"),
        ({"background": (0, 0, 300)}, r"`background` must be red, green and blue in \[0, 1\], got \(0, 0, 300\)"),
        ({"background": "green"}, "`background` must be red, green and blue"),
        ({"fps": 0}, "`fps` must be"),
        ({"gaze": (2.0, 0.0)}, "`gaze` must lie in"),
        ({"emotion": {"hungry": 1.0}}, "`emotion` knows the names"),
        ({"generator": 3}, "`generator` must be a torch.Generator"),
        ({"audio": "nowhere.wav"}, "`audio` must be an existing"),
        ({"output_type": "gif"}, "`output_type` must be one of"),
        ({"callback_on_step_end": 3}, "`callback_on_step_end` must be callable, got 3"),
    ],
)
def test_bad_input_is_rejected_before_any_heavy_work(pipe, changes, message):
    heavy = []
    modules = (pipe.audio_encoder, pipe.motion_transformer, avatar().deform_face.hidden)
    handles = [module.register_forward_pre_hook(lambda *_: heavy.append(1)) for module in modules]
    if isinstance(changes.get("who"), list):
        changes = {**changes, "who": [avatar() for _ in changes["who"]]}
    try:
        with pytest.raises(ValueError, match=message):
            call(pipe, **changes)
    finally:
        for handle in handles:
            handle.remove()
    assert not heavy


def test_stream_rejects_bad_input_at_once(pipe):
    with pytest.raises(ValueError, match="`camera` must stay outside"):
        pipe.stream(avatar(), [make_audio(0.3)], camera=INSIDE)
    with pytest.raises(ValueError, match="`avatar` must be one of"):
        pipe.stream("nobody", [make_audio(0.3)])


def test_avatars_of_other_motion_are_rejected(pipe, tmp_path):
    other = make_avatar(motion_space="vasa1-paper")
    message = "`motion_space` must be 'vasa1-paper', for which this avatar was fitted, got 'vasa1'"
    for use in (lambda: call(pipe, other), lambda: pipe.add_avatar("other", other), lambda: pipe.contact_sheet(other)):
        with pytest.raises(ValueError, match=message):
            use()
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=message):
        pipe.load_avatar(tmp_path / "other")
    with pytest.raises(ValueError, match="`avatar` must have `motion_dim` 10 to fit the `face_autoencoder`, got 34"):
        call(pipe, make_avatar(motion_dim=34))
    with pytest.raises(ValueError, match="`motion` must have 10 channels last"):
        pipe.render(avatar(), torch.zeros(3, 34))


def test_unfitted_and_badly_named_avatars_are_rejected(pipe):
    grey = Vasa3DGaussianAvatar.from_head(avatar().head, motion_dim=10, hidden_size=16)
    with pytest.raises(ValueError, match="`avatar` must be fitted, this one does not know its portrait's pose"):
        call(pipe, grey)
    for name in ("", "../a", "a/b", "a.b", 3):
        with pytest.raises(ValueError, match="`name` must be letters, digits, _ and -"):
            pipe.add_avatar(name, avatar())


def test_exports_are_no_avatars(pipe, tmp_path):
    avatar().export(tmp_path / "a.ply")
    with pytest.raises(ValueError, match="`avatar` must be an avatar that can move, but '.*a.ply' is an export"):
        call(pipe, tmp_path / "a.ply")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut_off(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: change_config(folder, _class_name="Vasa1FaceAutoencoder"), "it is a Vasa1FaceAutoencoder"),
        (lambda folder: change_config(folder, hidden_size=64), "expected shape"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (cut_off, "Unable to load weights"),
        (lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(), "diffusion_pytorch_model"),
    ],
)
def test_damaged_avatars_are_rejected(pipe, saved, tmp_path, spoil, message):
    folder = tmp_path / "anna"
    shutil.copytree(saved / "whole" / "avatars" / "anna", folder)
    spoil(folder)
    with pytest.raises(ValueError, match=f"(?s)`name_or_path` must hold a whole Vasa3DGaussianAvatar, got .*{message}"):
        pipe.load_avatar(folder)


def test_a_folder_without_a_pipeline_is_rejected(tmp_path):
    for make in (lambda: None, lambda: (tmp_path / "model_index.json").write_text("{")):
        make()
        with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must hold a whole pipeline"):
            Vasa3DAvatarPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must be an embedded model, a folder or a"):
        Vasa3DAvatarPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`safe_serialization` must be True"):
        make_pipe().save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not (tmp_path / "new").exists()


# --- the embedded weights ---------------------------------------------------------------------------------------------

EMBEDDED = embedded_path("vasa3d-small")
ASSETS = Path(__file__).resolve().parents[2] / "vasa_hf" / "assets"
needs_weights = pytest.mark.skipif(
    not (embedded_path("vasa-small") / "face_autoencoder").is_dir(), reason="the embedded weights are not here"
)


@pytest.fixture(scope="module")
def embedded():
    pipe = Vasa3DAvatarPipeline.from_pretrained("vasa3d-small")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@needs_weights
def test_embedded_model_does_not_repeat_vasa1s_weights(embedded):
    assert embedded.model_name == "vasa3d-small" and embedded.talking_face.model_name == "vasa-small"
    parts = {path.relative_to(EMBEDDED).parts[0] for path in EMBEDDED.rglob("*.safetensors")}
    assert parts <= {"avatars"}


@needs_weights
def test_embedded_avatars_talk(embedded):
    if not embedded.avatars:
        pytest.skip("no avatars in this checkout")
    assert len(embedded.avatars) >= 2
    for name in embedded.avatars:
        out = embedded(name, make_audio(0.6), num_inference_steps=2, output_type="pt", camera="orbit")
        assert out.frames.shape == (15, 3, 256, 256)
        assert (out.frames != 1).any(1).float().mean() > 0.2  # somebody is before the white background


@needs_weights
def test_portraits_that_no_avatar_can_be_made_of_are_rejected(embedded):
    with pytest.raises(ValueError, match="`image` must show a face, but none was found"):
        embedded.fit(np.full((256, 256, 3), 128, np.uint8))
    with pytest.raises(ValueError, match="`image` must be an image file, but 'nowhere.png' does not exist"):
        embedded.fit("nowhere.png")
    with pytest.raises(ValueError, match="`preset` must be one of"):
        embedded.fit(ASSETS / "portrait.jpg", preset="slow")
    portrait = embedded.talking_face.prepare_portrait(ASSETS / "portrait.jpg")
    turned = portrait.motion.clone()
    turned[:, 0] = -0.9
    image = embedded.talking_face.render(portrait, turned).frames[0]
    with pytest.raises(ValueError, match="`image` must show the face turned by less than 0.7 radians, got 0.7"):
        embedded.fit(image)


def test_a_portrait_must_be_fitted_first(pipe, tmp_path):
    """A fit takes minutes: a call says so instead of doing it."""
    Image.fromarray(make_image()).save(tmp_path / "me.png")
    for portrait in (make_image(), Image.fromarray(make_image()), tmp_path / "me.png", str(tmp_path / "me.png")):
        with pytest.raises(ValueError, match=r"`avatar` must be an avatar, got an image: .* `pipe.fit"):
            call(pipe, portrait)
        with pytest.raises(ValueError, match=r"`avatar` must be an avatar, got an image: .* `pipe.fit"):
            pipe.stream(portrait, make_audio(0.3))


def test_the_avatar_has_two_names(pipe):
    expected = call(pipe).frames
    options = {"output_type": "pt", "num_inference_steps": 2, "output_size": 32}
    for name in ("image", "avatar"):
        again = pipe(**{name: avatar()}, audio=make_audio(0.8), generator=generator(), **options)
        assert torch.equal(again.frames, expected)
    with pytest.raises(ValueError, match="`avatar` must be given, once"):
        pipe(avatar(), make_audio(0.8), avatar=avatar())
    with pytest.raises(ValueError, match="`avatar` must be given, once"):
        pipe(audio=make_audio(0.8))


def test_rendering_a_view_twice_gives_the_same_frames(pipe):
    """No place in the video is kept: a view is a function of motion, start frame and rate."""
    view, motion = (
        pipe.view(avatar(), OrbitCamera(period_seconds=1.0), output_size=32),
        avatar().own_motion.expand(8, -1),
    )
    first = torch.cat(list(view.draw(motion)))
    assert torch.equal(first, torch.cat(list(view.draw(motion))))
    later = torch.cat(list(view.draw(motion[:4], start_frame=4)))
    torch.testing.assert_close(later, first[4:], rtol=0, atol=1e-4)
    slow = torch.cat(list(view.draw(motion[:4], fps=12.5)))
    torch.testing.assert_close(slow, first[::2], rtol=0, atol=1e-4)
    fixed = pipe.view(avatar(), "orbit", fps=30)
    for use in (
        lambda: list(fixed.draw(motion, fps=25)),
        lambda: call(pipe, fixed),
        lambda: pipe.render(fixed, motion),
    ):
        with pytest.raises(ValueError, match="`fps` must be 30, as the view was made for, got 25"):
            use()
