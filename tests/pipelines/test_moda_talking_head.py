"""MoDA's pipeline with tiny real components: talking, animating, retargeting, and loading."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from tests.testing_utils.pipelines import (
    BOX,
    PipelineTesterMixin,
    WatchedOffload,
    check_sequential_offload,
    generator,
    make_audio,
    make_image,
    make_joyvasa_components,
    make_moda_components,
)
from vasa_hf import JoyVasaTalkingHeadPipeline, LivePortraitPipeline, ModaTalkingHeadPipeline, load_motion
from vasa_hf.geometry.keypoints import EYE_KEYPOINTS, LIP_KEYPOINTS, euler_matrix, transform_keypoints
from vasa_hf.hub import read_index
from vasa_hf.media import VideoWriter, read_video
from vasa_hf.pipelines.expression_edits import EDITS
from vasa_hf.pipelines.keypoint_motion import KEYPOINT_SPEC, keypoints_of, motion_of
from vasa_hf.training.saving import save_pipeline

OLD_NAME = "ModaTalkingHeadPipeline"
RENDERER = ("face_analyzer", "image_processor", "renderer")
OPTIONS = {"num_inference_steps": 2, "box": BOX}


@pytest.fixture(scope="module")
def pipe():
    pipe = ModaTalkingHeadPipeline(**make_moda_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def talk(pipe, audio=None, **changes):
    options = {**OPTIONS, "output_type": "latent", "generator": generator(), **changes}
    return pipe(make_image(), make_audio(0.9) if audio is None else audio, **options)


class TestModaTalkingHeadPipeline(PipelineTesterMixin):
    pipeline_class = ModaTalkingHeadPipeline
    options = OPTIONS
    drawing = {"box": BOX, "eye_ratio": 0.2, "lip_ratio": 0.2}

    def make_components(self):
        return make_moda_components()

    def num_windows(self, frames):
        return 1 + max(0, -(-(frames - 10) // 7))

    @pytest.mark.parametrize("scheduler", ["heun", "unipc", "lcm"])
    def test_schedulers_can_be_swapped(self, scheduler):
        """Any solver of the flow leads near what Euler's many small steps find; LCM is stochastic, and only finite."""
        pipe = self.make_pipeline()
        audio, options = make_audio(0.6), {**self.options, "output_type": "latent", "num_inference_steps": 20}
        euler = self.call(pipe, audio=audio, **options).motion
        pipe.scheduler = {
            "heun": FlowMatchHeunDiscreteScheduler(),
            "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            "lcm": FlowMatchLCMScheduler(),
        }[scheduler]
        motion = self.call(pipe, audio=audio, **options).motion
        assert torch.isfinite(motion).all()
        assert torch.equal(motion, self.call(pipe, audio=audio, **options).motion) or scheduler == "lcm"
        assert (motion - euler).abs().mean() < 0.3 * euler.std() or scheduler == "lcm"

    def test_steps_are_those_of_the_code_or_equal_as_in_the_paper(self, tmp_path):
        pipe, audio = self.make_pipeline(), make_audio(0.6)
        options = {**self.options, "output_type": "latent", "num_inference_steps": 4}
        call = lambda pipe, **changes: self.call(pipe, audio=audio, **{**options, **changes}).motion  # noqa: E731
        assert pipe.config.timestep_spacing == "linspace"
        sigmas = FlowMatchEulerDiscreteScheduler()
        sigmas.set_timesteps(10)
        assert sigmas.sigmas[-2].item() == pytest.approx(0.001)  # the last step of MoDA's code
        equal = call(pipe, sigmas=[1.0, 0.75, 0.5, 0.25])
        assert not torch.equal(equal, call(pipe))
        paper = ModaTalkingHeadPipeline(**self.make_components(), timestep_spacing="trailing")
        paper.set_progress_bar_config(disable=True)
        assert torch.equal(call(paper), equal)
        paper.save_pretrained(tmp_path)
        loaded = ModaTalkingHeadPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        torch.testing.assert_close(call(loaded), equal, rtol=1e-4, atol=1e-4)  # other places in memory, other sums
        with pytest.raises(ValueError, match="`timestep_spacing` must be one of"):
            ModaTalkingHeadPipeline(**self.make_components(), timestep_spacing="leading")
        paper.scheduler = FlowMatchHeunDiscreteScheduler()
        with pytest.raises(ValueError, match="'linspace' for FlowMatchHeun"):
            call(paper)


