"""The reference's reduced weights, laid out as the public ones are and converted, give the reference's outputs."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel

from tests.convert.parity import ABSENT, FOLDER, difference, load
from tests.testing_utils import official_layouts as layouts
from vasa_hf.convert.joyvasa import convert_joyvasa
from vasa_hf.convert.liveportrait import convert_liveportrait
from vasa_hf.convert.moda import convert_moda
from vasa_hf.models.motion_denoiser_joyvasa import JoyVasaMotionDenoiser
from vasa_hf.models.motion_transformer_moda import ModaMotionTransformer
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=ABSENT)
THREE = {"stitching": "stitching", "lip": "retargeting_lip", "eye": "retargeting_eye"}
NETWORKS = ("appearance_feature_extractor", "motion_extractor", "warping_module", "spade_generator")


def renderer_state():
    """Tensors of the reduced renderer."""
    files = {name: name for name in NETWORKS} | {f"stitching_retargeting_{name}": own for name, own in THREE.items()}
    return {
        f"{own}.{name}": value
        for file, own in files.items()
        for name, value in load_file(FOLDER / "liveportrait" / f"{file}_small.safetensors").items()
    }


@pytest.mark.parametrize("mirror", [False, True])
@torch.no_grad()
def test_liveportrait(tmp_path, mirror):
    layouts.write_liveportrait(tmp_path / "source", renderer_state(), mirror)
    report = convert_liveportrait(tmp_path / "source", tmp_path / "out")
    assert report.complete and len(report.names("converted")) == len(renderer_state())
    renderer = LivePortraitRenderer.from_pretrained(tmp_path / "out" / "renderer").eval()
    data = load("liveportrait", "pipeline_small_io")
    stitched = renderer.stitch(data["x_s"], data["x_d_before_stitching"])
    assert difference(stitched, data["x_d_stitched"]) < 2e-5
    image = renderer.render(renderer.encode_appearance(data["image"]), data["x_s"], stitched)
    assert difference(image, data["out_image"]) < 1e-4
    motion = load("liveportrait", "motion_extractor_small_io")
    heads = renderer.motion_extractor(motion["image"])
    assert max(difference(value, motion[f"out_{name}"]) for name, value in heads.items()) < 2e-5


@torch.no_grad()
def test_moda(tmp_path):
    layouts.write_moda(tmp_path / "source")
    weights = load_file(FOLDER / "moda" / "motion_diffusion_small.safetensors")
    torch.save(weights, tmp_path / "source" / "moda" / "net-200.pth")
    statistics = load("moda", "normalisation_mean_std")
    numbers = {name: statistics[name].reshape(1, 70) for name in ("mean", "std")}
    torch.save(numbers, tmp_path / "mean.pt")
    report = convert_moda(tmp_path / "source", tmp_path / "out", statistics=tmp_path / "mean.pt")
    assert report.complete and "null_audio_feat: taken from the file" in report.notes
    model = ModaMotionTransformer.from_pretrained(tmp_path / "out" / "motion_transformer").eval()
    for name in ("dit_small_io", "dit_small_len13_io"):
        data = load("moda", name)
        previous, sample = data["motion"].split(70, dim=-1)
        conditions = {"emotion": data["emo"], "keypoints": data["audio_cond"], "previous_motion": previous}
        velocity = model(sample, data["times"], data["audio"][:, :, 0], **conditions).sample
        # One frequency of time was rounded otherwise there, see `vectors_moda.py`.
        assert difference(velocity, data["out"]) < 4e-5
    motion = torch.randn(2, 70)
    expected = (motion - numbers["mean"]) / (numbers["std"] + 1e-5)
    torch.testing.assert_close(model.normalize(motion), expected)


@pytest.mark.parametrize(("encoding", "file"), [("single_row", "legacy_pe"), ("per_frame", "fixed_pe")])
@torch.no_grad()
def test_joyvasa(tmp_path, encoding, file):
    state = load_file(FOLDER / "joyvasa" / "dit_talking_head_small.safetensors")
    # The reduced checkpoint has no encoder, but a layer for one of the full width.
    encoder = HubertModel(HubertConfig(**{**layouts.HUBERT, "hidden_size": 768, "num_attention_heads": 12}))
    state |= {f"audio_encoder.{name}": value for name, value in encoder.state_dict().items()}
    layouts.write_joyvasa(tmp_path / "source", state, n_diff_steps=50)
    sequence = np.load(FOLDER / "joyvasa" / "gen_motion_sequence_raw.npz")
    template = {name.removeprefix("tmpl_"): sequence[name] for name in sequence.files if name.startswith("tmpl_")}
    (tmp_path / "source" / "motion_template" / "motion_template.pkl").write_bytes(pickle.dumps(template))
    renderer = layouts.write_liveportrait(tmp_path / "renderer")
    report = convert_joyvasa(tmp_path / "source", tmp_path / "out", renderer, encoding)
    assert report.complete
    model = JoyVasaMotionDenoiser.from_pretrained(tmp_path / "out" / "motion_transformer").eval()
    assert (model.config.window, model.config.context, model.config.num_train_timesteps) == (20, 5, 50)
    data = load("joyvasa", f"denoising_net_small_{file}_io")
    past = {"previous_motion": data["prev_motion"], "previous_audio": data["prev_audio_feat"]}
    clean = model(data["motion"], data["step"] - 1, data["audio_feat"], **past).sample
    assert difference(clean, data["out"][:, 5:]) < 2e-5
    frames = model.denormalize(torch.from_numpy(sequence["network_output"]).flatten(0, 1)[:128])
    assert difference(frames[:, :63], torch.from_numpy(sequence["exp"]).flatten(1)) < 2e-5
    heard = HubertModel.from_pretrained(tmp_path / "out" / "audio_encoder").eval()
    assert difference(*(model(torch.ones(1, 800)).last_hidden_state for model in (heard, encoder.eval()))) < 1e-5
