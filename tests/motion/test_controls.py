import math

import pytest
import torch

from vasa_hf.motion.controls import parse_controls

EMOTIONS = ("angry", "happy", "sad")


def parse(**controls):
    return parse_controls(**controls, emotions=EMOTIONS)


def test_constant_controls():
    tracks = parse(gaze=(0.1, -0.2), head_distance=1.5, emotion={"sad": 0.5})
    times = torch.tensor([0.0, 3.0, 100.0])
    torch.testing.assert_close(tracks["gaze"].at(times).float(), torch.tensor([[0.1, -0.2]]).expand(3, -1))
    torch.testing.assert_close(tracks["head_distance"].at(times).float(), torch.full((3, 1), 1.5))
    torch.testing.assert_close(tracks["emotion"].mean(0, 7, 25), torch.tensor([0.0, 0.0, 0.5]))
    assert parse() == {"gaze": None, "head_distance": None, "emotion": None}
    assert parse(gaze=torch.tensor([0.1, 0.2]))["gaze"].values.tolist() == [pytest.approx([0.1, 0.2])]
    for calm in ({}, "neutral"):
        assert parse(emotion=calm)["emotion"].values.tolist() == [[0.0, 0.0, 0.0]]
    for glad in ("happy", "happiness", {"happiness": 1.0}):  # the word of the one system and of the other
        assert parse(emotion=glad)["emotion"].values.tolist() == [[0.0, 1.0, 0.0]]


def test_keyframes_are_linear_between_and_still_beyond():
    track = parse(head_distance=[(1.0, 1.0), (2.0, 2.0), (4.0, 1.0)])["head_distance"]
    times = torch.tensor([0.0, 1.0, 1.25, 2.0, 3.0, 4.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(track.at(times)[:, 0].float(), torch.tensor([1.0, 1.0, 1.25, 2.0, 1.5, 1.0, 1.0]))
    emotion = parse(emotion=[(0, {"happy": 1.0}), (1, {"sad": 1.0})])["emotion"]
    torch.testing.assert_close(emotion.at(torch.tensor([0.25]))[0].float(), torch.tensor([0.0, 0.75, 0.25]))


def test_mean_of_a_window_is_the_mean_of_its_frames():
    track = parse(gaze=[(0.0, (0.0, 0.0)), (0.4, (0.4, 0.0)), (0.8, (0.0, -0.2))])["gaze"]
    expected = torch.stack([track.at(torch.tensor([frame / 25], dtype=torch.float64))[0] for frame in range(7, 19)])
    torch.testing.assert_close(track.mean(7, 19, 25), expected.mean(0).float())
    torch.testing.assert_close(track.mean(7, 7, 25), expected[0].float())  # an empty window is its first frame


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"gaze": (0.1,)}, "`gaze` must be .yaw, pitch. in radians, or keyframes .*got .0.1,."),
        ({"gaze": (0.1, "b")}, "`gaze` must be"),
        ({"gaze": (0.1, math.nan)}, "`gaze` must be"),
        ({"gaze": []}, "`gaze` must be"),
        ({"gaze": [(0, 1, 2)]}, "`gaze` must be"),
        ({"gaze": [(0.0, (0.1, 0.1)), (1.0, None)]}, "`gaze` must be"),
        ({"gaze": (0.0, -0.9)}, "`gaze` must lie in .-0.8, 0.8. radians .46 degrees., got .0.0, -0.9."),
        ({"gaze": [(-1.0, (0.1, 0.1))]}, "`gaze` must have keyframes at rising times from 0 seconds on, got .-1.0."),
        ({"gaze": [(1.0, (0.1, 0.1)), (1.0, (0.2, 0.1))]}, "`gaze` must have keyframes at rising times"),
        ({"head_distance": "1.0"}, "`head_distance` must be a number, or keyframes .*got '1.0'"),
        ({"head_distance": True}, "`head_distance` must be a number"),
        ({"head_distance": 5}, "`head_distance` must lie in .0.5, 2.0. .1 is the portrait's own distance., got 5"),
        ({"head_distance": [(0, 1.0), (1, 3.0)]}, "`head_distance` must lie in"),
        ({"emotion": {"joy": 1.0}}, "`emotion` knows the names .'angry', 'happy', 'sad'., got 'joy'"),
        ({"emotion": {"sad": -1.5}}, "`emotion` must have weights in .-1, 1., got -1.5 for 'sad'"),
        ({"emotion": {"sad": "much"}}, "`emotion` must have weights in"),
        ({"emotion": 0.5}, "`emotion` must be a name or a dict of weights, or keyframes .*got 0.5"),
    ],
)
def test_bad_controls_are_rejected(controls, message):
    with pytest.raises(ValueError, match=message):
        parse(**controls)