# --- JoyVASA's generator before the same renderer ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def joyvasa():
    pipe = JoyVasaTalkingHeadPipeline(**make_joyvasa_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_joyvasas_stream_equals_offline(joyvasa):
    audio = make_audio(1.37)
    offline = talk(joyvasa, audio, fps=30)
    parts = [audio[i : i + 1000] for i in range(0, len(audio), 1000)]
    options = {**OPTIONS, "generator": generator(), "output_type": "latent", "fps": 30}
    chunks = list(joyvasa.stream(make_image(), parts, **options))
    assert sum(len(chunk.frames) for chunk in chunks) == 42 and offline.motion.shape == (1, 35, 69)
    again = talk(joyvasa, audio, fps=25)
    assert torch.equal(offline.motion, again.motion) and torch.isfinite(offline.motion).all()
    chunks = list(joyvasa.stream(make_image(), parts, **{**options, "fps": 25, "generator": generator()}))
    assert torch.equal(torch.cat([chunk.motion for chunk in chunks], 1), offline.motion)


def test_joyvasas_batch_equals_single(joyvasa):
    images, audios = [make_image(0), make_image(1)], [make_audio(1.3, 0), make_audio(0.5, 1)]
    options = {**OPTIONS, "output_type": "latent"}
    batch = joyvasa(images, audios, generator=[generator(0), generator(1)], **options)
    for i in range(2):
        single = joyvasa(images[i], audios[i], generator=generator(i), **options)
        torch.testing.assert_close(batch.motion[i, : single.motion.shape[1]], single.motion[0], rtol=1e-4, atol=1e-4)


def test_joyvasas_motion_starts_at_the_portrait_but_for_the_lips(joyvasa):
    own = joyvasa.prepare_portrait(make_image(), box=BOX)
    motion = talk(joyvasa, audio=make_audio(1.3)).motion[0]
    torch.testing.assert_close(motion[0, :6], own.motion[0, :6], rtol=0, atol=1e-5)
    change = (motion[0, 6:] - own.motion[0, 6:]).unflatten(0, (21, 3)).abs().amax(1)
    assert set((change > 1e-5).nonzero().flatten().tolist()) == set(LIP_KEYPOINTS)
    assert (motion[20] - motion[0]).abs().max() > 1e-3


def test_joyvasa_rejects_unknown_options(joyvasa):
    with pytest.raises(ValueError, match="`emotion` is no option here: JoyVasaTalkingHeadPipeline knows .'expression'"):
        talk(joyvasa, emotion="fear")
    with pytest.raises(ValueError, match="`guidance_scale` knows the names .'audio'., got 'emotion'"):
        talk(joyvasa, guidance_scale={"emotion": 1.0})
    with pytest.raises(ValueError, match=r"`first_window` must be a whole number in \[10, 10\]"):
        talk(joyvasa, first_window=5)
    parts = {**joyvasa.components, "scheduler": DDPMScheduler()}
    with pytest.raises(ValueError, match="`scheduler` must have `prediction_type` 'sample'.*got 'epsilon'"):
        JoyVasaTalkingHeadPipeline(**parts)
    with pytest.raises(ValueError, match="`motion_transformer` must be a ModaMotionTransformer, got JoyVasaMotion"):
        ModaTalkingHeadPipeline(**joyvasa.components)


def test_offloaded_models_of_joyvasa_and_of_a_renderer_alone_are_there_when_they_run():
    pipe = JoyVasaTalkingHeadPipeline(**make_joyvasa_components())
    pipe.set_progress_bar_config(disable=True)
    watched = WatchedOffload(pipe)
    talk(pipe)
    watched.check_other_drivers(make_image(), box=BOX, eye_ratio=0.2)
    pipe = LivePortraitPipeline(**{name: make_moda_components()[name] for name in RENDERER})
    pipe.set_progress_bar_config(disable=True)
    watched = WatchedOffload(pipe)
    watched.check_other_drivers(make_image(), box=BOX, lip_ratio=0.2)


def test_layers_of_joyvasa_are_offloaded_one_by_one_and_in_groups(monkeypatch):
    pipe = JoyVasaTalkingHeadPipeline(**make_joyvasa_components())
    pipe.set_progress_bar_config(disable=True)
    run = lambda: talk(pipe, make_audio(0.5), output_type="pt")  # noqa: E731
    expected = run()
    check_sequential_offload(pipe, monkeypatch, run, make_image(), box=BOX)
    pipe = JoyVasaTalkingHeadPipeline(**make_joyvasa_components())
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(run().frames, expected.frames)


def test_folders_of_earlier_versions_are_loaded_by_their_class(joyvasa, tmp_path):
    joyvasa.save_pretrained(tmp_path / "joyvasa")
    index = json.loads((tmp_path / "joyvasa" / "model_index.json").read_text())
    (tmp_path / "joyvasa" / "model_index.json").write_text(json.dumps({**index, "_class_name": OLD_NAME}))
    for kind in (ModaTalkingHeadPipeline, JoyVasaTalkingHeadPipeline):
        loaded = kind.from_pretrained(tmp_path / "joyvasa")
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is JoyVasaTalkingHeadPipeline
        torch.testing.assert_close(talk(loaded).motion, talk(joyvasa).motion, rtol=1e-4, atol=1e-4)
    parts = {name: joyvasa.components[name] for name in RENDERER}
    LivePortraitPipeline(**parts).save_pretrained(tmp_path / "renderer")
    file = tmp_path / "renderer" / "model_index.json"
    absent = dict.fromkeys(("motion_transformer", "audio_encoder", "audio_processor", "scheduler"), [None, None])
    file.write_text(json.dumps({**json.loads(file.read_text()), **absent, "_class_name": OLD_NAME}))
    assert type(ModaTalkingHeadPipeline.from_pretrained(tmp_path / "renderer")) is LivePortraitPipeline


@pytest.mark.parametrize("options", [{}, {"device_map": "cpu"}], ids=["plain", "placed by diffusers"])
def test_a_component_of_an_earlier_name_is_loaded_and_replaced(pipe, tmp_path, options):
    pipe.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "motion_transformer").rename(tmp_path / "old" / "motion_generator")
    index = tmp_path / "old" / "model_index.json"
    index.write_text(index.read_text().replace('"motion_transformer"', '"motion_generator"'))
    loaded = ModaTalkingHeadPipeline.from_pretrained(tmp_path / "old", **options)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(talk(loaded).motion, talk(pipe).motion, rtol=1e-4, atol=1e-4)
    trained = save_pipeline(tmp_path / "old", tmp_path / "new", motion_transformer=pipe.motion_transformer)
    assert not (trained / "motion_generator").exists() and "motion_generator" not in read_index(trained)
    assert '"motion_transformer"' in (trained / "model_index.json").read_text()
    ModaTalkingHeadPipeline.from_pretrained(trained)


