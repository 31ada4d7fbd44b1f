"""Folders in the layouts of LivePortrait, MoDA and JoyVASA are converted, completely or not at all."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

import vasa_hf
from tests.testing_utils import official_layouts as layouts
from tests.testing_utils.pipelines import BOX, make_audio, make_image
from vasa_hf.cli import main
from vasa_hf.convert import joyvasa, liveportrait, moda
from vasa_hf.convert.checkpoint import ConversionError
from vasa_hf.models.motion_denoiser_joyvasa import JoyVasaMotionDenoiser
from vasa_hf.models.motion_transformer_moda import ModaMotionTransformer
from vasa_hf.models.renderer_liveportrait import LivePortraitRenderer


class Runs:
    """Makes a folder when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def rows_of(error):
    """Name -> outcome, from the table in a message."""
    return {row.name: row.outcome for row in error.value.report.misfits}


def written(tmp_path):
    """Everything next to the sources."""
    return sorted(path.name for path in tmp_path.iterdir() if path.name not in ("source", "renderer"))


# --- LivePortrait -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inner", "mirror"),
    [("liveportrait", False), (".", False), ("pretrained_weights/liveportrait", False), (".", True)],
)
def test_liveportrait_arrives_with_its_values(tmp_path, inner, mirror):
    state = layouts.liveportrait_state()
    layouts.write_liveportrait(tmp_path / "source" / inner, state, mirror)
    report = liveportrait.convert_liveportrait(tmp_path / "source", tmp_path / "out")
    assert report.complete and len(report.names("converted")) == len(state)
    renderer = LivePortraitRenderer.from_pretrained(tmp_path / "out" / "renderer")
    config = {name: list(value) if isinstance(value, tuple) else value for name, value in layouts.RENDERER.items()}
    assert {name: value for name, value in renderer.config.items() if name in config} == {**config, "max_features": 512}
    for name, value in renderer.state_dict().items():
        if name in state:
            assert torch.equal(value, state[name]), name
        else:
            orig, u, v = (state[f"{name}_{part}"] for part in ("orig", "u", "v"))
            torch.testing.assert_close(value, orig / (u @ orig.flatten(1) @ v), rtol=1e-5, atol=1e-7)


def test_spectral_norm_is_that_of_the_stored_vectors():
    """Not the largest singular value, which one more power iteration would come nearer to."""
    state = layouts.liveportrait_state()
    name = "spade_generator.G_middle_0.conv_0.weight"
    weight, u, v = (state[f"{name}_{part}"] for part in ("orig", "u", "v"))
    ratio = weight.norm() / liveportrait.fold_spectral_norm(weight, u, v).norm()
    torch.testing.assert_close(ratio, u @ weight.flatten(1) @ v)
    assert abs(ratio / torch.linalg.matrix_norm(weight.flatten(1), 2) - 1) > 0.02


def test_sizes_of_the_public_weights_are_found():
    with torch.device("meta"):
        renderer = LivePortraitRenderer()
        state = {name: torch.empty(shape) for name, shape in liveportrait.official_shapes(renderer).items()}
        again = LivePortraitRenderer(**liveportrait.read_sizes(state))
    assert layouts.shapes(again) == layouts.shapes(renderer)
    # Nothing known at all: still the public sizes, so that the table says what is missing.
    with torch.device("meta"):
        assert layouts.shapes(LivePortraitRenderer(**liveportrait.read_sizes({}))) == layouts.shapes(renderer)


def test_animals_have_networks_of_their_own(tmp_path):
    human = layouts.liveportrait_state()
    animal = {name: value + 1 if name.endswith("bias") else value for name, value in human.items()}
    layouts.write_liveportrait(tmp_path / "source" / "liveportrait", human)
    layouts.write_liveportrait(tmp_path / "source" / "liveportrait_animals", animal)
    animals = tmp_path / "source" / "liveportrait_animals"
    shutil.rmtree(animals / "retargeting_models")
    for version in ("base_models", "base_models_v1.1"):
        (animals / "base_models").rename(animals / version)
        liveportrait.convert_liveportrait(tmp_path / "source", tmp_path / version, animals=True)
        converted = LivePortraitRenderer.from_pretrained(tmp_path / version / "renderer").state_dict()
        for name in ("motion_extractor.detector.fc_t.bias", "warping_module.fourth.bias"):
            assert torch.equal(converted[name], animal[name])
        assert torch.equal(converted["stitching.mlp.0.bias"], human["stitching.mlp.0.bias"])
        (animals / version).rename(animals / "base_models")
    liveportrait.convert_liveportrait(tmp_path / "source", tmp_path / "human")
    converted = LivePortraitRenderer.from_pretrained(tmp_path / "human" / "renderer").state_dict()
    assert torch.equal(converted["warping_module.fourth.bias"], human["warping_module.fourth.bias"])


