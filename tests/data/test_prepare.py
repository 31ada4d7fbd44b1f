"""`vasa-hf prepare` on a folder of good, bad and broken videos; the same bytes however it was run."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.testing_utils.talking_video import FRAMES, analyzer, masked, on_canvas, talk, write
from vasa_hf.cli import main
from vasa_hf.data import prepare_job, shards
from vasa_hf.data.filters import Filters
from vasa_hf.data.landmark_dynamics import FaceLabels
from vasa_hf.data.prepare import PrepareSettings, VideoPreparer, bits_a_pixel, find_videos, load_voice
from vasa_hf.geometry.landmarks import LANDMARK_IDS
from vasa_hf.media.ffmpeg import ffmpeg_path
from vasa_hf.media.video import VideoReader

QUICK = Filters.named("strict", min_seconds=1.0, max_seconds=4.0, min_sync=0.0)


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """One good video, and one for each thing that may be wrong."""
    folder = tmp_path_factory.mktemp("videos")
    frames, voice = talk()
    good = folder / "anna" / "good.mp4"
    write(good, frames, voice)
    other = [np.ascontiguousarray(frame[:, ::-1, ::-1]) for frame in frames[40:]]
    write(folder / "bad" / "cut.mp4", [*frames[:40], *other], voice)
    write(folder / "bad" / "photo.mp4", [frames[5]] * 30, voice)
    write(folder / "bad" / "mask.mp4", masked(frames[:30]), voice)
    write(folder / "bad" / "silent.mp4", frames[:30])
    write(folder / "bad" / "two.mp4", on_canvas(frames[:17], frames[20:37], size=(256, 540)), voice)
    write(folder / "bad" / "voice.mp4", frames, np.ascontiguousarray(voice[::-1]))
    whole = good.read_bytes()
    (folder / "bad" / "cut_off.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "bad" / "text.mp4").write_text("not a video")
    (folder / "notes.txt").write_text("no video by its name")
    return folder


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    """The whole folder prepared with the settings that a user gets."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare_job.prepare(videos, folder)
    return folder


