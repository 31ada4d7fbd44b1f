"""What every talking-face pipeline must do, as one mixin, and the tiny real components to do it with."""

import copy
import dataclasses
import inspect
import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import accelerate
import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import PipelineCallback
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2Model

from tests.testing_utils.face_data import IDS, make_canonical
from tests.testing_utils.fresh_process import reload_pipeline, run_in_fresh_process
from vasa_hf import (
    FaceAnalyzer,
    FaceImageProcessor,
    GaiaAutoencoder,
    GaiaMotionDenoiser,
    JoyVasaMotionDenoiser,
    LivePortraitRenderer,
    ModaMotionTransformer,
    Vasa1FaceAutoencoder,
    Vasa1MotionTransformer,
    VasaAudioProcessor,
)
from vasa_hf.models.autoencoder_gaia import TINY_CONFIG as GAIA_AUTOENCODER
from vasa_hf.models.motion_denoiser_gaia import TINY_CONFIG as GAIA_DENOISER
from vasa_hf.models.motion_denoiser_gaia import gaia_scheduler
from vasa_hf.models.motion_denoiser_joyvasa import joyvasa_scheduler
from vasa_hf.training.recipes.motion_transformer import make_scheduler

BOX = (20, 20, 70, 76)


def make_image(seed=0, size=(96, 88)):
    """An image with structure at several scales, uint8 `(height, width, 3)`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / 16.0
    waves = [np.sin(rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y + rng.uniform(0, 6)) for _ in range(3)]
    noise = rng.standard_normal((*size, 3)) * 0.1
    return ((np.stack(waves, -1) * 0.4 + noise).clip(-1, 1) * 127 + 128).astype(np.uint8)


def make_audio(seconds, seed=0, rate=16_000):
    """A voice-like audio: harmonics under a slow envelope; float32 `(samples,)`."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * 130 * k * time) / k for k in range(1, 6))
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * time + rng.uniform(0, 6))
    return (0.2 * tone * envelope + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_analyzer():
    return FaceAnalyzer(
        detector_widths=(4, 4, 4, 4, 8),
        detector_depths=(1, 1, 1, 1),
        detector_pyramid_channels=4,
        landmarker_widths=(4, 4, 4, 4, 8),
        landmarker_depths=(1, 1, 1, 1),
        landmarker_pyramid_channels=4,
        detector_size=64,
        crop_size=32,
    )


def make_audio_encoder():
    return Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(4,) * 7,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
        )
    )