def test_counters_may_be_absent(tmp_path):
    state = {n: v for n, v in layouts.liveportrait_state().items() if not n.endswith("num_batches_tracked")}
    report = liveportrait.convert_liveportrait(layouts.write_liveportrait(tmp_path / "source", state), tmp_path / "out")
    assert len(report.names("converted")) == len(state) and report.names("not needed")


def test_liveportrait_misfits_are_all_named_and_nothing_is_written(tmp_path):
    state = layouts.liveportrait_state()
    del state["spade_generator.fc.bias"], state["spade_generator.up_0.conv_s.weight_u"]
    state["motion_extractor.detector.fc_t.weight"] = torch.zeros(4, 24)
    state["warping_module.stranger.weight"] = torch.zeros(1)
    state["stitching.mlp.0.bias"][3] = torch.nan
    layouts.write_liveportrait(tmp_path / "source", state)
    with pytest.raises(ConversionError, match="`source` does not fit LivePortrait, nothing was written") as error:
        liveportrait.convert_liveportrait(tmp_path / "source", tmp_path / "out")
    assert rows_of(error) == {
        "spade_generator.fc.bias": "missing",
        "spade_generator.up_0.conv_s.weight_u": "missing",
        "motion_extractor.detector.fc_t.weight": "shape",
        "warping_module.stranger.weight": "extra",
        "stitching.mlp.0.bias": "not finite",
    }
    assert not written(tmp_path)


def test_a_fourth_retargeting_network_is_extra(tmp_path):
    layouts.write_liveportrait(tmp_path / "source")
    file = tmp_path / "source" / "retargeting_models" / "stitching_retargeting_module.pth"
    content = torch.load(file, weights_only=True)
    torch.save(content | {"retarget_ears": {"module.mlp.0.weight": torch.zeros(1)}}, file)
    with pytest.raises(ConversionError) as error:
        liveportrait.convert_liveportrait(tmp_path / "source", tmp_path / "out")
    assert rows_of(error) == {"stitching_retargeting_module.retarget_ears.module.mlp.0.weight": "extra"}


@pytest.mark.parametrize(
    "name", ["base_models/warping_module.pth", "retargeting_models/stitching_retargeting_module.pth"]
)
def test_liveportrait_files_are_needed_and_never_run(tmp_path, name):
    layouts.write_liveportrait(tmp_path / "source")
    file = tmp_path / "source" / name
    content = torch.load(file, weights_only=True)
    torch.save({**content, "x": Runs(tmp_path / "executed")}, file)
    with pytest.raises(ValueError, match=f"`source` must be a checkpoint of tensors alone, but '{file.name}' is not"):
        liveportrait.convert_liveportrait(tmp_path / "source", tmp_path / "out")
    file.unlink()
    with pytest.raises(ValueError, match=f"`source` must hold .*{file.name}"):
        liveportrait.convert_liveportrait(tmp_path / "source", tmp_path / "out")
    assert not written(tmp_path)


# --- MoDA -------------------------------------------------------------------------------------------------------------


def test_moda_arrives_with_its_values(tmp_path):
    _, state = layouts.write_moda(tmp_path / "source")
    report = moda.convert_moda(tmp_path / "source", tmp_path / "out")
    assert report.names("not needed") == ["null_motion_feat", "scheduler.sigmas"]
    assert "null_audio_feat: taken from the file" in report.notes
    model = ModaMotionTransformer.from_pretrained(tmp_path / "out" / "motion_transformer")
    assert {name: model.config[name] for name in layouts.MODA} == layouts.MODA
    tensors = model.state_dict()
    assert torch.equal(tensors.pop("null_audio"), state[moda.NULL].flatten())
    assert torch.equal(tensors.pop("motion_mean"), torch.linspace(-1, 1, 70))
    assert torch.equal(tensors.pop("motion_std"), torch.linspace(0, 2, 70))
    for name, value in tensors.items():
        assert torch.equal(value, state[moda.PREFIX + name]), name


