import os

import pytest
import torch

from vasa_hf.convert.checkpoint import match
from vasa_hf.convert.syncnet import convert_syncnet, official_shapes
from vasa_hf.models.syncnet import SyncNet

TINY = {"audio_widths": (2, 3, 4, 3, 3, 6), "face_widths": (2, 3, 3, 3, 3, 5), "embed_dim": 8}


def public_state(model, tracked=False):
    """What the public code would save: its names, and no counters, as older versions of torch had none."""
    parts = {"audio_convs": "netcnnaud", "audio_head": "netfcaud", "face_convs": "netcnnlip", "face_head": "netfclip"}
    state = {}
    for name, value in model.state_dict().items():
        part, rest = name.split(".", 1)
        if tracked or not name.endswith("num_batches_tracked"):
            state[f"{parts[part]}.{rest}"] = value.clone()
    return state


@pytest.fixture
def model():
    model = SyncNet(**TINY).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.1 + 0.01)
    return model


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"module." + n: v for n, v in s.items()}]
)
def test_every_tensor_arrives_with_its_values(model, tmp_path, wrap):
    torch.save(wrap(public_state(model)), tmp_path / "syncnet.model")
    report = convert_syncnet(tmp_path / "syncnet.model", tmp_path / "out", SyncNet(**TINY))
    assert report.complete and len(report.names("converted")) == len(public_state(model))
    assert not list((tmp_path / "out").glob("*.bin"))
    loaded = SyncNet.from_pretrained(tmp_path / "out").eval()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    mfcc = torch.randn(2, 1, 13, 20)
    torch.testing.assert_close(loaded.encode_audio(mfcc), model.encode_audio(mfcc))


def test_names_and_shapes_of_the_public_size():
    """A state with the public code's layers, listed here, must fit without remainder."""
    state = {}

    def layer(name, index, weight, norm=True):
        state[f"{name}.{index}.weight"], state[f"{name}.{index}.bias"] = torch.zeros(weight), torch.zeros(weight[0])
        if norm:
            for key in ("weight", "bias", "running_mean", "running_var"):
                state[f"{name}.{index + 1}.{key}"] = torch.zeros(weight[0])

    places = (0, 4, 8, 11, 14, 18)
    for place, outputs, inputs, kernel in zip(
        places, (64, 192, 384, 256, 256, 512), (1, 64, 192, 384, 256, 256), [(3, 3)] * 5 + [(5, 4)], strict=True
    ):
        layer("netcnnaud", place, (outputs, inputs, *kernel))
    kernels = [(5, 7, 7), (1, 5, 5), (1, 3, 3), (1, 3, 3), (1, 3, 3), (1, 6, 6)]
    for place, outputs, inputs, kernel in zip(
        places, (96, 256, 256, 256, 256, 512), (3, 96, 256, 256, 256, 256), kernels, strict=True
    ):
        layer("netcnnlip", place, (outputs, inputs, *kernel))
    for head in ("netfcaud", "netfclip"):
        layer(head, 0, (512, 512))
        layer(head, 3, (1024, 512), norm=False)
    with torch.device("meta"):
        model = SyncNet()
    report = match(official_shapes(model), state, may_lack=lambda n: "zero" if n.endswith("tracked") else None)
    assert report.complete, str(report)
    assert set(report.names("converted")) == set(state)


def test_misfits_are_all_named_and_nothing_is_written(model, tmp_path):
    state = public_state(model)
    del state["netcnnaud.0.weight"]
    state["netfclip.3.weight"] = torch.zeros(9, 5)
    state["stranger.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "bad.model")
    with pytest.raises(ValueError, match="`source`") as error:
        convert_syncnet(tmp_path / "bad.model", tmp_path / "out", SyncNet(**TINY))
    rows = [line.split("  ") for line in str(error.value).splitlines()]
    rows = {(row[0].strip(), *(cell.strip() for cell in row[1:] if cell.strip())) for row in rows}
    assert ("netcnnaud.0.weight", "2 x 1 x 3 x 3", "-", "missing") in rows
    assert ("stranger.weight", "-", "1", "extra") in rows
    assert ("netfclip.3.weight", "8 x 5", "9 x 5", "shape") in rows
    assert not (tmp_path / "out").exists()


class Malicious:
    """Runs a command when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, zipped):
    marker = tmp_path / "executed"
    state = {"netcnnaud.0.weight": torch.zeros(1), "x": Malicious(marker)}
    torch.save(state, tmp_path / "evil.model", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="`source`.*evil.model"):
        convert_syncnet(tmp_path / "evil.model", tmp_path / "out", SyncNet(**TINY))
    assert not marker.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_other_files_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "x.model").write_bytes(content)
    with pytest.raises(ValueError, match="`source`"):
        convert_syncnet(tmp_path / "x.model", tmp_path / "out", SyncNet(**TINY))


def test_a_checkpoint_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.model")
    with pytest.raises(ValueError, match="dict of tensors"):
        convert_syncnet(tmp_path / "x.model", tmp_path / "out", SyncNet(**TINY))
