import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vasa_hf
from tests.testing_utils.pipelines import BOX, make_audio, make_image, make_vasa1_components
from vasa_hf import VasaTalkingFacePipeline
from vasa_hf.training.avatar.frames import (
    MOST_TURN,
    SHARD_FRAMES,
    SWEEP,
    AvatarFrames,
    make_motions,
    motion_priors,
    render_frames,
)

ASSETS = Path(vasa_hf.__file__).parent / "assets"
BACKGROUNDS = torch.tensor([[0.9, 0.9, 0.9], [0.1, 0.2, 0.3]])


@pytest.fixture(scope="module")
def pipe():
    pipe = VasaTalkingFacePipeline(**make_vasa1_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def portraits(pipe):
    return [pipe.prepare_portrait(make_image(seed), box=BOX) for seed in (0, 1)]


def motions_of(files):
    return torch.cat([load_file(file)["motions"] for file in files])


def make(pipe, portraits, folder, minutes=0.02, **changes):
    options = {"audios": [(make_audio(0.6), 16_000)], "num_inference_steps": 2, "sweep_share": 0.3, **changes}
    return make_motions(pipe, portraits[0], folder, minutes, **options)


def test_motion_is_as_long_as_wanted_repeatable_and_varied(pipe, portraits, tmp_path):
    """0.02 minutes are 30 frames: 21 of a voice of 15 frames, said again with other controls, and 9 of sweeps."""
    files = make(pipe, portraits, tmp_path / "a")
    assert [len(load_file(file)["motions"]) for file in files] == [15, 6, 9]
    motions = motions_of(files)
    assert motions.shape == (30, 10) and motions.isfinite().all()
    torch.testing.assert_close(motions_of(make(pipe, portraits, tmp_path / "b")), motions)
    other = motions_of(make(pipe, portraits, tmp_path / "c", seed=1))
    assert not torch.allclose(other, motions)
    assert not torch.allclose(motions[:6], motions[15:21])  # the voice's second turn


def test_sweeps_turn_the_head_all_ways(pipe, portraits, tmp_path):
    files = make(pipe, portraits, tmp_path, minutes=0.3, sweep_share=0.9)
    sweep, own = load_file(files[-1])["motions"], portraits[0].motion[0]
    assert len(sweep) == 405
    offset = torch.cat(
        [sweep[:, :3], (sweep[:, 3:5] - own[3:5]) / own[5], (sweep[:, 5:6] / own[5]).log()], dim=1
    ) / torch.tensor(SWEEP)
    assert offset.abs().max() <= 1.001
    # Even in each direction and in all pairs of them: no quarter of a plane is left out.
    for first, second in itertools.combinations(range(6), 2):
        quarters = torch.histogramdd(offset[:, [first, second]], bins=[2, 2], range=[-1, 1, -1, 1]).hist
        assert quarters.min() > 0.2 * len(sweep)
    assert len(sweep[:, 6:].unique(dim=0)) > 10  # with expressions of the voice


def test_videos_come_once_from_the_portraits_pose(tmp_path):
    """The embedded model follows a face; where there are no voices besides, there is no more than the video has."""
    pipe = VasaTalkingFacePipeline.from_pretrained("vasa-small")
    pipe.set_progress_bar_config(disable=True)
    portrait = pipe.prepare_portrait(ASSETS / "portrait.jpg")
    motion = portrait.motion.repeat(4, 1)
    motion[:, 0] = torch.linspace(0, 0.3, 4)
    video = pipe.render(portrait, motion, output_type="pt", paste_back=True).frames
    files = make_motions(pipe, portrait, tmp_path, 1.0, videos=[list(video)], sweep_share=0.2)
    assert [len(load_file(file)["motions"]) for file in files] == [4, 300]
    followed, sweep = (load_file(file)["motions"] for file in files)
    torch.testing.assert_close(followed[:1], portrait.motion)
    assert (followed[-1, 0] - followed[0, 0] - 0.3).abs() < 0.15  # what the small encoder is good for
    # The paper renders the clip's own latents (§3.2).
    own, _ = make_motions(pipe, portrait, tmp_path / "own", 1.0, videos=[list(video)], rebase_videos=False)
    assert torch.equal(load_file(own)["motions"], pipe.encode_video(list(video))[0].float())
    # Every fourth of the sweep shuts the eyes by a known direction of the embedded model.
    blink = torch.from_numpy(motion_priors(pipe).blink)
    shut = (sweep[::4, 6:] - portrait.motion[:, 6:]) @ blink / blink.square().sum()
    assert len(shut) == 75 and shut.min() >= 0.29 and shut.max() <= 1.01


def test_interrupted_motion_goes_on(pipe, portraits, tmp_path):
    files = make(pipe, portraits, tmp_path)
    motions, kept = motions_of(files), files[0].stat().st_mtime_ns
    for file in [*files[1:], tmp_path / "complete"]:
        file.unlink()
    torch.testing.assert_close(motions_of(make(pipe, portraits, tmp_path)), motions)
    assert files[0].stat().st_mtime_ns == kept


def test_motion_ends_by_the_clock_after_a_source(pipe, portraits, tmp_path):
    files = make(pipe, portraits, tmp_path, deadline=0.0)
    assert [len(load_file(file)["motions"]) for file in files] == [15, 9]  # one turn of the voice, and the sweep
    assert make(pipe, portraits, tmp_path) == files  # what frames may have been made of stays


def test_frames_are_what_the_decoder_makes_on_each_background(pipe, portraits, tmp_path):
    files = make(pipe, portraits, tmp_path / "motion")
    assert render_frames(pipe, portraits, BACKGROUNDS, files, tmp_path / "frames", num_frames=20) == 20
    dataset, motions = AvatarFrames(tmp_path / "frames"), motions_of(files)
    assert len(dataset) == 20
    seen = [dataset[index] for index in range(20)]
    assert len({tuple(sample["motion"].tolist()) for sample in seen}) == 20
    used = torch.stack([sample["background"] for sample in seen])
    assert [(used == colour).all(1).sum() for colour in BACKGROUNDS] == [10, 10]
    for sample in seen:
        assert (motions == sample["motion"]).all(1).any()
        who = portraits[(BACKGROUNDS == sample["background"]).all(1).nonzero().item()]
        frame = next(pipe.decode_frames(who, sample["motion"][None]))[0]
        assert (sample["frame"] - frame).abs().max() < 0.51 / 255 + 1e-4


def test_no_frame_turns_further_than_the_decoder_masters(pipe, portraits, tmp_path):
    motions = portraits[0].motion[0].repeat(40, 1)
    motions[:, 0] += torch.linspace(-0.6, 0.6, 40)
    save_file({"motions": motions}, tmp_path / "motion.safetensors")
    count = render_frames(pipe, portraits, BACKGROUNDS, [tmp_path / "motion.safetensors"], tmp_path / "frames", 100)
    frames = AvatarFrames(tmp_path / "frames")
    turns = torch.stack([frames[i]["motion"][0] - portraits[0].motion[0, 0] for i in range(count)]).abs()
    assert count == int((torch.linspace(-0.6, 0.6, 40).abs() <= MOST_TURN[0]).sum()) and turns.max() <= MOST_TURN[0]


def test_interrupted_frames_go_on(pipe, portraits, tmp_path, monkeypatch):
    """Stopped by the clock after the first shard, then resumed: the same frames as in one go, the first not again."""
    monkeypatch.setattr("vasa_hf.training.avatar.frames.SHARD_FRAMES", 8)
    files = make(pipe, portraits, tmp_path / "motion")
    arguments = (pipe, portraits, BACKGROUNDS, files)
    assert render_frames(*arguments, tmp_path / "whole", 30) == 30
    folder, told = tmp_path / "parts", []
    assert render_frames(*arguments, folder, 30, deadline=0.0) == 8
    first = (folder / "frames-00000.safetensors").stat().st_mtime_ns
    assert render_frames(*arguments, folder, 30, on_frames=lambda *done: told.append(done)) == 30
    assert told == [(16, 30), (24, 30), (30, 30)]
    assert (folder / "frames-00000.safetensors").stat().st_mtime_ns == first
    parts, whole = AvatarFrames(folder), AvatarFrames(tmp_path / "whole")
    for index in range(30):
        torch.testing.assert_close(parts[index], whole[index])
    with pytest.raises(ValueError, match="`folder`"):
        render_frames(*arguments, folder, 30, seed=1)
    with pytest.raises(ValueError, match="`backgrounds`"):
        render_frames(pipe, portraits, BACKGROUNDS[:1], files, folder, 30)


def test_dataset_holds_few_shards_and_shows_all_frames(pipe, portraits, tmp_path, monkeypatch):
    monkeypatch.setattr("vasa_hf.training.avatar.frames.SHARD_FRAMES", 4)
    files = make(pipe, portraits, tmp_path / "motion")
    render_frames(pipe, portraits, BACKGROUNDS, files, tmp_path / "frames", 30)
    dataset = AvatarFrames(tmp_path / "frames", max_shards=2)
    assert len(dataset.sizes) == 8 and dataset.sizes[-1] == 2
    loads, opened = [], dataset._shard

    def watched(number):
        loads.append(number in dataset._open)
        result = opened(number)
        assert len(dataset._open) <= 2
        return result

    dataset._shard = watched
    rounds = [[dataset[30 * number + row]["motion"] for row in range(30)] for number in range(2)]
    assert loads.count(False) <= 17  # each shard is read once a round
    for one in rounds:
        assert len(torch.stack(one).unique(dim=0)) == 30
    assert not torch.equal(torch.stack(rounds[0]), torch.stack(rounds[1]))
    again = AvatarFrames(tmp_path / "frames", max_shards=2)
    torch.testing.assert_close(again[41]["motion"], rounds[1][11])  # whatever was read before


def test_compressed_frames_are_nearly_the_same(pipe, portraits, tmp_path):
    files = make(pipe, portraits, tmp_path / "motion")
    for quality in (0, 95):
        render_frames(pipe, portraits, BACKGROUNDS, files, tmp_path / str(quality), 20, jpeg_quality=quality)
    raw, compressed = (AvatarFrames(tmp_path / name) for name in ("0", "95"))
    error = torch.stack([raw[i]["frame"] - compressed[i]["frame"] for i in range(20)])
    assert 0 < error.abs().mean() < 0.01 and error.abs().max() < 0.1
    assert all(torch.equal(raw[i]["motion"], compressed[i]["motion"]) for i in range(20))


def test_no_frames(tmp_path):
    assert SHARD_FRAMES == 64
    with pytest.raises(ValueError, match="`folder`"):
        AvatarFrames(tmp_path)