def test_a_null_that_is_not_in_the_file_is_made_and_told(tmp_path):
    layouts.write_moda(tmp_path / "source", null=False)
    for name in ("first", "second"):
        report = moda.convert_moda(tmp_path / "source", tmp_path / name)
        assert any("not in the file" in note and "seed 42" in note for note in report.notes)
    first, second = (
        ModaMotionTransformer.from_pretrained(tmp_path / name / "motion_transformer").null_audio
        for name in ("first", "second")
    )
    assert torch.equal(first, second) and 0.5 < first.std() < 1.5


def test_statistics_of_moda_come_from_elsewhere(tmp_path):
    layouts.write_moda(tmp_path / "source", statistics=False)
    with pytest.raises(ValueError, match="`statistics` must be MoDA's mean.pt.*get src/datasets/mean.pt"):
        moda.convert_moda(tmp_path / "source", tmp_path / "out")
    file = tmp_path / "source" / "elsewhere.pt"
    # As numpy arrays, and of another size.
    torch.save({"mean": np.zeros((1, 70), np.float32), "std": np.ones((1, 69), np.float32)}, file)
    with pytest.raises(ConversionError) as error:
        moda.convert_moda(tmp_path / "source", tmp_path / "out", statistics=file)
    assert rows_of(error) == {"std": "shape"} and not written(tmp_path)
    torch.save({"mean": np.zeros((1, 70), np.float32), "std": np.ones((1, 70), np.float32)}, file)
    moda.convert_moda(tmp_path / "source", tmp_path / "out", statistics=file)
    model = ModaMotionTransformer.from_pretrained(tmp_path / "out" / "motion_transformer")
    assert torch.equal(model.motion_std, torch.ones(70))


