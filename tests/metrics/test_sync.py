import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Model

import vasa_hf
from vasa_hf.data.landmark_dynamics import FaceLabels, LandmarkDynamics
from vasa_hf.evaluation.scoring import Scorer, VideoSample
from vasa_hf.hub import embedded_path
from vasa_hf.metrics.sync import (
    expert_embeds,
    expert_sync,
    mfcc,
    sync_score,
    sync_study,
    syncnet_crops,
    syncnet_score,
)
from vasa_hf.models.motion_transformer_vasa1 import Vasa1MotionTransformer
from vasa_hf.models.sync_expert import SyncExpert
from vasa_hf.models.syncnet import SyncNet
from vasa_hf.processors.audio import VasaAudioProcessor
from vasa_hf.training.motion_samples import sample_motion
from vasa_hf.training.recipes.motion_transformer import make_scheduler

EVAL = Path(__file__).parents[3] / "shared" / "data" / "eval"
EXPERT = embedded_path("vasa-small") / "sync_expert"
needs_data = pytest.mark.skipif(
    not ((EVAL / "clips.npz").exists() and EXPERT.is_dir()), reason="needs data and weights"
)


# ---- scores from vectors


def test_closed_form():
    """Orthogonal vectors are √2 apart: the right shift has distance 0, all others √2."""
    visual = torch.eye(60)[10:50]
    for late in (-4, 0, 6):  # the audio of frame t sits at t + late
        audio = torch.eye(60)[10 - late : 50 - late]
        score = sync_score(visual, audio, max_shift=10)
        assert score.offset_frames == -late
        assert score.distance == pytest.approx(0, abs=1e-4)  # pairwise_distance adds 1e-6 to each coordinate
        assert score.confidence == pytest.approx(math.sqrt(2), abs=1e-4)
        assert score.aligned_confidence == pytest.approx(math.sqrt(2) if late == 0 else 0.0, abs=1e-4)


def public_score(visual, audio, shift):
    """The public code's arithmetic, frame by frame."""
    padded = np.concatenate([np.zeros((shift, visual.shape[1])), audio, np.zeros((shift, visual.shape[1]))])
    rows = [[np.linalg.norm(visual[i] - padded[i + j]) for j in range(2 * shift + 1)] for i in range(len(visual))]
    mean = np.array(rows).mean(0)
    return np.median(mean) - mean.min(), mean.min(), shift - int(mean.argmin())


def test_zero_padding_is_the_public_codes_arithmetic():
    rng = np.random.default_rng(0)
    visual = rng.normal(size=(30, 16))
    audio = np.roll(visual, 2, axis=0) + 0.3 * rng.normal(size=(30, 16))
    score = sync_score(torch.from_numpy(visual), torch.from_numpy(audio), 15, padding="zeros")
    confidence, distance, offset = public_score(visual, audio, 15)
    assert offset == -2
    # pairwise_distance adds 1e-6 to each coordinate
    assert (score.confidence, score.distance) == pytest.approx((confidence, distance), abs=1e-4)
    assert score.offset_frames == offset


def test_shifts_that_a_short_clip_has_no_windows_for_are_left_out():
    score = sync_score(torch.randn(8, 4), torch.randn(8, 4), 15)
    assert torch.isfinite(score.distances).sum() == 2 * 4 + 1
    assert math.isfinite(score.confidence) and abs(score.offset_frames) <= 4


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("visual_embeds", {"visual_embeds": torch.zeros(10, 3)}),
        ("visual_embeds", {"visual_embeds": torch.zeros(3, 4), "audio_embeds": torch.zeros(3, 4)}),
        ("padding", {"padding": "reflect"}),
    ],
)
def test_wrong_vectors_raise(name, change):
    with pytest.raises(ValueError, match=f"`{name}`"):
        sync_score(**{"visual_embeds": torch.zeros(10, 4), "audio_embeds": torch.zeros(10, 4), **change})


# ---- SyncNet's input


