"""The command line before GAIA: `assemble --system gaia` and `talk --system gaia`, with tiny real models."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.testing_utils.gaia_parts import save_gaia_parts, save_text_model
from tests.testing_utils.pipelines import make_audio, make_gaia_components, make_gaia_denoiser, make_image
from vasa_hf import GaiaAvatarPipeline, load_motion
from vasa_hf.cli import main
from vasa_hf.hub import EMBEDDED
from vasa_hf.media import VideoReader, VideoWriter, read_provenance, read_video, save_wav

BOX = "20,20,70,76"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tokenizer, encoder = save_text_model(folder)
    GaiaAvatarPipeline(
        **make_gaia_components(),
        landmark_denoiser=make_gaia_denoiser(motion_dim=324, motion_channels=2, predicts="landmarks"),
        text_denoiser=make_gaia_denoiser(),
        text_encoder=encoder,
        text_tokenizer=tokenizer,
    ).save_pretrained(folder / "model")
    Image.fromarray(make_image()).save(folder / "me.png")
    save_wav(folder / "voice.wav", make_audio(0.9), 16_000)
    with VideoWriter(folder / "drive.mp4", 25, (88, 96), provenance=False) as writer:
        for seed in range(4):
            writer.write(make_image(seed))
    return folder


def talk(files, out, *extra, voice=True):
    words = ["talk", files / "me.png", *([files / "voice.wav"] if voice else []), "-o", out, "--system", "gaia"]
    words += ["--box", BOX, "--model", files / "model", "--steps", 2, "--seed", 1, *extra]
    return main(list(map(str, words)))


def test_talk_with_a_voice_and_a_pose(files, tmp_path, capsys):
    out, motion = tmp_path / "out.mp4", tmp_path / "motion.safetensors"
    assert talk(files, out, "--pose", "0:0,0,0 0.4:-0.4,0,0.1", "--motion", motion) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert len(list(read_video(out))) == 23 and read_provenance(out)["model"] == "model"
    yaw = load_motion(motion)[0][0, :, 0]
    torch.testing.assert_close(yaw[:11], -torch.arange(11) / 25)
    assert talk(files, out, "--pose", "-0.1,0,0") == 0  # begins with a minus


def test_talk_by_instructions_needs_no_voice(files, tmp_path):
    out = tmp_path / "out.mp4"
    assert talk(files, out, "--text", "please smile", "--seconds", "0.4", voice=False) == 0
    assert len(list(read_video(out))) == 10 and not VideoReader(out).has_audio
    assert read_provenance(out)["model"] == "model"
    assert talk(files, out, "--text", "please smile") == 0
    assert len(list(read_video(out))) == 23 and VideoReader(out).has_audio


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--gaze", "0,0"), "--gaze` is not supported by gaia"),
        (("--head-motion", "1"), "--head-motion` is not supported"),
        (("--pose", "1,2"), "--pose` must be 3 numbers"),
        (("--pose", "nowhere.mp4"), "--pose` must be an existing file"),
        (("--edit-landmarks", "nowhere.mp4"), "--edit-landmarks` must be an existing file"),
        (("--text", "smile", "--seconds", "1000"), "--seconds` must"),
    ],
)
def test_wrong_options_say_so(files, tmp_path, capsys, extra, message):
    assert talk(files, tmp_path / "out.mp4", *extra, voice="--text" not in extra) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_controls_of_gaia_need_its_system(files, tmp_path, capsys):
    words = ["talk", files / "me.png", files / "voice.wav", "-o", tmp_path / "out.mp4", "--text", "smile"]
    assert main(list(map(str, words))) == 2
    assert "`--text` needs --system gaia" in capsys.readouterr().err
    assert main(list(map(str, ["talk", files / "me.png", "-o", tmp_path / "out.mp4"]))) == 2
    assert "`audio` must be given" in capsys.readouterr().err


@pytest.mark.skipif("gaia-small" in EMBEDDED, reason="the weights are there")
def test_missing_weights_are_named(files, tmp_path, capsys):
    words = ["talk", files / "me.png", files / "voice.wav", "-o", tmp_path / "out.mp4", "--system", "gaia"]
    assert main(list(map(str, words))) == 2
    assert "this version comes without gaia-small" in capsys.readouterr().err


# --- assemble ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Trained parts as the recipes write them, by their options."""
    given = save_gaia_parts(tmp_path_factory.mktemp("parts"))
    return {name.replace("_", "-"): path for name, path in given.items()}


def assemble(parts, output, *extra, **changes):
    given = {**parts, **changes}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    return main(list(map(str, ["assemble", "--system", "gaia", "-o", output, *words, *extra])))


def test_assembled_parts_are_a_pipeline(parts, tmp_path, capsys):
    assert assemble(parts, tmp_path / "shared", "--share", "--half") == 0
    assert "loads; frames of 32 pixels" in capsys.readouterr().out
    folders = {path.name for path in (tmp_path / "shared").iterdir() if path.is_dir()}
    assert "audio_encoder" not in folders and {"autoencoder", "text_encoder", "image_processor"} <= folders
    assert assemble(parts, tmp_path / "whole") == 0
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert "audio_encoder" in names and not names & {"face_autoencoder", "README.md", "motion_priors.safetensors"}
    pipes = [GaiaAvatarPipeline.from_pretrained(tmp_path / name) for name in ("shared", "whole")]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
        assert pipe.scheduler.config.algorithm_type == "sde-dpmsolver++" and pipe.text_denoiser is not None
    made = [
        pipe.to(torch.float32)(
            make_image(),
            text="nod",
            seconds=0.4,
            num_inference_steps=2,
            box=(20, 20, 70, 76),
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).frames
        for pipe in pipes
    ]
    assert np.abs(made[0] - made[1]).mean() < 0.02  # float16 weights


def test_parts_that_do_not_fit_are_refused(parts, tmp_path, capsys):
    out = tmp_path / "out"
    assert assemble(parts, out, **{"landmark-denoiser": parts["motion-transformer"]}) == 2
    assert "`--landmark-denoiser` must be trained with --predicts landmarks" in capsys.readouterr().err
    assert assemble(parts, out, **{"motion-transformer": None}) == 2
    assert "`--motion-transformer` must be given" in capsys.readouterr().err
    assert assemble(parts, out, **{"motion-transformer": parts["text-denoiser"]}) == 2
    assert "`--motion-transformer` must have `audio_dim` 192" in capsys.readouterr().err
    assert assemble(parts, out, "--face-autoencoder", out) == 2
    assert "`--face-autoencoder` has no effect" in capsys.readouterr().err and not out.exists()