def make_moda_components():
    """The same for MoDA: windows of 10 frames that share 3, images of 32 pixels."""
    torch.manual_seed(0)
    renderer = LivePortraitRenderer(
        image_size=32,
        block_expansion=4,
        max_features=8,
        feature_channels=4,
        feature_depth=4,
        num_resblocks=1,
        motion_depths=(1, 1, 1, 1),
        motion_dims=(4, 4, 8, 8),
        hourglass_block_expansion=4,
        hourglass_max_features=8,
        hourglass_num_blocks=3,
        compress_channels=2,
        generator_num_blocks=1,
        spade_channels=4,
        upscale=1,
    )
    generator = ModaMotionTransformer(
        hidden_size=16,
        num_heads=2,
        num_four_stream=1,
        num_two_stream=1,
        num_single_stream=1,
        audio_layers=1,
        audio_dim=16,
        window=10,
        overlap=3,
    )
    with torch.no_grad():
        # Parts that start at zero would hide broken paths, and random keypoints would leave the image.
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for parameter in renderer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        detector = renderer.motion_extractor.detector
        for head, spread in ((detector.fc_kp, 0.3), (detector.fc_exp, 0.01), (detector.fc_t, 0.05)):
            head.bias.copy_(spread * torch.randn_like(head.bias))
        detector.fc_scale.bias.fill_(1.2)
        generator.motion_std.copy_(torch.tensor([0.02] * 63 + [0.05, 0.05, 0.05, 0.0, 8.0, 12.0, 4.0]))
        generator.motion_mean[63] = 1.2
    return {
        "face_analyzer": make_analyzer().eval(),
        "image_processor": FaceImageProcessor(size=32),
        "renderer": renderer.eval(),
        "motion_transformer": generator.eval(),
        "audio_encoder": make_audio_encoder().eval(),
        "audio_processor": VasaAudioProcessor(context_frames=2, lookahead_frames=1),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def make_joyvasa_components():
    """JoyVASA's generator before the same renderer: windows of 10 frames with a context of 3."""
    torch.manual_seed(1)
    denoiser = JoyVasaMotionDenoiser(audio_dim=16, hidden_size=16, num_layers=1, num_heads=2, window=10, context=3)
    denoiser.expression_std.fill_(0.02)
    denoiser.pose_min.copy_(torch.tensor([1.1, -0.1, -0.1, 0, -10, -10, -10]))
    denoiser.pose_max.copy_(torch.tensor([1.3, 0.1, 0.1, 0.01, 10, 10, 10]))
    return {
        **make_moda_components(),
        "motion_transformer": denoiser.eval(),
        "audio_processor": VasaAudioProcessor(context_frames=0, lookahead_frames=0, padding="reflect"),
        "scheduler": joyvasa_scheduler(50),
    }


def make_vasa1_components(source_passthrough=True):
    """Real classes with dimensions of 4 to 32 and random weights: windows of 10 frames with a context of 3."""
    torch.manual_seed(0)
    analyzer = make_analyzer()
    autoencoder = Vasa1FaceAutoencoder(
        image_size=32,
        encoder_channels=[4, 4, 8, 8],
        volume_channels=4,
        volume_depth=4,
        num_volume_blocks=1,
        warp_channels=[8, 4],
        warp_size=8,
        decoder_channels=[8, 8, 8, 8],
        num_decoder_blocks=1,
        identity_channels=[4, 8],
        num_identity_blocks=1,
        identity_size=16,
        motion_widths=[4, 4, 8, 8, 8],
        motion_depths=[1, 1, 1, 1],
        motion_pyramid_channels=8,
        motion_points=6,
        pose_size=32,
        dynamics_size=32,
        identity_dim=4,
        dynamics_dim=4,
        source_passthrough=source_passthrough,
    )
    encoder = make_audio_encoder()
    transformer = Vasa1MotionTransformer(
        motion_dim=10, audio_dim=16, hidden_size=16, num_layers=2, num_heads=2, window=10, context=3
    )
    with torch.no_grad():
        # Parts that start at zero would hide broken paths, and motion of unit size would leave the image.
        for parameter in (*transformer.parameters(), *autoencoder.target_warp.parameters()):
            parameter.add_(0.05 * torch.randn_like(parameter))
        transformer.motion_std.copy_(torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 1, 1, 1, 1]))
        transformer.motion_mean.copy_(torch.tensor([0.0] * 6 + [0.1, -0.2, 0.3, 0.0]))
    return {
        "face_analyzer": analyzer.eval(),
        "face_autoencoder": autoencoder.eval(),
        "audio_encoder": encoder.eval(),
        "audio_processor": VasaAudioProcessor(context_frames=2, lookahead_frames=1),
        "image_processor": FaceImageProcessor(size=32),
        "motion_transformer": transformer.eval(),
        "scheduler": make_scheduler(),
    }


def make_gaia_denoiser(audio_dim=16, **changes):
    """Windows of 10 frames that share 3, of motion of 12 numbers."""
    denoiser = GaiaMotionDenoiser(
        **{
            **GAIA_DENOISER,
            "motion_dim": 12,
            "audio_dim": audio_dim,
            "window": 10,
            "context": 3,
            "residual": False,
            **changes,
        }
    )
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    denoiser.motion_std.fill_(1.5)
    denoiser.pose_std.fill_(1e-7)  # the predicted head keeps still, so that motion is latents alone
    return denoiser.eval()


def make_gaia_components():
    """GAIA with images of 32 pixels and latents of 2 x 2."""
    torch.manual_seed(0)
    analyzer = make_analyzer()
    analyzer.canonical.copy_(torch.from_numpy(make_canonical()[IDS]))  # head poses are measured by it
    autoencoder = GaiaAutoencoder(**GAIA_AUTOENCODER)
    with torch.no_grad():  # parts that start near zero would hide broken paths
        for parameter in autoencoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return {
        "face_analyzer": analyzer.eval(),
        "image_processor": FaceImageProcessor(size=32),
        "autoencoder": autoencoder.eval(),
        "audio_encoder": make_audio_encoder().eval(),
        "audio_processor": VasaAudioProcessor(context_frames=2, lookahead_frames=1),
        "motion_transformer": make_gaia_denoiser(),
        "scheduler": gaia_scheduler(),
    }