def naive_mfcc(samples):
    """Straight from the definition, one number after another."""
    signal = [round(float(x) * 32768) for x in samples]
    signal = [signal[0]] + [signal[i] - 0.97 * signal[i - 1] for i in range(1, len(signal))]
    mel = [i * 2595 * math.log10(1 + 8000 / 700) / 27 for i in range(28)]
    corner = [math.floor(513 * 700 * (10 ** (m / 2595) - 1) / 16_000) for m in mel]
    rows = []
    for start in range(0, max(1, len(signal) - 400 + 160), 160):
        piece = (signal[start : start + 400] + [0.0] * 400)[:400]
        power = []
        for k in range(257):
            re = sum(x * math.cos(2 * math.pi * k * n / 512) for n, x in enumerate(piece))
            im = sum(x * math.sin(2 * math.pi * k * n / 512) for n, x in enumerate(piece))
            power.append((re * re + im * im) / 512)
        bands = []
        for j in range(26):
            total = sum(
                power[i] * (i - corner[j]) / (corner[j + 1] - corner[j]) for i in range(corner[j], corner[j + 1])
            )
            for i in range(corner[j + 1], corner[j + 2]):
                total += power[i] * (corner[j + 2] - i) / (corner[j + 2] - corner[j + 1])
            bands.append(math.log(total if total else np.finfo(float).eps))
        row = []
        for q in range(13):
            total = sum(b * math.cos(math.pi * q * (j + 0.5) / 26) for j, b in enumerate(bands))
            total *= math.sqrt((1 if q == 0 else 2) / 26)
            row.append(total * (1 + 11 * math.sin(math.pi * q / 22)))
        row[0] = math.log(sum(power) or np.finfo(float).eps)
        rows.append(row)
    return np.array(rows)


def test_mfcc_equals_the_definition():
    rng = np.random.default_rng(0)
    samples = 0.3 * np.sin(np.arange(650) * 0.3) + 0.1 * rng.normal(size=650)
    expected = naive_mfcc(samples)
    assert expected.shape == (3, 13)  # 1 + ceil((650 - 400) / 160)
    np.testing.assert_allclose(mfcc(samples), expected, rtol=1e-8, atol=1e-6)  # sums in another order


def test_mfcc_equals_python_speech_features():
    library = pytest.importorskip("python_speech_features")
    samples = np.random.default_rng(0).normal(size=16_000) * 0.1
    expected = library.mfcc(np.round(samples * 32768).clip(-32768, 32767), 16_000)
    np.testing.assert_allclose(mfcc(samples), expected, rtol=1e-8, atol=1e-8)


def test_mfcc_of_silence_and_of_one_column():
    cepstra = mfcc(np.zeros(1600))
    assert cepstra.shape == (9, 13)
    np.testing.assert_allclose(cepstra[:, 0], np.log(np.finfo(float).eps))
    np.testing.assert_allclose(cepstra[:, 1:], 0, atol=1e-9)
    assert mfcc(np.ones(100)).shape == (1, 13)


def test_crops_hold_what_the_public_pipeline_holds():
    """1.4 boxes wide and high, half a box above the centre to 0.9 below; grey beyond the image."""
    frames = np.zeros((20, 300, 400, 3), np.uint8)
    frames[..., 0] = np.arange(400)[None, None] * 255 // 400  # red says x
    frames[..., 1] = np.arange(300)[None, :, None] * 255 // 300  # green says y
    boxes = np.tile([150.0, 100, 250, 200], (20, 1))
    boxes[7] = [0, 0, 30, 30]  # one wrong detection
    crops = syncnet_crops(frames, boxes)
    assert crops.shape == (20, 224, 224, 3) and (crops == crops[0]).all()
    red, green = crops[0, ..., 0].astype(float) * 400 / 255, crops[0, ..., 1].astype(float) * 300 / 255
    assert red[0, 0] == pytest.approx(130, abs=3) and red[0, -1] == pytest.approx(270, abs=3)
    assert green[0, 0] == pytest.approx(100, abs=3) and green[-1, 0] == pytest.approx(240, abs=3)
    edge = syncnet_crops(frames[:3], np.tile([0.0, 0, 100, 100], (3, 1)))
    assert (edge[:, 100, 0] == 110).all()


@pytest.mark.parametrize(
    ("name", "frames", "boxes"),
    [
        ("frames", np.zeros((3, 8, 8, 3)), np.ones((3, 4))),
        ("boxes", np.zeros((3, 8, 8, 3), np.uint8), np.ones((3, 4))),
        ("boxes", np.zeros((3, 8, 8, 3), np.uint8), np.array([[0, 0, 1, 1]])),
    ],
)
def test_wrong_crops_raise(name, frames, boxes):
    with pytest.raises(ValueError, match=f"`{name}`"):
        syncnet_crops(frames, boxes)


