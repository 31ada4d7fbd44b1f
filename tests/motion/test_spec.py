from fractions import Fraction

import pytest
import torch

from vasa_hf.motion import MotionSpec, from_relative, load_motion, resample_motion, save_motion, to_relative

SPEC = MotionSpec({"lips": 3, "gaze": 2})


def example(batch=2, frames=5):
    torch.manual_seed(0)
    motion = torch.randn(batch, frames, SPEC.dim)
    motion[..., 5] = motion[..., 5].exp()
    return motion


def test_spec_names_every_channel_once_with_a_unit():
    assert (SPEC.dim, SPEC.dynamics_dim) == (11, 5)
    covered = [channel for part in SPEC.slices.values() for channel in range(part.start, part.stop)]
    assert covered == list(range(SPEC.dim))
    assert list(SPEC.units) == list(SPEC.slices)
    assert SPEC.units["rotation"] == "radians"
    assert MotionSpec().dim == 518


def test_pack_undoes_unpack():
    motion = example()
    assert torch.equal(SPEC.pack(SPEC.unpack(motion)), motion)
    assert torch.equal(SPEC.unpack(motion)["gaze"], motion[..., 9:11])


def test_pack_and_spec_name_what_is_wrong():
    parts = SPEC.unpack(example())
    with pytest.raises(ValueError, match="`parts`.*'lips'"):
        SPEC.pack({**parts, "lips": parts["lips"][..., :2]})
    with pytest.raises(ValueError, match="`parts`"):
        SPEC.pack({name: value for name, value in parts.items() if name != "scale"})
    with pytest.raises(ValueError, match="`motion` must have 11 channels"):
        SPEC.unpack(torch.zeros(2, 3, 10))
    with pytest.raises(ValueError, match="`dynamics`"):
        MotionSpec({"scale": 2})


@pytest.mark.parametrize("keep_time", [False, True])
def test_relative_motion_round_trip(keep_time):
    motion = example()
    reference = motion[:, :1] if keep_time else motion[:, 0]
    relative = to_relative(motion, reference)
    torch.testing.assert_close(relative[:, 0, :6], torch.zeros(2, 6))
    assert torch.equal(relative[..., 6:], motion[..., 6:])
    # float32 rounding of a logarithm and an exponential
    torch.testing.assert_close(from_relative(relative, reference), motion, rtol=1e-5, atol=1e-5)


def test_relative_motion_carries_over_to_a_face_of_another_size():
    reference, other = torch.zeros(1, 11), torch.zeros(1, 11)
    reference[:, 5], other[:, 5] = 0.2, 0.4
    motion = reference[:, None].clone()
    motion[..., 3], motion[..., 5] = 0.02, 0.3  # a tenth of the face to the right, half again as near
    moved = from_relative(to_relative(motion, reference), other)
    torch.testing.assert_close(moved[0, 0, 3:6], torch.tensor([0.04, 0.0, 0.6]))


def test_bad_reference_is_named():
    with pytest.raises(ValueError, match="`reference`"):
        to_relative(example(), torch.ones(2, 5, 11))
    with pytest.raises(ValueError, match="`reference`"):
        from_relative(example(), torch.ones(2, 10))


def test_file_round_trip(tmp_path):
    motion = example()[0]
    path = tmp_path / "motion.safetensors"
    save_motion(path, motion, SPEC, Fraction(30000, 1001), {"seed": "3"})
    loaded, spec, fps, metadata = load_motion(path)
    assert torch.equal(loaded, motion) and spec == SPEC and fps == Fraction(30000, 1001) and metadata == {"seed": "3"}
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"motion": torch.zeros(3, 11)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="`path` must be a motion file"):
        load_motion(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="`path`"):
        load_motion(tmp_path / "broken.safetensors")


def test_resample_is_linear_in_time_and_keeps_the_duration():
    ramp = torch.arange(50.0)[None, :, None].expand(1, 50, 11)
    faster = resample_motion(ramp, 25, Fraction(30000, 1001))
    assert faster.shape[1] == 60
    expected = (torch.arange(60) * (25 * 1001 / 30000)).clamp(max=49)
    torch.testing.assert_close(faster[0, :, 0], expected)
    assert resample_motion(ramp, 25, 50, num_frames=99).shape[1] == 99
    assert torch.equal(resample_motion(ramp, 25, 25), ramp)
    with pytest.raises(ValueError, match="`to_fps`"):
        resample_motion(ramp, 25, 0)
