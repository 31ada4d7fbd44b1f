"""VASA-1 by the paper's configurations, with only widths and sizes reduced: from prepared clips to a video."""

import json

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from tests.testing_utils.talking_video import ASSETS, talk, write
from vasa_hf import VasaTalkingFacePipeline
from vasa_hf.cli import main as command
from vasa_hf.data import prepare_job
from vasa_hf.models.face_autoencoder_vasa1 import PAPER_CONFIG, Vasa1FaceAutoencoder
from vasa_hf.models.motion_transformer_vasa1 import Vasa1MotionTransformer
from vasa_hf.training.options import configs
from vasa_hf.training.run import main

FACE = {
    "image_size": 64,
    "encoder_channels": [4, 8, 8, 8],
    "volume_channels": 4,
    "volume_depth": 4,
    "num_volume_blocks": 1,
    "warp_channels": [8, 8],
    "warp_size": 8,
    "decoder_channels": [8, 8, 8, 4],
    "num_decoder_blocks": 1,
    "identity_channels": [8, 8, 8, 8],
    "num_identity_blocks": 1,
    "identity_size": 32,
    "motion_widths": [4, 8, 8, 8, 8],
    "motion_depths": [1, 1, 1, 1],
    "motion_pyramid_channels": 8,
    "motion_points": 8,
    "pose_size": 32,
    "dynamics_size": 32,
    "identity_dim": 8,
}
MOTION = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}
LOOP = "--cpu --mixed-precision no --num-workers 0 --gradient-accumulation-steps 1 --log-every 1 --checkpoint-every 0"
LOOP = [*LOOP.split(), "--sample-every", "0", "--warmup-steps", "1"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Shards of two people's clips, made by `vasa-hf prepare`."""
    folder, (frames, voice) = tmp_path_factory.mktemp("paper"), talk()
    write(folder / "videos" / "anna" / "a.mp4", frames, voice)
    other = [np.ascontiguousarray(frame[:, ::-1][..., [0, 2, 1]]) for frame in frames]
    write(folder / "videos" / "ben" / "b.mp4", other, voice)
    prepare_job.prepare(folder / "videos", folder / "shards")
    return folder / "shards"


def train(recipe, output, *arguments):
    """Run the paper's configuration of a recipe; the log."""
    main([recipe, "--config", f"paper_{recipe}", "--output", str(output), *LOOP, *map(str, arguments)])
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def train_faces(clips, output, stage, *arguments):
    data = ["--data", clips, "--cache", output.parent / "cache", "--no-stream", "--stage", stage, "--batch-size", 4]
    return train("face_autoencoder", output, *data, "--model", json.dumps(FACE), "--learning-rate", 2e-3, *arguments)


def falls(log, name, first=4):
    before, after = (np.mean([line[name] for line in part]) for part in (log[:first], log[-first:]))
    return after < before


def test_from_prepared_clips_to_a_pipeline_that_talks(clips, tmp_path, capsys):
    # The face latent space, with a z_dyn of 512 numbers that nothing labels.
    log = train_faces(clips, tmp_path / "faces", "joint", "--max-steps", 30)
    weights = json.loads(configs()["paper_face_autoencoder"].read_text())
    used = {name.removeprefix("weight_") for name, value in weights.items() if name.startswith("weight_") and value}
    assert used == {"l1", "perceptual", "adversarial", "gaze", "contrastive", "consist", "cross_id", "motion"}
    assert used <= set(log[0]) and all(np.isfinite(list(line.values())).all() for line in log)
    assert falls(log, "l1") and falls(log, "perceptual") and falls(log, "motion")
    faces = Vasa1FaceAutoencoder.from_pretrained(tmp_path / "faces" / "face_autoencoder")
    assert faces.config.dynamics_dim == PAPER_CONFIG["dynamics_dim"] == 512
    assert not (tmp_path / "faces" / "landmark_dynamics.safetensors").exists()
    # Batch statistics that no landmarker has learnt are learnt here.
    assert any(value.abs().max() > 0 for name, value in faces.named_buffers() if name.endswith("running_mean"))

    # An encoder of Wav2Vec2-base's kind that wants normalised audio; then a start without a motion generator.
    encoder = Wav2Vec2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    encoder.conv_dim, encoder.num_conv_pos_embedding_groups = (8,) * 7, 2
    Wav2Vec2Model(encoder).save_pretrained(tmp_path / "wav2vec2")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "wav2vec2")
    parts = ["--face-autoencoder", tmp_path / "faces" / "face_autoencoder", "--audio-encoder", tmp_path / "wav2vec2"]
    assert command(["assemble", "-o", *map(str, [tmp_path / "start", *parts])]) == 0
    assert "vasa-hf train motion_transformer" in capsys.readouterr().out
    assert not list((tmp_path / "start").glob("*.safetensors"))  # what z_dyn meant to vasa-small
    assert command(["assemble", "-o", str(tmp_path / "start")]) == 2

    # The motion generator, with the paper's windows and drop rates.
    data = ["--pipeline", tmp_path / "start", "--data", clips, "--batch-size", 8, "--learning-rate", 3e-3]
    log = train("motion_transformer", tmp_path / "motion", *data, "--model", json.dumps(MOTION), "--max-steps", 30)
    assert falls(log, "position", 10)
    pipe = VasaTalkingFacePipeline.from_pretrained(tmp_path / "motion" / "pipeline")
    assert pipe.audio_processor.do_normalize and pipe.output_sizes == (64,)
    assert (pipe.motion_transformer.config.window, pipe.motion_transformer.config.motion_dim) == (50, 518)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(ASSETS / "portrait.jpg", (talk()[1][:16_000], 16_000), num_inference_steps=2, output_type="np")
    assert np.asarray(out.frames).shape == (25, 64, 64, 3) and np.isfinite(np.asarray(out.frames)).all()

    # The same from parts, as one command.
    parts += ["--motion-transformer", tmp_path / "motion" / "motion_transformer"]
    assert command(["assemble", "-o", *map(str, [tmp_path / "whole", *parts])]) == 0
    assert "loads; frames of 64 pixels" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["encoders", "renderer"])
def test_the_other_stages_learn_without_labels_of_z_dyn(clips, tmp_path, stage):
    log = train_faces(clips, tmp_path / stage, stage, "--max-steps", 12)
    assert falls(log, "pose" if stage == "encoders" else "l1")


def test_the_papers_size_on_meta():
    """Parameters of the presets: VASA-1's face model about 200M, its motion generator about 29M."""
    with torch.device("meta"):
        face, motion = Vasa1FaceAutoencoder(**PAPER_CONFIG), Vasa1MotionTransformer(motion_dim=518, audio_dim=768)
    counts = [sum(parameter.numel() for parameter in model.parameters()) / 1e6 for model in (face, motion)]
    assert counts == pytest.approx([185.4, 28.5], abs=0.1)