# --- what moves -------------------------------------------------------------------------------------------------------


def test_motion_and_keypoints_are_two_ways_to_say_the_same(pipe):
    own = pipe.prepare_portrait(make_image(), box=BOX).keypoints
    back = keypoints_of(motion_of(own), own.kp)
    torch.testing.assert_close(transform_keypoints(back), transform_keypoints(own), rtol=0, atol=1e-5)
    motion = motion_of(own)
    torch.testing.assert_close(motion[0, 5] * 2, own.scale[0, 0])
    # Radians of the project's own angles: small ones are the same numbers in any order of the axes.
    small = motion_of(
        type(own)(
            **{**vars(own), "pitch": torch.tensor([2.0]), "yaw": torch.tensor([3.0]), "roll": torch.tensor([1.0])}
        )
    )
    torch.testing.assert_close(small[0, :3].rad2deg(), torch.tensor([3.0, 2.0, 1.0]), rtol=0, atol=0.12)


def test_emotion_is_used_and_checked(pipe):
    none, happy = talk(pipe).motion, talk(pipe, emotion="happiness").motion
    assert (none - happy).abs().max() > 1e-4
    keys = talk(pipe, emotion=[(0.0, "happiness"), (0.5, "sadness")], audio=make_audio(1.3)).motion
    same = talk(pipe, emotion="happiness", audio=make_audio(1.3)).motion
    torch.testing.assert_close(keys[:, :6], same[:, :6])  # the first window is happy
    assert (keys[:, 20:] - same[:, 20:]).abs().max() > 1e-4
    for bad, message in (
        ("hungry", "`emotion` knows the names .*'happiness'.*, got 'hungry'"),
        (0.5, "`emotion` must be a name or a dict of weights, or keyframes"),
        ([(1.0, "fear"), (0.5, "fear")], "`emotion` must have keyframes at rising times"),
    ):
        with pytest.raises(ValueError, match=message):
            talk(pipe, emotion=bad)
    for same_form in ("happy", {"happy": 0.6}, {"happiness": 1.0, "fear": 0.2}, [(0.0, "happy")]):
        assert torch.equal(talk(pipe, emotion=same_form).motion, happy)
    assert torch.equal(talk(pipe, emotion={}).motion, talk(pipe, emotion="neutral").motion)
    assert pipe.emotions[4] == "happiness" and len(pipe.emotions) == 8