def rows_of(folder):
    with open(Path(folder) / "clips.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_good_stay_and_the_bad_go_for_the_right_reason(prepared):
    rows = rows_of(prepared)
    kept = [row for row in rows if not row["dropped_for"]]
    assert [(row["clip"], row["identity"], row["start_seconds"]) for row in kept] == [
        ("anna_good_000000", "anna", "0.0")
    ]
    assert float(kept[0]["stop_seconds"]) == FRAMES / 25
    why = {row["video"].removeprefix("bad/"): row["dropped_for"] for row in rows if row["dropped_for"]}
    expected = {"cut": "too short", "photo": "still image", "mask": "mouth covered", "silent": "silent"}
    expected |= {"two": "several people", "voice": "lips and audio differ"}
    assert {name: why[f"{name}.mp4"] for name in expected} == expected
    assert [row["stop_seconds"] for row in rows if row["video"] == "bad/cut.mp4"] == ["1.6", "3.2"]
    assert why["text.mp4"].startswith("unreadable: `path` must be a readable video, got 'bad/text.mp4'")
    assert why["cut_off.mp4"].startswith("unreadable")
    assert "@ 0x" not in "".join(why.values())  # addresses change from run to run


def test_the_counts_add_up(prepared):
    manifest = shards.read_manifest(prepared)
    counts = manifest["counts"]
    assert counts["raw"] | {"hours": 0} == {"videos": 9, "hours": 0, "identities": 2}
    assert counts["filtered"] | {"hours": 0} == {"videos": 1, "clips": 1, "hours": 0, "identities": 1}
    assert counts["unreadable"] == {"videos": 2}
    parts = [counts["filtered"], *counts["dropped"].values()]
    assert sum(part["hours"] for part in parts) == pytest.approx(counts["raw"]["hours"], abs=1e-5)
    assert counts["filtered"]["hours"] == pytest.approx(FRAMES / 25 / 3600, abs=1e-6)
    text = prepare_job.table(counts)
    assert "mouth covered" in text and "blurred" not in text
    assert manifest["samples"] == 1 and shards.check(prepared) == []


def test_a_clip_is_the_standard_square_with_labels_in_its_units(prepared):
    index = shards.ShardIndex(prepared)
    clip, frames = index[0], index.frames(0)
    about = clip["json"]
    assert frames.shape == (FRAMES, 256, 256, 3) and about["frames"] == FRAMES
    assert len(clip["wav"]) == FRAMES * 640
    labels = FaceLabels.load(io.BytesIO(index.read_bytes(0, ["npz"])["npz"]))
    assert tuple(labels.ids) == LANDMARK_IDS and labels.names == ["anna_good_000000"]
    box = torch.cat([labels.landmarks.amin(1), labels.landmarks.amax(1)], 1).median(0).values
    side = (box[2:] - box[:2]).max()
    assert side == pytest.approx(0.5, abs=0.01)  # the crop is 2.0 boxes wide,
    assert (box[:2] + box[2:]).tolist() == pytest.approx([1.0, 1.1], abs=0.02)  # raised by 5 %
    for row in (0, 33, 79):
        (face,) = analyzer().detect(frames[row])
        assert ((face.landmarks / 256 - labels.landmarks[row]).norm(dim=1) / side).mean() < 0.02
        pose = face.pose_in(torch.diag(torch.tensor([1 / 256, 1 / 256, 1.0])))
        assert (pose[:3] - labels.pose[row, :3]).abs().max() < 0.06
        assert (pose[[3, 4, 6]] - labels.pose[row, [3, 4, 6]]).abs().max() < 0.01
    extra = clip["npz"]
    assert extra["gaze"].shape == (FRAMES, 2) and extra["expression"].shape == (FRAMES, 6)
    assert np.median(extra["head_distance"]) == pytest.approx(1.0, abs=0.01)
    assert extra["speech"].mean() > 0.7 and about["sync"] > 0.06
    _, voice = talk()
    assert np.corrcoef(voice[: FRAMES * 640], clip["wav"])[0, 1] > 0.97  # in time with the original


def test_a_finished_folder_is_left_alone_and_new_videos_are_added(prepared, videos, tmp_path):
    shutil.copytree(videos / "anna", tmp_path / "videos" / "anna")
    shutil.copytree(prepared, tmp_path / "out")
    before = files_of(tmp_path / "out")
    seen = []
    prepare_job.prepare(videos, tmp_path / "out", progress=lambda done, total: seen.append(total))
    assert seen == [] and files_of(tmp_path / "out") == before
    shutil.copy(videos / "anna" / "good.mp4", tmp_path / "videos" / "anna" / "again.mp4")
    prepare_job.prepare(tmp_path / "videos", tmp_path / "out", progress=lambda done, total: seen.append(total))
    assert seen == [1]
    after = files_of(tmp_path / "out")
    assert after["clip-000000.tar"] == before["clip-000000.tar"]
    assert shards.ShardIndex(tmp_path / "out").keys() == ["anna_good_000000", "anna_again_000000"]
    assert shards.read_manifest(tmp_path / "out")["counts"]["raw"]["videos"] == 10
    assert shards.check(tmp_path / "out") == []
    with pytest.raises(ValueError, match="same settings"):
        prepare_job.prepare(videos, tmp_path / "out", PrepareSettings(size=128))


@pytest.fixture(scope="module")
def short_videos(tmp_path_factory):
    """Three good videos of little more than a second, one of them broken."""
    folder = tmp_path_factory.mktemp("short")
    frames, voice = talk()
    for number in range(3):
        first = 26 * number
        write(folder / f"p{number}" / "v.mp4", frames[first : first + 26], voice[first * 640 :])
    (folder / "p1" / "w.mov").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def one_process(short_videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    prepare_job.prepare(short_videos, folder, PrepareSettings(QUICK), clips_per_shard=2)
    assert [entry["samples"] for entry in shards.read_manifest(folder)["shards"]] == [2, 1]
    return folder


@pytest.mark.e2e
def test_two_ray_workers_write_the_same_bytes(short_videos, one_process, tmp_path):
    pytest.importorskip("ray.data", reason="needs ray: pip install 'vasa_hf[ray]' (79 MB, 55 MB more for pyarrow)")
    settings = PrepareSettings(QUICK)
    prepare_job.prepare(short_videos, tmp_path, settings, clips_per_shard=2, workers=2, engine="ray")
    assert files_of(tmp_path) == files_of(one_process)


@pytest.mark.e2e
def test_a_killed_run_goes_on_with_two_processes_and_ends_with_the_same_bytes(short_videos, one_process, tmp_path):
    command = [sys.executable, "-m", "vasa_hf.cli", "prepare", str(short_videos), "-o", str(tmp_path)]
    command += ["--min-seconds", "1", "--max-seconds", "4", "--set", "min_sync=0", "--clips-per-shard", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    parts, deadline = tmp_path / "parts", time.monotonic() + 300
    while not list(parts.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    finished = {path.stem: path.read_bytes() for path in parts.glob("*.tar")}
    assert 1 <= len(finished) < 3 and not list(tmp_path.glob("clip-*.tar"))
    for key, content in finished.items():
        assert content.endswith(bytes(1024)), key  # the end of a whole tar
    (parts / ".p1_v.tar.1.partial").write_bytes(b"left by the dead")
    seen = []
    progress = lambda done, total: seen.append(total)  # noqa: E731
    prepare_job.prepare(short_videos, tmp_path, PrepareSettings(QUICK), 2, workers=2, progress=progress)
    assert seen[0] < 4 and files_of(tmp_path) == files_of(one_process)


@pytest.mark.e2e
def test_a_kill_while_shards_are_packed_changes_nothing(short_videos, one_process, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    written = []
    real = shards.ShardWriter.write

    def write_three(self, key, files):
        if len(written) == 2:
            raise Killed
        written.append(key)
        real(self, key, files)

    settings = PrepareSettings(QUICK)
    monkeypatch.setattr(shards.ShardWriter, "write", write_three)
    with pytest.raises(Killed):
        prepare_job.prepare(short_videos, tmp_path, settings, clips_per_shard=2)
    assert len(list((tmp_path / "parts").glob("*.json"))) == 4
    monkeypatch.undo()
    seen = []
    prepare_job.prepare(short_videos, tmp_path, settings, clips_per_shard=2, progress=lambda *done: seen.append(done))
    assert seen == [] and files_of(tmp_path) == files_of(one_process)


def test_only_unreadable_videos_are_tried_again(short_videos, one_process, tmp_path):
    shutil.copytree(short_videos, tmp_path / "videos")
    shutil.copytree(one_process, tmp_path / "out")
    shutil.copy(short_videos / "p0" / "v.mp4", tmp_path / "videos" / "p1" / "w.mov")
    settings = PrepareSettings(QUICK)
    assert [name for name, _ in prepare_job.unreadable(tmp_path / "out")] == ["p1/w.mov"]
    manifest = prepare_job.prepare(tmp_path / "videos", tmp_path / "out", settings, 2, retry=True)
    assert manifest["samples"] == 4 and manifest["counts"]["unreadable"] == {"videos": 0}


def test_the_command_prints_checks_and_unpacks(short_videos, one_process, tmp_path, capsys):
    shutil.copytree(one_process, tmp_path / "out")
    quick = ["--min-seconds", "1", "--max-seconds", "4", "--set", "min_sync=0", "--clips-per-shard", "2"]
    assert main(["prepare", str(short_videos), "-o", str(tmp_path / "out"), *quick]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["videos", "clips", "hours", "people"]
    assert out.splitlines()[2].split() == ["filtered", "3", "3", "0.0009", "3"]
    assert "unreadable: p1/w.mov" in err
    assert main(["prepare", str(short_videos), "-o", str(tmp_path / "out"), *quick, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["filtered"]["clips"] == 3
    assert main(["prepare", "--check", str(tmp_path / "out")]) == 0
    assert main(["prepare", "--unpack", str(tmp_path / "out"), "-o", str(tmp_path / "data")]) == 0
    labels = FaceLabels.load(tmp_path / "data" / "clips.npz")
    assert labels.names == ["p0_v_000000", "p1_v_000000", "p2_v_000000"] and len(labels.pose) == 78
    assert [path.stem for path in sorted((tmp_path / "data" / "clips").iterdir())] == labels.names
    reader = VideoReader(tmp_path / "data" / "clips" / "p2_v_000000.mp4")
    assert reader.has_audio and len(list(reader)) == 26
    tar = tmp_path / "out" / "clip-000001.tar"
    tar.write_bytes(tar.read_bytes().replace(b"p2_v", b"p3_v"))
    assert main(["prepare", "--check", str(tmp_path / "out")]) == 1
    assert "sha256" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "-o", "out"], "existing folder"),
        (["."], "`--output` must be given"),
        (["-o", "out"], "`videos` must be given"),
        ([".", "-o", "out", "--filters", "odd"], "`--filters` must be one of"),
        ([".", "-o", "out", "--set", "odd=1"], "have no 'odd'"),
        ([".", "-o", "out", "--size", "31"], "`--size`"),
        ([".", "-o", "out", "--engine", "odd"], "`--engine`"),
        ([".", "-o", "out", "--workers", "0"], "`--workers`"),
        ([".", "-o", "out"], "must hold videos"),
        (["--check", "."], "manifest.json"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_videos_get_keys_and_people_from_their_place(tmp_path):
    for name in ("id1/a b.mp4", "id1/a_b.mov", "id2/x/y.MKV", "z.webm", "z.txt", ".hidden.mp4", "out/clip.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    sources = find_videos(tmp_path, skip=tmp_path / "out")
    assert {source.name for source in sources} == {"id1/a b.mp4", "id1/a_b.mov", "id2/x/y.MKV", "z.webm"}
    keys = [source.key for source in sources]
    assert len(set(keys)) == 4 and all(shards.KEY.fullmatch(key) for key in keys) and keys == sorted(keys)
    people = {source.name: source.identity for source in sources}
    assert people["id2/x/y.MKV"] == "id2" and people["z.webm"] == "z" and people["id1/a_b.mov"] == "id1"
    people = {source.identity for source in find_videos(tmp_path, "video", tmp_path / "out")}
    assert "id2_x_y" in people and "id1" not in people


def test_sound_of_any_kind_becomes_frames_of_16_khz(tmp_path):
    frames, voice = talk()
    write(tmp_path / "a.mp4", frames[:20], voice)
    command = [ffmpeg_path(), "-v", "error", "-i", str(tmp_path / "a.mp4"), "-ac", "2", "-ar", "44100", "-c:v", "copy"]
    subprocess.run([*command, "-c:a", "pcm_s16le", str(tmp_path / "b.mov")], check=True)
    for name in ("a.mp4", "b.mov"):
        samples = load_voice(tmp_path / name, 25)
        assert samples.shape == (25 * 640,) and (samples[21 * 640 :] == 0).all()
        assert np.corrcoef(samples[: 20 * 640], voice[: 20 * 640])[0, 1] > 0.97
    assert bits_a_pixel(tmp_path / "a.mp4", 20, (256, 256)) < os.path.getsize(tmp_path / "a.mp4") * 8 / 20 / 256**2


def test_another_size_scale_and_frame_rate(videos, tmp_path):
    frames, voice = talk()
    write(tmp_path / "in.mp4", on_canvas(frames[26:56], size=(300, 500), top=20), voice[26 * 640 :])
    command = [ffmpeg_path(), "-v", "error", "-i", str(tmp_path / "in.mp4"), "-r", "30000/1001"]
    (tmp_path / "videos").mkdir()
    subprocess.run([*command, str(tmp_path / "videos" / "in.mkv")], check=True)
    settings = PrepareSettings(QUICK, size=128, crop_scale=1.6)
    (source,) = find_videos(tmp_path / "videos")
    report = VideoPreparer(settings)(source, tmp_path / "in.tar")
    assert [piece["reason"] for piece in report["pieces"]] == [None] and report["frames"] in (29, 30, 31)
    ((_, files),) = prepare_job._clips_of(tmp_path / "in.tar")
    (tmp_path / "clip.mp4").write_bytes(files["mp4"])
    assert VideoReader(tmp_path / "clip.mp4").size == (128, 128) and VideoReader(tmp_path / "clip.mp4").fps == 25
    labels = FaceLabels.load(io.BytesIO(files["npz"]))
    box = torch.cat([labels.landmarks.amin(1), labels.landmarks.amax(1)], 1).median(0).values
    assert (box[2:] - box[:2]).max() == pytest.approx(1 / 1.6, abs=0.01)