def test_syncnet_score_pairs_windows_as_the_public_code():
    """Window i holds frames i to i + 4 and columns 4i to 4i + 19; the last five frames start none."""
    net = SyncNet(audio_widths=(2, 2, 2, 2, 2, 4), face_widths=(2, 2, 2, 2, 2, 4), embed_dim=5).eval()
    rng = np.random.default_rng(0)
    crops, samples = rng.integers(0, 256, (11, 224, 224, 3), dtype=np.uint8), 0.1 * rng.normal(size=11 * 640)
    score = syncnet_score(net, crops, samples, max_shift=3, batch_size=4)
    faces = torch.from_numpy(crops).float() / 127.5 - 1
    cepstra = torch.from_numpy(mfcc(samples)).float()
    with torch.no_grad():
        visual = [net.encode_faces(faces[i : i + 5].permute(3, 0, 1, 2)[None]) for i in range(6)]
        audio = [net.encode_audio(cepstra[4 * i : 4 * i + 20].T[None, None]) for i in range(6)]
    expected = public_score(torch.cat(visual).numpy(), torch.cat(audio).numpy(), 3)
    assert (score.confidence, score.distance, score.offset_frames) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "crops", "samples"),
    [
        ("crops", np.zeros((20, 96, 96, 3), np.uint8), np.ones(20 * 640)),
        ("crops", np.zeros((8, 224, 224, 3), np.uint8), np.ones(20 * 640)),
        ("crops", np.zeros((20, 224, 224, 3), np.uint8), np.ones(5000)),
        ("samples", np.zeros((20, 224, 224, 3), np.uint8), np.zeros(20 * 640)),
        ("samples", np.zeros((20, 224, 224, 3), np.uint8), np.full(20 * 640, np.nan)),
    ],
)
def test_clips_that_syncnet_cannot_judge_raise(name, crops, samples):
    with pytest.raises(ValueError, match=f"`{name}`"):
        syncnet_score(None, crops, samples)


# ---- the expert


@pytest.fixture(scope="module")
def tiny_expert():
    return SyncExpert(motion_dim=9, lips=(6, 9), num_mels=8, hidden_size=12, embed_dim=6, window=5).eval()


@pytest.mark.parametrize(
    ("name", "motion", "samples"),
    [
        ("motion", np.zeros((4, 9)), np.ones(20 * 640)),
        ("motion", np.zeros((20, 8)), np.ones(20 * 640)),
        ("motion", np.zeros((2, 20, 9)), np.ones(20 * 640)),
        ("samples", np.zeros((20, 9)), np.zeros(20 * 640)),
        ("samples", np.zeros((20, 9)), np.ones(19 * 640)),
        ("samples", np.zeros((20, 9)), np.ones((2, 20 * 640))),
        ("samples", np.zeros((20, 9)), np.zeros(0)),
    ],
)
def test_clips_that_the_expert_cannot_judge_raise(tiny_expert, name, motion, samples):
    with pytest.raises(ValueError, match=f"`{name}`"):
        expert_sync(tiny_expert, motion, samples)


def test_audio_that_runs_on_is_cut_and_a_last_fraction_may_be_missing(tiny_expert):
    motion, samples = np.random.randn(20, 9), 0.1 * np.random.randn(21 * 640).astype(np.float32)
    whole = expert_sync(tiny_expert, motion, samples[: 20 * 640])
    assert expert_sync(tiny_expert, motion, samples).confidence == whole.confidence
    assert math.isfinite(expert_sync(tiny_expert, motion, samples[: 20 * 640 - 100]).confidence)


@pytest.fixture(scope="module")
def real_clips():
    """Motion and audio of some clips of people whom the expert never met."""
    labels = FaceLabels.load(EVAL / "clips.npz")
    codes = LandmarkDynamics.load(embedded_path("vasa-small") / "landmark_dynamics.safetensors").encode(labels)
    motion = torch.cat([labels.pose[:, :5], labels.pose[:, 6:7], codes], 1)
    processor, clips = VasaAudioProcessor(), []
    for index in [*range(5), *range(6, 22)]:
        start, stop = labels.offsets[index : index + 2]
        samples = processor.load(EVAL / "clips" / f"{labels.names[index]}.mp4")
        clips.append((motion[start:stop], np.pad(samples, (0, 640 * 5))[: (stop - start) * 640]))
    return clips