def test_guidance_has_a_scale_for_each_condition_and_for_both(pipe):
    plain = talk(pipe, emotion="anger", guidance_scale={"audio": 0.0}).motion
    for scale in ({"audio": 2.0}, {"audio": 0.0, "emotion": 2.0}, {"audio": 0.0, "audio+emotion": 2.0}):
        assert (talk(pipe, emotion="anger", guidance_scale=scale).motion - plain).abs().max() > 1e-5
    with pytest.raises(ValueError, match="`guidance_scale` knows the names .'audio', 'emotion'., got 'gaze'"):
        talk(pipe, guidance_scale={"gaze": 1.0})


def test_head_motion_zero_holds_the_head_and_leaves_the_expression(pipe):
    own, moving, still = pipe.prepare_portrait(make_image(), box=BOX).motion, talk(pipe), talk(pipe, head_motion=0.0)
    torch.testing.assert_close(still.motion[..., :6], own[:, None, :6].expand_as(still.motion[..., :6]))
    torch.testing.assert_close(still.motion[..., 6:], moving.motion[..., 6:])


def test_expression_edits_move_their_points_alone(pipe):
    plain = talk(pipe).motion
    for name, points in EDITS.items():
        change = (talk(pipe, expression={name: 1.0}).motion - plain)[0, :, 6:].unflatten(1, (21, 3)).norm(dim=-1)
        moved = set((change.max(0).values > 1e-5).nonzero().flatten().tolist())
        assert moved == set(points), name
    ramp = talk(pipe, expression=[(0.0, {}), (0.8, {"smile": 1.0})]).motion - plain
    assert ramp[0, 0].abs().max() < 1e-6 < ramp[0, 10].abs().max() < ramp[0, 20].abs().max()
    with pytest.raises(ValueError, match="`expression` knows the names .*'smile'.*, got 'sneeze'"):
        talk(pipe, expression={"sneeze": 1.0})
    with pytest.raises(ValueError, match=r"`expression` must have strengths in \[-2, 2\], got 3"):
        talk(pipe, expression={"smile": 3})


def test_a_short_first_window_lets_frames_come_early(pipe):
    received = []

    def microphone():
        for i in range(30):
            received.append(i)
            yield make_audio(0.04, seed=i)

    next(pipe.stream(make_image(), microphone(), first_window=5, generator=generator(), output_type="pt", **OPTIONS))
    assert len(received) == 6  # five frames and one of look-ahead
    with pytest.raises(ValueError, match=r"`first_window` must be a whole number in \[4, 10\], got 3"):
        talk(pipe, first_window=3)


def test_talk_to_file_writes_what_a_call_makes(pipe, tmp_path):
    audio = make_audio(0.9)
    out = pipe.talk_to_file(
        tmp_path / "out.mp4", make_image(), audio, generator=generator(), crf=4, provenance=False, **OPTIONS
    )
    expected = talk(pipe, audio, output_type="pt")
    assert torch.equal(out.motion, expected.motion)
    frames = np.stack(list(read_video(tmp_path / "out.mp4")))
    assert frames.shape == (23, 32, 32, 3)
    assert np.abs(frames.mean(-1) - expected.frames.mean(1).numpy() * 255).mean() < 8  # of noise, H.264 keeps little


# --- driving ----------------------------------------------------------------------------------------------------------


def driving_frames(count=5):
    return [np.roll(make_image(7), 2 * i, axis=1) for i in range(count)]