def test_moda_misfits_are_all_named_and_nothing_is_written(tmp_path):
    _, state = layouts.write_moda(tmp_path / "source")
    del state["talking_head_dit.blocks4.0.attn1.qkv_au2.bias"]
    state["talking_head_dit.final_layer.linear.bias"] = torch.zeros(71)
    state["audio_projector.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "source" / "moda" / "net-200.pth")
    with pytest.raises(ConversionError, match="MoDA's motion generator, nothing was written") as error:
        moda.convert_moda(tmp_path / "source", tmp_path / "out")
    assert rows_of(error) == {
        "talking_head_dit.blocks4.0.attn1.qkv_au2.bias": "missing",
        "talking_head_dit.final_layer.linear.bias": "shape",
        "audio_projector.weight": "extra",
    }
    assert not written(tmp_path)


def test_the_encoder_of_moda_must_be_whole(tmp_path):
    layouts.write_moda(tmp_path / "source")
    file = tmp_path / "source" / "audio" / "chinese-hubert-base" / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    del state["encoder.layers.1.final_layer_norm.bias"]
    torch.save(state, file)
    with pytest.raises(ConversionError, match="MoDA's audio encoder") as error:
        moda.convert_moda(tmp_path / "source", tmp_path / "out")
    assert rows_of(error) == {"encoder.layers.1.final_layer_norm.bias": "missing"} and not written(tmp_path)


def test_sizes_of_modas_public_weights_are_found():
    with torch.device("meta"):
        model = ModaMotionTransformer()
        state = {name: torch.empty(shape) for name, shape in moda.official_shapes(model).items()}
        assert layouts.shapes(ModaMotionTransformer(**moda.read_sizes(state, 768))) == layouts.shapes(model)
        del state[moda.NULL]
        assert moda.read_sizes(state, 768) == moda.read_sizes({}, 768)
    assert moda.read_sizes(state, 768)["num_heads"] == 12


# --- JoyVASA ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def renderer(tmp_path):
    return layouts.write_liveportrait(tmp_path / "renderer")


@pytest.mark.parametrize("spelling", ["newer", "older"])
@pytest.mark.parametrize("encoding", ["single_row", "per_frame"])
def test_joyvasa_arrives_with_its_values(tmp_path, renderer, spelling, encoding):
    state = layouts.joyvasa_state()
    if spelling == "older":
        endings = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        for new, old in endings.items():
            state = {name.replace(new, old): value for name, value in state.items()}
    layouts.write_joyvasa(tmp_path / "source", state)
    report = joyvasa.convert_joyvasa(tmp_path / "source", tmp_path / "out", renderer, encoding)
    assert "denoising_net.TE.pe" in report.names("recomputed")
    assert any(note.startswith(f"positional encoding: {encoding}") for note in report.notes)
    model = JoyVasaMotionDenoiser.from_pretrained(tmp_path / "out" / "motion_transformer")
    assert {name: model.config[name] for name in layouts.JOYVASA} == layouts.JOYVASA
    assert model.config.positional_encoding == encoding and model.config.pad_mode == "zero"
    tensors = model.state_dict()
    layer = "denoising_net.transformer.layers.1."
    assert torch.equal(tensors["layers.1.audio_value.weight"], state[f"{layer}multihead_attn.in_proj_weight"][64:])
    assert torch.equal(tensors["layers.1.audio_out.bias"], state[f"{layer}multihead_attn.out_proj.bias"])
    assert torch.equal(tensors["layers.1.self_attn.in_proj_weight"], state[f"{layer}self_attn.in_proj_weight"])
    template = layouts.motion_template()
    assert torch.equal(model.expression_std, torch.from_numpy(template["std_exp"]))
    assert torch.equal(model.pose_max[1:4], torch.from_numpy(template["max_t"]))
    assert torch.equal(model.pose_min[6:], torch.from_numpy(template["min_roll"]))
    from transformers import HubertModel

    encoder = HubertModel.from_pretrained(tmp_path / "out" / "audio_encoder").state_dict()
    names = {name: name for name in encoder}
    if spelling == "older":
        names = {name: name.replace(new, old) for name in encoder for new, old in endings.items() if new in name} | {
            name: name for name in encoder if "original" not in name
        }
    for name, theirs in names.items():
        assert torch.equal(encoder[name], state[f"audio_encoder.{theirs}"]), name


def test_joyvasa_misfits_are_all_named_and_nothing_is_written(tmp_path, renderer):
    state = layouts.joyvasa_state()
    del state["null_audio_feat"], state["audio_encoder.encoder.pos_conv_embed.conv.parametrizations.weight.original0"]
    state["denoising_net.transformer.layers.0.norm2.weight"] = torch.ones(31)
    state["indicator_proj.weight"] = torch.zeros(1)
    layouts.write_joyvasa(tmp_path / "source", state)
    template = layouts.motion_template()
    del template["max_yaw"]
    (tmp_path / "source/motion_template/motion_template.pkl").write_bytes(pickle.dumps(template))
    with pytest.raises(ConversionError, match="JoyVASA's motion generator, nothing was written") as error:
        joyvasa.convert_joyvasa(tmp_path / "source", tmp_path / "out", renderer)
    assert rows_of(error) == {
        "null_audio_feat": "missing",
        "audio_encoder.encoder.pos_conv_embed.conv.parametrizations.weight.original0": "missing",
        "denoising_net.transformer.layers.0.norm2.weight": "shape",
        "indicator_proj.weight": "extra",
        "max_yaw": "missing",
    }
    assert not written(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("diffusion_sched.betas", lambda betas: betas * 0.9, "no cosine schedule of 6 steps"),
        ("denoising_net.alignment_mask", lambda mask: mask & ~mask.roll(1, 0).logical_not(), "audio of other frames"),
        ("denoising_net.PE.pe", lambda places: places + 0.1, "learned"),
    ],
)
def test_another_way_of_training_is_noticed(tmp_path, renderer, name, change, message):
    """Tables that are made again tell how the file was trained; this model does it in one way alone."""
    state = layouts.joyvasa_state()
    state[name] = change(state[name])
    layouts.write_joyvasa(tmp_path / "source", state)
    with pytest.raises(ConversionError, match=message):
        joyvasa.convert_joyvasa(tmp_path / "source", tmp_path / "out", renderer)
    assert not written(tmp_path)


def test_options_of_joyvasa_are_heeded(tmp_path, renderer):
    layouts.write_joyvasa(tmp_path / "source", pad_mode="replicate")
    joyvasa.convert_joyvasa(tmp_path / "source", tmp_path / "out", renderer)
    config = JoyVasaMotionDenoiser.load_config(tmp_path / "out" / "motion_transformer")
    assert config["pad_mode"] == "replicate"
    shutil.rmtree(tmp_path / "source")
    layouts.write_joyvasa(tmp_path / "source", target="noise")
    with pytest.raises(ConversionError, match="args.target: expected 'sample', got 'noise'"):
        joyvasa.convert_joyvasa(tmp_path / "source", tmp_path / "other", renderer)