def call(pipe, image=None, audio=None, **changes):
    """A short video of a made-up face and voice, as tensors; `changes` are options of the call."""
    options = {"output_type": "pt", "generator": generator(), "num_inference_steps": 2, "box": BOX, **changes}
    return pipe(make_image() if image is None else image, make_audio(0.8) if audio is None else audio, **options)


class Watch:
    """Records the keyword arguments of every pass through a module."""

    def __init__(self, module):
        self.calls = []
        self.handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: self.calls.append(kwargs), with_kwargs=True
        )

    def __enter__(self):
        return self.calls

    def __exit__(self, *_):
        self.handle.remove()


class WatchedOffload:
    """Watches the hooks of `enable_model_cpu_offload`: which models are on the device, and who ran while absent."""

    def __init__(self, pipe):
        pipe.enable_model_cpu_offload(device="cpu")
        self.pipe, self.fired, self.loaded, self.absent = pipe, set(), set(), []
        self.models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        free = pipe.maybe_free_model_hooks

        def freed():
            free()  # removes the hooks and makes new ones
            self.watch()

        pipe.maybe_free_model_hooks = freed
        for name, model in self.models.items():
            for module in model.modules():
                if not list(module.children()):
                    module.register_forward_pre_hook(lambda *_, name=name: self.run(name))
        self.watch()

    def watch(self):
        self.loaded.clear()
        for name, model in self.models.items():
            hook = model._hf_hook
            hook.pre_forward = self.before(name, hook.pre_forward)
            hook.init_hook = self.offloading(name, hook.init_hook)

    def before(self, name, pre_forward):
        def watched(module, *args, **kwargs):
            self.fired.add(name)
            self.loaded.add(name)
            return pre_forward(module, *args, **kwargs)

        return watched

    def offloading(self, name, init_hook):
        def watched(module):
            self.loaded.discard(name)
            return init_hook(module)

        return watched

    def run(self, name):
        if name not in self.loaded:
            self.absent.append(name)

    def check_other_drivers(self, subject, **options):
        """After a call: detect a face and encode a video, too; then every model was there when it ran, and is freed."""
        with pytest.raises(ValueError, match="face"):
            self.pipe.encode_video([make_image()])
        frames = [make_image(seed) for seed in range(2)]
        self.pipe.animate(subject, frames, driving_box=BOX, output_type="pt", **options)
        assert not self.absent and not self.loaded and self.fired == self.models.keys()


def check_sequential_offload(pipe, monkeypatch, run, subject, **options):
    """Outside of its call a layer has no weights: code that reads them elsewhere fails."""
    offload = accelerate.cpu_offload
    # diffusers offloads to "cpu:0", which accelerate takes for another device than that of the weights.
    monkeypatch.setattr(
        accelerate, "cpu_offload", lambda model, device, **kwargs: offload(model, torch.device("cpu"), **kwargs)
    )
    expected = run()
    pipe.enable_sequential_cpu_offload(device="cpu")
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    offloaded = [model for name, model in models.items() if name not in pipe._exclude_from_cpu_offload]
    assert len(offloaded) >= 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the hooks do not support the threads that decode on a CPU
    try:
        for _ in range(2):
            out = run()
            torch.testing.assert_close(out.motion, expected.motion, rtol=1e-4, atol=1e-4)
            assert (out.frames - expected.frames).abs().max() < 0.02  # bfloat16 where the CPU has it
            for model in offloaded:  # a hooked method other than `forward` leaves the model's own parameters loaded
                assert all(weight.is_meta for name, weight in model.named_parameters() if "." in name)
        frames = [make_image(seed) for seed in range(2)]
        pipe.animate(subject, frames, driving_box=BOX, output_type="pt", **options)
        with pytest.raises(ValueError, match="face"):
            pipe.encode_video([make_image()])
    finally:
        torch.set_num_threads(threads)