def test_animate_relative_starts_from_the_portrait_and_absolute_does_not(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "driving_smoothing", 0.0)
    portrait = pipe.prepare_portrait(make_image(), box=BOX)
    out = pipe.animate(portrait, driving_frames(), driving_box=BOX, output_type="pt")
    assert out.frames.shape == (5, 3, 32, 32) and out.motion_spec == KEYPOINT_SPEC
    torch.testing.assert_close(out.motion[:, 0], portrait.motion, rtol=0, atol=1e-5)
    driving = pipe.encode_keypoints(driving_frames(), box=BOX)
    moved = keypoints_of(out.motion[0], portrait.keypoints.kp)
    torch.testing.assert_close(moved.exp - moved.exp[:1], driving.exp - driving.exp[:1], rtol=0, atol=1e-5)
    absolute = pipe.animate(portrait, driving_frames(), driving_box=BOX, relative=False, output_type="latent").motion
    moved = keypoints_of(absolute[0], portrait.keypoints.kp)
    torch.testing.assert_close(
        moved.exp[:, list(LIP_KEYPOINTS)], driving.exp[:, list(LIP_KEYPOINTS)], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(moved.exp[:, [0, 7, 10]], portrait.keypoints.exp[:, [0, 7, 10]].expand(5, -1, -1))
    torch.testing.assert_close(moved.scale, portrait.keypoints.scale.expand(5, -1))
    torch.testing.assert_close(
        moved.rotation, euler_matrix(driving.pitch, driving.yaw, driving.roll), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("region", ["expression", "pose", "lips", "eyes"])
def test_a_region_leaves_the_rest_as_it_is(pipe, region):
    portrait = pipe.prepare_portrait(make_image(), box=BOX)
    motion = pipe.animate(portrait, driving_frames(), driving_box=BOX, region=region, output_type="latent").motion[0]
    change = (motion - portrait.motion).abs()
    exp = change[:, 6:].unflatten(1, (21, 3)).amax((0, 2))
    points = {"expression": range(21), "pose": (), "lips": LIP_KEYPOINTS, "eyes": EYE_KEYPOINTS}[region]
    assert set((exp > 1e-6).nonzero().flatten().tolist()) == set(points)
    assert (change[:, :5].max() > 1e-5) == (region == "pose")


def test_options_of_driving_change_the_frames(pipe):
    portrait = pipe.prepare_portrait(make_image(), box=BOX)

    def frames(**options):
        return pipe.animate(portrait, driving_frames(), driving_box=BOX, output_type="pt", **options).frames

    plain = frames()
    for options in (
        {"stitching": False},
        {"driving_multiplier": 2.0},
        {"expression_friendly": True},
        {"eye_ratio": 0.1},
        {"lip_ratio": 0.5},
        {"expression": {"smile": 1.0}},
    ):
        assert (frames(**options) - plain).abs().max() > 1e-4, options
    still = frames(driving_multiplier=0.0)
    torch.testing.assert_close(still, still[:1].expand_as(still), rtol=0, atol=0.02)
    whole = pipe.animate(make_image(), driving_frames(), driving_box=BOX, box=BOX, paste_back=True, output_type="pt")
    assert whole.frames.shape == (5, 3, 96, 88)
    for bad, message in (
        ({"region": "nose"}, "`region` must be one of .*'lips'.*, got 'nose'"),
        ({"driving_multiplier": -1}, r"`driving_multiplier` must be a number in \[0.0, 3.0\], got -1"),
        ({"lip_ratio": 2}, r"`lip_ratio` must be a number in \[0.0, 1.0\], got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            frames(**bad)


def test_a_saved_template_moves_another_portrait(pipe, tmp_path):
    out = pipe.animate(make_image(), driving_frames(), driving_box=BOX, box=BOX, fps="30000/1001", output_type="pt")
    out.save(tmp_path / "template.safetensors")
    motion, spec, fps, _ = load_motion(tmp_path / "template.safetensors")
    assert spec == KEYPOINT_SPEC and fps == Fraction(30000, 1001) and torch.equal(motion, out.motion)
    again = pipe.render(make_image(), tmp_path / "template.safetensors", fps="30000/1001", box=BOX, output_type="pt")
    torch.testing.assert_close(again.frames, out.frames, rtol=0, atol=0.02)  # bfloat16 where the CPU has it
    other = pipe.prepare_portrait(make_image(2), box=BOX)
    moved = pipe.render(other, tmp_path / "template.safetensors", relative=True, output_type="latent").motion
    torch.testing.assert_close(moved[:, 0], other.motion, rtol=0, atol=1e-5)
    lips = pipe.render(other, motion, relative=True, region="lips", output_type="latent").motion
    torch.testing.assert_close(lips[..., :6], other.motion[:, None, :6].expand_as(lips[..., :6]), rtol=0, atol=1e-5)


def test_animate_by_a_video_file_keeps_its_rate_and_audio(pipe, tmp_path):
    with VideoWriter(tmp_path / "drive.mp4", "30000/1001", (88, 96), (make_audio(0.2), 16_000)) as writer:
        for frame in driving_frames():
            writer.write(frame)
    out = pipe.animate(make_image(), tmp_path / "drive.mp4", driving_box=BOX, box=BOX, output_type="np")
    assert out.fps == Fraction(30000, 1001) and len(out.frames) == 5
    assert out.sampling_rate == 48_000 and np.abs(out.audio).max() > 0.1


def test_retarget_changes_one_image(pipe):
    portrait = pipe.prepare_portrait(make_image(), box=BOX)
    own = np.asarray(pipe.retarget(portrait), np.float32)
    for options in ({"eyes": 0.05}, {"lips": 0.4}, {"expression": {"brow": 1.0}}, {"rotation_deg": (15, 0, 0)}):
        assert np.abs(np.asarray(pipe.retarget(portrait, **options), np.float32) - own).max() > 1, options
    eyes, lips = pipe.openness(portrait)
    assert eyes.shape == (1, 2) and lips.shape == (1, 1) and (eyes >= 0).all()
    with pytest.raises(ValueError, match="`rotation_deg` must be three angles within 90 degrees"):
        pipe.retarget(portrait, rotation_deg=(100, 0, 0))


# --- a renderer alone, other components, bad input --------------------------------------------------------------------


def test_a_renderer_alone_animates_and_rejects_audio(pipe, tmp_path):
    parts = {name: make_moda_components()[name] for name in RENDERER}
    LivePortraitPipeline(**parts).save_pretrained(tmp_path / "renderer")
    alone = LivePortraitPipeline.from_pretrained(tmp_path / "renderer")
    alone.set_progress_bar_config(disable=True)
    out = alone.animate(make_image(), driving_frames(), driving_box=BOX, box=BOX, output_type="pt")
    expected = pipe.animate(make_image(), driving_frames(), driving_box=BOX, box=BOX, output_type="pt")
    torch.testing.assert_close(out.frames, expected.frames, rtol=0, atol=1e-3)
    for run in (
        lambda: alone(make_image(), make_audio(0.5), box=BOX),
        lambda: alone.stream(make_image(), make_audio(0.5), box=BOX),
        lambda: alone.talk_to_file(tmp_path / "out.mp4", make_image(), make_audio(0.5), box=BOX),
    ):
        with pytest.raises(ValueError, match="`audio` needs a pipeline that makes motion of speech; LivePort"):
            run()
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheduler": DDPMScheduler()}, "`scheduler` must be one for flow matching.*got DDPMScheduler"),
        ({"scheduler": None}, "`scheduler` must be a SchedulerMixin, got NoneType"),
        ({"renderer": None}, "`renderer` must be a LivePortraitRenderer, got NoneType"),
    ],
)
def test_components_that_do_not_fit_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        ModaTalkingHeadPipeline(**{**make_moda_components(), **change})


def test_weights_of_another_class_are_rejected(tmp_path):
    ModaTalkingHeadPipeline(**make_moda_components()).save_pretrained(tmp_path / "model")
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(tmp_path / "model" / "face_analyzer" / name, tmp_path / "model" / "renderer" / name)
    with pytest.raises(ValueError, match="`renderer` must find all weights of LivePortraitRenderer"):
        ModaTalkingHeadPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "nowhere.png"}, "`image` must be an existing image file"),
        ({"audio": "nowhere.wav"}, "`audio` must be an existing audio or video file"),
        ({"image": np.full((96, 96, 3), 128, np.uint8), "box": None}, "`image` must show a face, but none was found"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole number in .1, 1,000., got 0"),
        ({"head_motion": -1}, "`head_motion` must be a number"),
        ({"guidance_scale": 2.0}, "`guidance_scale` must be a dict"),
        ({"output_size": 33}, "`output_size` must be one of .32., got 33"),
        ({"fps": 0}, "`fps` must be"),
        ({"generator": 3}, "`generator` must be a torch.Generator"),
        ({"callback_on_step_end": 3}, "`callback_on_step_end` must be callable"),
    ],
)
def test_bad_input_is_rejected_before_any_heavy_work(pipe, changes, message):
    heavy = []
    modules = (pipe.audio_encoder, pipe.motion_transformer, pipe.renderer.appearance_feature_extractor)
    handles = [module.register_forward_pre_hook(lambda *_: heavy.append(1)) for module in modules]
    options = {"image": make_image(), "audio": make_audio(0.5), **OPTIONS, **changes}
    try:
        with pytest.raises(ValueError, match=message):
            pipe(**options)
    finally:
        for handle in handles:
            handle.remove()
    assert not heavy


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("audio_encoder", ["payload.module", "Model"]),
        ("audio_encoder", ["os", "system"]),
        ("audio_encoder", ["vasa_hf.hub", "resolve"]),
        ("audio_encoder", ["transformers", "AutoModel"]),
        ("scheduler", ["payload", "Scheduler"]),
    ],
)
@pytest.mark.parametrize("lent", [True, False])
def test_components_of_foreign_classes_are_neither_imported_nor_run(tmp_path, monkeypatch, lent, name, entry):
    whole, thin = tmp_path / "whole", tmp_path / "thin"
    ModaTalkingHeadPipeline(**make_moda_components()).save_pretrained(whole)
    shutil.copytree(whole, thin)
    shutil.rmtree(thin / name)
    (tmp_path / "payload").mkdir()
    (tmp_path / "payload" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "payload" / "module.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((thin / "model_index.json").read_text())
    (thin / "model_index.json").write_text(json.dumps({**index, "_base": str(whole)}))
    spoilt = (whole if lent else thin) / "model_index.json"
    spoilt.write_text(json.dumps({**json.loads(spoilt.read_text()), name: entry}))
    for kind in (ModaTalkingHeadPipeline, LivePortraitPipeline):
        with pytest.raises(ValueError, match=f"`{name}` must be a component of vasa_hf, diffusers, transformers, got"):
            kind.from_pretrained(thin)
    assert not (tmp_path / "ran").exists()


def test_shared_components_are_safetensors_only(tmp_path):
    whole, thin = tmp_path / "whole", tmp_path / "thin"
    ModaTalkingHeadPipeline(**make_moda_components()).save_pretrained(whole)
    shutil.copytree(whole, thin)
    shutil.rmtree(thin / "audio_encoder")
    index = json.loads((thin / "model_index.json").read_text())
    (thin / "model_index.json").write_text(json.dumps({**index, "_base": str(whole)}))
    (whole / "audio_encoder" / "model.safetensors").unlink()
    torch.save(make_moda_components()["audio_encoder"].state_dict(), whole / "audio_encoder" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        ModaTalkingHeadPipeline.from_pretrained(thin)


def test_a_folder_loads_missing_components_from_another_model(tmp_path, caplog):
    """As `moda-small` has face analyzer and audio encoder from `vasa-small`; a saved copy is complete."""
    whole, thin, again = tmp_path / "whole", tmp_path / "thin", tmp_path / "again"
    pipe = ModaTalkingHeadPipeline(**make_moda_components())
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(whole)
    shutil.copytree(whole, thin)
    for name in ("face_analyzer", "image_processor", "audio_encoder", "audio_processor"):
        shutil.rmtree(thin / name)
    with pytest.raises(ValueError, match="must hold a whole pipeline"):
        ModaTalkingHeadPipeline.from_pretrained(thin)
    index = json.loads((thin / "model_index.json").read_text())
    (thin / "model_index.json").write_text(json.dumps({**index, "_base": str(whole)}))
    loaded = ModaTalkingHeadPipeline.from_pretrained(thin)
    loaded.set_progress_bar_config(disable=True)
    assert "ignored" not in caplog.text
    loaded.save_pretrained(again)
    shutil.rmtree(whole)
    saved = ModaTalkingHeadPipeline.from_pretrained(again)
    saved.set_progress_bar_config(disable=True)
    expected = talk(pipe)
    torch.testing.assert_close(talk(loaded).motion, expected.motion)
    torch.testing.assert_close(talk(saved).motion, expected.motion)
    with pytest.raises(ValueError, match="must be an embedded model, a folder or a repository"):
        ModaTalkingHeadPipeline.from_pretrained(thin)  # the other model is gone