def test_joyvasa_needs_a_renderer(tmp_path, renderer):
    layouts.write_joyvasa(tmp_path / "source")
    with pytest.raises(ValueError, match="`renderer`"):
        joyvasa.convert_joyvasa(tmp_path / "source", tmp_path / "out")
    assert not written(tmp_path)
    shutil.copytree(renderer, tmp_path / "source" / "liveportrait")
    joyvasa.convert_joyvasa(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize("name", ["network", "template"])
def test_joyvasa_is_never_run(tmp_path, renderer, name):
    folder = layouts.write_joyvasa(
        tmp_path / "source", log_dir=Runs(tmp_path / "executed") if name == "network" else ""
    )
    if name == "template":
        content = pickle.dumps({**layouts.motion_template(), "x": Runs(tmp_path / "executed")})
        (folder / "motion_template" / "motion_template.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="`source` must .*mkdir"):
        joyvasa.convert_joyvasa(folder, tmp_path / "out", renderer)
    assert not written(tmp_path)


def test_sizes_of_joyvasas_public_weights_are_found():
    with torch.device("meta"):
        model = JoyVasaMotionDenoiser()
        state = {name: torch.empty(shape) for name, shape in joyvasa.official_shapes(model).items()}
    sizes = joyvasa.read_sizes(state, {"n_motions": 100})
    assert JoyVasaMotionDenoiser(**joyvasa.read_sizes({}, {})).config == JoyVasaMotionDenoiser(**sizes).config


# --- whole pipelines --------------------------------------------------------------------------------------------------


def load_pipeline(folder):
    """The pipeline that a folder's index names."""
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    return getattr(vasa_hf, name).from_pretrained(folder)


def test_the_command_converts_and_the_pipeline_loads(tmp_path, capsys):
    """All three, as a user would; then every pipeline has its components."""
    layouts.write_liveportrait(tmp_path / "liveportrait" / "liveportrait")
    layouts.write_moda(tmp_path / "moda")
    layouts.write_joyvasa(tmp_path / "joyvasa")
    options = {"liveportrait": [], "moda": ["--quiet"], "joyvasa": ["--renderer", str(tmp_path / "liveportrait")]}
    kinds = {"liveportrait": type(None), "moda": ModaMotionTransformer, "joyvasa": JoyVasaMotionDenoiser}
    for kind, model in kinds.items():
        arguments = [str(tmp_path / kind), str(tmp_path / f"{kind}-out"), *options[kind]]
        assert main(["convert", kind, *arguments]) == 0
        said = capsys.readouterr().out
        assert "tensors converted" in said and ("16 x 16 x 3" in said) == (kind != "moda")
        pipe = load_pipeline(tmp_path / f"{kind}-out")
        assert type(pipe.renderer) is LivePortraitRenderer
        assert isinstance(getattr(pipe, "motion_transformer", None), model)
        assert (pipe.image_processor.size, pipe.image_processor.upright) == (pipe.renderer.output_size, True)
        assert main(["convert", kind, *arguments]) == 2
        assert "`destination` must be a new or an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["moda", "joyvasa"])
def test_a_converted_folder_makes_a_video(tmp_path, kind):
    """Random weights draw no face, but image and voice both reach the video."""
    if kind == "moda":
        moda.convert_moda(layouts.write_moda(tmp_path / "source")[0], tmp_path / "out")
    else:
        source, renderer = layouts.write_joyvasa(tmp_path / "source"), layouts.write_liveportrait(tmp_path / "renderer")
        joyvasa.convert_joyvasa(source, tmp_path / "out", renderer)
    pipe = load_pipeline(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)

    def talk(image, audio):
        options = {"box": BOX, "output_type": "pt", "num_inference_steps": 2}
        return pipe(image, audio, generator=torch.Generator().manual_seed(0), **options).frames

    own = talk(make_image(0), make_audio(0.2, 0))
    assert own.shape == (5, 3, 512, 512) and torch.isfinite(own).all()
    for other in (talk(make_image(1), make_audio(0.2, 0)), talk(make_image(0), make_audio(0.2, 1))):
        assert (other - own).abs().max() > 1e-3


def test_the_command_prints_the_table_of_misfits(tmp_path, capsys):
    state = layouts.liveportrait_state()
    del state["spade_generator.fc.bias"]
    layouts.write_liveportrait(tmp_path / "source", state)
    assert main(["convert", "liveportrait", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["tensor", "expected", "found", "outcome"]
    assert lines[1].split() == ["spade_generator.fc.bias", "32", "-", "missing"]
    assert lines[-1].startswith("vasa-hf: error: `source` does not fit LivePortrait, nothing was written: 359 tensors")
    assert not written(tmp_path)


def test_options_belong_to_their_kinds(tmp_path, capsys):
    for option in (["--animals"], ["--statistics", "mean.pt"], ["--positional-encoding", "per_frame"]):
        assert main(["convert", "syncnet", "a", "b", *option]) == 2
        assert ", not of syncnet" in capsys.readouterr().err