@pytest.fixture(scope="module")
def expert():
    return SyncExpert.from_pretrained(EXPERT, torch_dtype=torch.float32).eval()


@needs_data
def test_embedded_expert_knows_strangers_in_sync(expert, real_clips):
    result = sync_study([expert_embeds(expert, *clip) for clip in real_clips])
    assert result["auc_shuffled"] > 0.9 and result["auc_shifted"] > 0.9
    assert result["offset_within_1"] > 0.6
    assert result["confidence"] > 1.2 * result["shuffled_confidence"]


def mean_aligned(expert, clips):
    return np.mean([expert_sync(expert, motion, samples).aligned_confidence for motion, samples in clips])


@needs_data
@pytest.mark.parametrize("frames", [-12, -6, -3, 3, 6, 12])
def test_shifted_audio_is_worse(expert, real_clips, frames):
    shifted = [(motion, np.roll(samples, frames * 640)) for motion, samples in real_clips]
    assert mean_aligned(expert, shifted) < 0.6 * mean_aligned(expert, real_clips)


@needs_data
def test_frozen_lips_and_strange_audio_are_worse(expert, real_clips):
    whole = mean_aligned(expert, real_clips)
    frozen = [(motion[:1].expand(len(motion), -1), samples) for motion, samples in real_clips]
    sounds = [samples for _, samples in real_clips]
    strange = [
        (motion[: len(sound) // 640], sound[: len(motion) * 640])
        for (motion, _), sound in zip(real_clips, sounds[1:] + sounds[:1], strict=True)
    ]
    for worse in (frozen, strange):
        assert mean_aligned(expert, worse) < 0.3 * whole


@needs_data
def test_noise_on_the_lips_is_worse(expert, real_clips):
    generator = torch.Generator().manual_seed(0)
    noisy = [(m + 1.5 * torch.randn(m.shape, generator=generator), samples) for m, samples in real_clips]
    assert mean_aligned(expert, noisy) < 0.8 * mean_aligned(expert, real_clips)


@needs_data
def test_level_of_the_audio_hardly_matters(expert, real_clips):
    quieter = [(motion, 0.4 * samples) for motion, samples in real_clips]
    assert mean_aligned(expert, quieter) == pytest.approx(mean_aligned(expert, real_clips), rel=0.15)


@pytest.mark.skipif(not EXPERT.is_dir(), reason="needs the embedded weights")
def test_embedded_expert_follows_the_embedded_generator(expert):
    """Without any data: lips generated from a voice fit that voice, and no other stretch of it."""
    folder = embedded_path("vasa-small")
    processor = VasaAudioProcessor.from_pretrained(folder, subfolder="audio_processor")
    encoder = Wav2Vec2Model.from_pretrained(folder, subfolder="audio_encoder", dtype=torch.float32).eval()
    generator = Vasa1MotionTransformer.from_pretrained(
        folder, subfolder="motion_transformer", torch_dtype=torch.float32
    )
    samples = torch.from_numpy(processor.load(Path(vasa_hf.__file__).parent / "assets" / "voice.flac"))[None]
    frames = generator.config.window
    count = min(3, samples.shape[1] // (640 * frames))
    with torch.no_grad():
        audio = [processor.window_features(encoder, samples, i * frames, frames) for i in range(count)]
    motion = sample_motion(
        generator.eval(),
        make_scheduler(),
        {"audio": torch.cat(audio)},
        guidance_scale={"audio": 0.5},
        generator=torch.Generator().manual_seed(0),
    )
    sounds = samples[0, : count * frames * 640].view(count, -1)
    scorer = Scorer({"sync_expert": expert})
    cases = [VideoSample(latent=motion[i], samples=sounds[i], other_samples=sounds[i - 1]) for i in range(count)]
    scores = [scorer.score(("expert_c", "expert_c_shuffled"), video) for video in cases]
    assert np.mean([score["expert_c"] for score in scores]) > 0.1
    assert np.mean([score["expert_c_shuffled"] for score in scores]) < 0.05
    # Two seconds are too few to tell frames apart; all of them together say where the lips are.
    assert abs(expert_sync(expert, motion.flatten(0, 1), sounds.flatten()).offset_frames) <= 1