class PipelineTesterMixin:
    """Subclasses give `pipeline_class`, `make_components()` and `options` for a quick call.

    A call takes an image and an audio, and returns frames and motion.
    """

    pipeline_class = None
    options = {}
    drawing = {"box": BOX}
    subject = staticmethod(make_image)

    def make_components(self):
        raise NotImplementedError

    def make_pipeline(self, **changes):
        pipe = self.pipeline_class(**{**self.make_components(), **changes})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, pipe, image=None, audio=None, **changes):
        options = {"output_type": "pt", "generator": generator(), **self.options, **changes}
        image = make_image() if image is None else image
        return pipe(image, make_audio(1.3) if audio is None else audio, **options)

    def num_windows(self, frames):
        return -(-frames // 10)

    def timesteps(self, pipe, steps):
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(steps)
        return [int(timestep) for timestep in scheduler.timesteps]

    def stream(self, pipe, chunks, image=None, **changes):
        options = {"output_type": "pt", "generator": generator(), **self.options, **changes}
        return pipe.stream(make_image() if image is None else image, chunks, **options)

    def test_same_seed_same_result_another_seed_another(self):
        pipe = self.make_pipeline()
        first, again, other = self.call(pipe), self.call(pipe), self.call(pipe, generator=generator(1))
        assert torch.equal(first.motion, again.motion) and torch.equal(first.frames, again.frames)
        assert (first.motion - other.motion).abs().max() > 1e-3
        assert (first.frames - other.frames).abs().max() > 1e-3

    def test_another_sound_another_motion(self):
        pipe = self.make_pipeline()
        assert (self.call(pipe).motion - self.call(pipe, audio=make_audio(1.3, seed=5)).motion).abs().max() > 1e-4

    def test_dict_equals_tuple(self):
        pipe = self.make_pipeline()
        as_tuple = self.call(pipe, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert torch.equal(as_tuple[0], self.call(pipe).frames)

    @pytest.mark.parametrize("name", ["__call__", "stream", "animate", "render"])
    def test_signatures_show_the_systems_own_options(self, name):
        kind = self.pipeline_class
        options = (kind.controls_type if name in ("__call__", "stream") else kind.transfer_type), kind.view_type
        parameters = inspect.signature(getattr(kind, name)).parameters
        for field in itertools.chain(*map(dataclasses.fields, options)):
            assert parameters[field.name].default == field.default
            assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert "options" not in parameters and ("avatar" in parameters) == (kind.subject_name == "avatar")
        if name != "stream":  # its docstring refers to that of `__call__`
            documented = re.findall(r"^ {4}(\w+) \(", inspect.getdoc(getattr(kind, name)), flags=re.MULTILINE)
            assert documented == list(parameters)[1:]

    def test_output_types_agree(self):
        pipe = self.make_pipeline()
        audio = make_audio(0.4)
        tensor = self.call(pipe, audio=audio).frames
        array = self.call(pipe, audio=audio, output_type="np").frames
        images = self.call(pipe, audio=audio, output_type="pil").frames
        assert tensor.shape == (10, 3, 32, 32) and 0 <= tensor.min() and tensor.max() <= 1
        np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
        np.testing.assert_allclose(np.stack([np.asarray(image) for image in images]), array * 255, atol=0.501)
        latent = self.call(pipe, audio=audio, output_type="latent")
        assert torch.equal(latent.frames, self.call(pipe, audio=audio).motion[0])

    def test_batch_equals_single(self):
        """Also where the audios have unequal lengths and end in different windows."""
        pipe = self.make_pipeline()
        pipe.cpu_bfloat16 = False  # parts of other lengths are rounded otherwise
        images = [make_image(0), make_image(1), make_image(2)]
        audios = [make_audio(1.3, 0), make_audio(0.5, 1), make_audio(0.85, 2)]
        batch = self.call(pipe, images, audios, generator=[generator(i) for i in range(3)])
        assert len(batch.videos) == len(batch.audio) == 3
        for i in range(3):
            single = self.call(pipe, images[i], audios[i], generator=generator(i))
            length = single.motion.shape[1]
            # Matrix products of other shapes sum in another order.
            torch.testing.assert_close(batch.motion[i, :length], single.motion[0], rtol=1e-4, atol=1e-4)
            assert batch.frames[i].shape == single.frames.shape
            torch.testing.assert_close(batch.frames[i], single.frames, rtol=1e-3, atol=1e-2)
            np.testing.assert_array_equal(batch.audio[i], single.audio)
            assert torch.equal(
                batch.motion[i, length:], batch.motion[i, length - 1 :][:1].expand_as(batch.motion[i, length:])
            )

    def test_one_image_with_many_audios_and_one_audio_with_many_images(self):
        pipe = self.make_pipeline()
        audios = [make_audio(0.4, 0), make_audio(0.4, 1)]
        out = self.call(pipe, make_image(), audios)
        assert len(out.videos) == 2 and out.motion.shape[0] == 2
        out = self.call(pipe, [make_image(0), make_image(1)], audios[0])
        assert len(out.videos) == 2 and (out.frames[0] - out.frames[1]).abs().max() > 0.1
        out = self.call(pipe, [make_image()], audios[0])
        assert isinstance(out.frames, list) and len(out.frames) == 1

    @pytest.mark.parametrize("fps", [25, "30000/1001", 10, 60])
    def test_stream_equals_offline(self, fps):
        pipe = self.make_pipeline()
        audio = make_audio(1.37)
        offline = self.call(pipe, audio=audio, fps=fps)
        chunks = list(self.stream(pipe, [audio[i : i + 1000] for i in range(0, len(audio), 1000)], fps=fps))
        # The same operations on the same numbers: nothing may differ.
        assert torch.equal(torch.cat([chunk.frames for chunk in chunks]), offline.frames)
        streamed = np.concatenate([chunk.audio for chunk in chunks])
        np.testing.assert_array_equal(streamed[: len(audio)], audio[: len(streamed)])
        assert abs(len(streamed) / 16_000 - len(offline.frames) / offline.fps) < 1e-4
        assert all(len(chunk.frames) == chunk.motion.shape[1] for chunk in chunks)

    def test_frames_come_before_the_audio_has_ended(self):
        pipe = self.make_pipeline()
        received = []

        def microphone():
            for i in range(40):
                received.append(i)
                yield make_audio(0.1, seed=i)

        chunks = self.stream(pipe, microphone())
        assert not received  # no audio is read before a frame is requested
        next(chunks)
        # A window of 10 frames and 1 of look-ahead are 0.44 s.
        assert len(received) == 5
        assert sum(len(chunk.frames) for chunk in chunks) > 90 and len(received) == 40

    def test_callback_sees_every_step_and_may_change_latents(self):
        pipe, seen = self.make_pipeline(), []

        def watch(pipeline, step, timestep, tensors):
            assert pipeline is pipe
            seen.append((step, int(timestep), sorted(tensors)))
            return tensors

        result = self.call(pipe, callback_on_step_end=watch)
        windows, steps = self.num_windows(result.motion.shape[1]), self.options["num_inference_steps"]
        assert [step for step, _, _ in seen] == list(range(windows * steps))
        assert pipe.num_timesteps == windows * steps and [t for _, t, _ in seen[:steps]] == self.timesteps(pipe, steps)
        assert seen[0][2] == ["latents"]
        assert torch.equal(result.motion, self.call(pipe).motion)
        inputs = pipe._callback_tensor_inputs
        self.call(pipe, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=inputs)
        assert seen[-1][2] == sorted(inputs)
        changed = self.call(
            pipe, callback_on_step_end=lambda pipe, step, timestep, tensors: {"latents": tensors["latents"] * 0}
        )
        still = changed.motion - changed.motion[:, :1]
        assert still.abs().max() < 1e-5  # all latents zero: the mean motion in every frame
        with pytest.raises(ValueError, match="`callback_on_step_end_tensor_inputs`.*'secrets'"):
            self.call(pipe, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["secrets"])

    def motion_of_many_steps(self, pipe):
        options = {**self.options, "num_inference_steps": 50, "output_type": "latent"}
        return self.call(pipe, audio=make_audio(0.8), **options).motion

    @pytest.fixture(scope="class")
    def swapped(self):
        """One pipeline for all schedulers, the configuration of its own, and the motion that this finds."""
        pipe = self.make_pipeline()
        return pipe, pipe.scheduler.config, self.motion_of_many_steps(pipe)

    @pytest.mark.parametrize(
        "scheduler",
        [
            DDPMScheduler,
            DEISMultistepScheduler,
            DPMSolverMultistepScheduler,
            EulerDiscreteScheduler,
            HeunDiscreteScheduler,
            UniPCMultistepScheduler,
        ],
    )
    def test_schedulers_can_be_swapped(self, scheduler, swapped):
        """Many small steps of any sampler lead near what DDIM finds, whose variance the random weights keep small."""
        pipe, config, ddim = swapped
        pipe.scheduler = scheduler.from_config(config)
        assert pipe.scheduler.config.prediction_type == "sample"
        motion = self.motion_of_many_steps(pipe)
        assert torch.isfinite(motion).all()
        again = self.motion_of_many_steps(pipe)
        assert torch.equal(motion, again)
        assert (motion - ddim).abs().mean() < 0.3 * ddim.std()

    def test_save_and_load_in_a_fresh_process(self, tmp_path):
        pipe = self.make_pipeline()
        pipe.save_pretrained(tmp_path / "pipe")
        names = [path.name for path in (tmp_path / "pipe").rglob("*") if path.is_file()]
        assert not [name for name in names if not name.endswith((".json", ".safetensors"))]
        image = torch.from_numpy(make_image()).permute(2, 0, 1).float() / 255
        audio = torch.from_numpy(make_audio(0.7))
        save_file({"image": image.contiguous(), "audio": audio}, tmp_path / "inputs.safetensors")
        options = {**self.options, "output_type": "pt"}
        files = [str(tmp_path / name) for name in ("pipe", "inputs.safetensors", "out.safetensors")]
        run_in_fresh_process(reload_pipeline, self.pipeline_class.__name__, *files, None, options)
        result = load_file(tmp_path / "out.safetensors")
        expected = self.call(pipe, image, audio, generator=generator(3))
        # Another process may have another number of threads and sum in another order.
        torch.testing.assert_close(result["motion"], expected.motion, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result["frames"], expected.frames, rtol=1e-3, atol=1e-2)

    def test_only_safetensors(self, tmp_path):
        pipe = self.make_pipeline()
        with pytest.raises(ValueError, match="`safe_serialization` must be True"):
            pipe.save_pretrained(tmp_path, safe_serialization=False)
        assert not list(tmp_path.iterdir())
        with pytest.raises(ValueError, match="`use_safetensors` must be True"):
            self.pipeline_class.from_pretrained(tmp_path, use_safetensors=False)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_near_float32(self, dtype):
        pipe = self.make_pipeline()
        audio = make_audio(0.4)
        expected = self.call(pipe, audio=audio)
        pipe.to(dtype)
        result = self.call(pipe, audio=audio)
        assert result.motion.dtype == result.frames.dtype == torch.float32
        # Two decimals of motion in units of about one, through ten layers and steps of bfloat16's 8 bits.
        assert (result.motion - expected.motion).abs().mean() < 0.1 * expected.motion.std()
        assert (result.frames - expected.frames).abs().mean() < 0.05

    @pytest.mark.gpu
    def test_cuda_equals_cpu(self):
        pipe = self.make_pipeline()
        expected = self.call(pipe)
        result = self.call(pipe.to("cuda"))
        assert result.frames.device.type == "cpu"
        torch.testing.assert_close(result.motion.cpu(), expected.motion, rtol=1e-2, atol=1e-2)
        assert (result.frames - expected.frames).abs().mean() < 0.01

    def test_calls_in_threads_do_not_disturb_each_other(self):
        """Each call has a scheduler of its own, so that the numbers of steps may differ."""
        pipe = self.make_pipeline()

        def motion(steps):
            options = {**self.options, "num_inference_steps": steps, "output_type": "latent"}
            return self.call(pipe, audio=make_audio(0.8), generator=generator(steps), **options).motion

        expected = [motion(steps) for steps in (2, 5, 3)]
        with ThreadPoolExecutor(3) as pool:
            # Another number of threads within an operation sums in another order.
            for made, wanted in zip(pool.map(motion, (2, 5, 3)), expected, strict=True):
                torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)

    def test_latents_are_the_noise_that_a_window_begins_with(self):
        pipe, audio = self.make_pipeline(), make_audio(0.36)  # nine frames: one window
        speech = pipe.create_motion_generator()
        shape = (1, speech.windows().window, speech.model.config.motion_dim)
        options = {"audio": audio, "output_type": "latent"}
        seeded = self.call(pipe, generator=generator(7), **options).motion
        noise = torch.randn(shape, generator=generator(7))
        after = generator(7)
        torch.randn(shape, generator=after)  # samplers with noise of their own go on from here
        given = self.call(pipe, latents=noise, generator=after, **options).motion
        assert torch.equal(given, seeded)
        assert torch.equal(
            self.call(pipe, latents=noise[:, None], generator=generator(7), **options).motion, given
        ) or ("generator" in inspect.signature(pipe.scheduler.step).parameters)
        with pytest.raises(ValueError, match="`latents` must be of shape"):
            self.call(pipe, latents=noise[..., :-1], **options)
        with pytest.raises(ValueError, match="`latents` must be a tensor"):
            self.call(pipe, latents=noise[0], **options)

    def test_timesteps_and_sigmas_are_taken_where_the_scheduler_takes_them(self):
        pipe, taken = self.make_pipeline(), []
        known = inspect.signature(pipe.scheduler.set_timesteps).parameters
        for name, value in (("timesteps", [900, 400]), ("sigmas", [1.0, 0.4])):
            options = {name: value, "output_type": "latent", "audio": make_audio(0.36)}
            if name not in known:
                with pytest.raises(ValueError, match=f"`{name}` must be None, as {type(pipe.scheduler).__name__}"):
                    self.call(pipe, **options)
                continue
            taken.append(name)
            out = self.call(pipe, **options)
            assert pipe.num_timesteps == 2 * self.num_windows(9) and torch.isfinite(out.motion).all()
        assert bool(taken) == bool({"timesteps", "sigmas"} & known.keys())

    def test_an_interrupted_call_makes_no_more_motion(self):
        pipe, seen = self.make_pipeline(), []

        class Stop(PipelineCallback):
            tensor_inputs = ["latents", "audio_features"]

            def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
                seen.append((step_index, sorted(callback_kwargs)))
                pipeline._interrupt = step_index == 3
                return callback_kwargs

        whole = self.call(pipe)
        out = self.call(pipe, callback_on_step_end=Stop(cutoff_step_index=None, cutoff_step_ratio=1.0))
        assert seen == [(step, ["audio_features", "latents"]) for step in range(4)] and pipe.interrupt
        assert len(out.frames) == len(whole.frames) and torch.isfinite(out.frames).all()
        still = out.frames[-1]
        assert torch.equal(out.frames[-2], still) or (out.frames[-2] - still).abs().max() < 0.02  # bfloat16
        assert not torch.equal(whole.frames[-2], whole.frames[-1])
        again = self.call(pipe)
        assert torch.equal(again.motion, whole.motion) and not pipe.interrupt

    def test_offloaded_models_are_there_when_they_run(self):
        """A model that is offloaded comes back by its hook, which every public method that is called must fire."""
        pipe = self.make_pipeline()
        expected = self.call(pipe, audio=make_audio(0.5))
        watched = WatchedOffload(pipe)
        out = self.call(pipe, audio=make_audio(0.5))
        assert torch.equal(out.motion, expected.motion) and torch.equal(out.frames, expected.frames)
        watched.check_other_drivers(self.subject(), **self.drawing)

    def test_layers_offloaded_one_by_one(self, monkeypatch):
        pipe = self.make_pipeline()
        check_sequential_offload(
            pipe, monkeypatch, lambda: self.call(pipe, audio=make_audio(0.5)), self.subject(), **self.drawing
        )

    def test_models_offloaded_in_groups_of_layers(self):
        pipe = self.make_pipeline()
        expected = self.call(pipe, audio=make_audio(0.5))
        pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
        out = self.call(pipe, audio=make_audio(0.5))
        assert torch.equal(out.motion, expected.motion) and torch.equal(out.frames, expected.frames)

    def test_progress_bar_counts_steps_and_frames(self, capsys):
        pipe = self.make_pipeline()
        pipe.set_progress_bar_config(disable=False)
        self.call(pipe, audio=make_audio(0.4))
        err = capsys.readouterr().err
        assert "motion" in err and f"{self.options['num_inference_steps']}/{self.options['num_inference_steps']}" in err
        assert "frames" in err and "10/10" in err
        pipe.set_progress_bar_config(disable=True)
        self.call(pipe, audio=make_audio(0.4))
        assert capsys.readouterr().err == ""
