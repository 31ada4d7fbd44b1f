"""Shards: whole or absent, the same bytes every time, checked by hash, read at random and by other tools."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from vasa_hf.data import shards
from vasa_hf.data.landmark_dynamics import FaceLabels
from vasa_hf.data.shards import ShardIndex, ShardWriter
from vasa_hf.media.audio import load_audio
from vasa_hf.media.video import VideoReader, VideoWriter

FRAMES = 6


def labels_of(key, frames=FRAMES, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "names": np.array([key]),
        "offsets": np.array([0, frames], np.int32),
        "landmarks": rng.integers(8192, 16384, (frames, 162, 2)).astype(np.uint16),
        "pose": rng.normal(size=(frames, 7)).astype(np.float32),
        "eye_open": rng.random((frames, 2)).astype(np.float16),
        "mouth": rng.random((frames, 2)).astype(np.float16),
        "iris_offset": rng.random((frames, 2, 2)).astype(np.float16),
        "landmark_ids": np.arange(162, dtype=np.int16),
        "canonical": np.zeros((478, 3), np.float32),
    }


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    rng = np.random.default_rng(0)
    with VideoWriter(path, 25, (32, 32), provenance=False) as writer:
        for _ in range(FRAMES):
            writer.write(np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8))
    return path.read_bytes()


def tone(seed):
    return 0.5 * np.sin(np.arange(640 * FRAMES) * (0.05 + 0.01 * seed)).astype(np.float32)


def sample(number, video):
    key = f"clip_{number}"
    about = {"frames": FRAMES, "identity": f"person{number % 2}"}
    return key, {"json": about, "mp4": video, "npz": labels_of(key, seed=number), "wav": tone(number)}


def write(folder, video, count=5, **options):
    with ShardWriter(folder, **{"samples_per_shard": 2, **options}) as writer:
        for number in range(count):
            writer.write(*sample(number, video))


def test_every_clip_comes_back(tmp_path, video):
    write(tmp_path, video)
    index = ShardIndex(tmp_path)
    assert [path.name for path in shards.shard_paths(tmp_path)] == [f"clip-00000{i}.tar" for i in range(3)]
    assert index.keys() == [f"clip_{number}" for number in range(5)] and len(index) == 5
    clip = index[3]
    assert clip["key"] == "clip_3" and clip["json"] == {"frames": FRAMES, "identity": "person1"}
    assert clip["mp4"] == video
    assert np.abs(clip["wav"] - tone(3)).max() < 1 / 32767
    assert np.array_equal(clip["npz"]["pose"], labels_of("clip_3", seed=3)["pose"])
    assert index.frames("clip_1").shape == (FRAMES, 32, 32, 3)
    assert set(index.read("clip_4", ["wav"])) == {"key", "wav"}
    loaded = FaceLabels.load(io.BytesIO(index.read_bytes(2, ["npz"])["npz"]))
    assert loaded.names == ["clip_2"] and loaded.landmarks.shape == (FRAMES, 162, 2)
    with pytest.raises(KeyError):
        index.read("clip_9")
    with pytest.raises(IndexError):
        index[5]


def test_the_same_clips_give_the_same_bytes(tmp_path, video):
    write(tmp_path / "a", video)
    time.sleep(1.1)  # a tar tells time in seconds
    write(tmp_path / "b", video)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_a_shard_ends_before_it_is_too_large(tmp_path, video):
    one = 4 * 512 + sum(-(-len(shards.encode(name, part)) // 512) * 512 for name, part in sample(0, video)[1].items())
    write(tmp_path, video, samples_per_shard=100, max_bytes=2 * one + 1024)
    assert [entry["samples"] for entry in shards.read_manifest(tmp_path)["shards"]] == [2, 2, 1]


def test_the_index_agrees_with_tar_and_with_a_scan(tmp_path, video):
    write(tmp_path, video)
    index, scanned = ShardIndex(tmp_path), ShardIndex.scan(tmp_path)
    assert scanned.keys() == index.keys() and np.array_equal(scanned.offset, index.offset)
    with tarfile.open(tmp_path / "clip-000001.tar") as tar:
        assert tar.getnames() == [f"clip_{n}.{e}" for n in (2, 3) for e in ("json", "mp4", "npz", "wav")]
        assert tar.extractfile("clip_2.npz").read() == index.read_bytes("clip_2")["npz"]
    (tmp_path / "index.npz").unlink()  # shards of others come without
    assert ShardIndex(tmp_path).read_bytes(4) == index.read_bytes(4)


def test_webdataset_reads_the_shards(tmp_path, video):
    webdataset = pytest.importorskip("webdataset")
    write(tmp_path, video)
    found = list(webdataset.WebDataset(str(tmp_path / "clip-{000000..000002}.tar"), shardshuffle=False))
    assert [clip["__key__"] for clip in found] == [f"clip_{number}" for number in range(5)]
    assert json.loads(found[1]["json"])["identity"] == "person1" and found[1]["mp4"] == video
    assert np.array_equal(np.load(io.BytesIO(found[4]["npz"]))["pose"], labels_of("", seed=4)["pose"])


def test_threads_and_loader_workers_read_at_once(tmp_path, video):
    write(tmp_path, video, count=8)
    index = ShardIndex(tmp_path)
    expected = [index.read_bytes(row) for row in range(8)]
    rows = np.random.default_rng(0).integers(0, 8, 200).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert all(read == expected[row] for row, read in zip(rows, pool.map(index.read_bytes, rows), strict=True))
    loader = torch.utils.data.DataLoader(index, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [clip["key"] for clip in loader] == index.keys()


def test_bad_input_is_refused(tmp_path, video):
    with ShardWriter(tmp_path) as writer:
        writer.write(*sample(0, video))
        with pytest.raises(ValueError, match="`key` must be new"):
            writer.write(*sample(0, video))
        with pytest.raises(ValueError, match="letters, digits"):
            writer.write("a.b", {"json": {}})  # everything from the first dot on would be the extension
        with pytest.raises(ValueError, match="extensions"):
            writer.write("a", {})
        with pytest.raises(ValueError, match="bytes for 'mp4'"):
            writer.write("a", {"mp4": {}})
    with pytest.raises(ValueError, match="append=True"):
        ShardWriter(tmp_path)
    with pytest.raises(ValueError, match="`samples_per_shard`"):
        ShardWriter(tmp_path / "b", samples_per_shard=0)
    with pytest.raises(ValueError, match="has none"):
        ShardIndex(tmp_path / "b")


def test_more_can_be_appended_later(tmp_path, video):
    write(tmp_path, video, count=3)
    before = (tmp_path / "clip-000001.tar").read_bytes()
    with ShardWriter(tmp_path, append=True) as writer:
        with pytest.raises(ValueError, match="`key` must be new"):
            writer.write(*sample(1, video))
        writer.write(*sample(7, video))
    assert ShardIndex(tmp_path).keys() == ["clip_0", "clip_1", "clip_2", "clip_7"]
    assert (tmp_path / "clip-000001.tar").read_bytes() == before
    assert shards.check(tmp_path) == []


def test_check_finds_every_kind_of_damage(tmp_path, video):
    write(tmp_path, video)
    assert shards.check(tmp_path) == []
    second = tmp_path / "clip-000001.tar"
    whole = second.read_bytes()
    second.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    assert shards.check(tmp_path) == ["clip-000001.tar: its bytes have changed (sha256)"]
    second.write_bytes(whole[:-2048])
    assert "bytes instead of" in shards.check(tmp_path)[0]
    second.rename(tmp_path / "clip-000007.tar")
    assert shards.check(tmp_path) == ["clip-000007.tar: not in the manifest", "clip-000001.tar: missing"]
    write(tmp_path / "b", video, count=1)
    with ShardWriter(tmp_path / "b", append=True) as writer:  # whole, but wrong in itself
        parts = sample(1, video)[1]
        writer.write("short", parts | {"wav": parts["wav"][:-640]})
        writer.write("long", parts | {"npz": labels_of("long", FRAMES + 1)})
    assert [line.split(":")[0] for line in shards.check(tmp_path / "b")] == ["short", "long"]
    (tmp_path / "b" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        shards.check(tmp_path / "b")


def test_an_error_leaves_whole_shards_only(tmp_path, video):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, samples_per_shard=2) as writer:
        for number in range(3):
            writer.write(*sample(number, video))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["clip-000000.tar"]
    assert ShardIndex(tmp_path).keys() == ["clip_0", "clip_1"]


def test_a_killed_writer_leaves_whole_shards_only(tmp_path):
    script = (
        "import sys\nfrom vasa_hf.data.shards import ShardWriter\n"
        "with ShardWriter(sys.argv[1], samples_per_shard=3) as writer:\n"
        "    for number in range(10**9):\n"
        "        writer.write(f'k{number}', {'bin': bytes(50_000)})\n"
        "        print(number, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    while int(process.stdout.readline()) < 7:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = ShardIndex(tmp_path).keys()
    assert len(found) >= 6 and len(found) % 3 == 0 and found == [f"k{number}" for number in range(len(found))]


def test_unpack_writes_what_the_trainers_read(tmp_path, video):
    write(tmp_path / "shards", video, count=3)
    assert shards.unpack(tmp_path / "shards", tmp_path / "data") == 3
    labels = FaceLabels.load(tmp_path / "data" / "clips.npz")
    assert labels.names == ["clip_0", "clip_1", "clip_2"] and labels.offsets.tolist() == [0, 6, 12, 18]
    assert np.array_equal(labels.pose[6:12].numpy(), labels_of("", seed=1)["pose"])
    rows = (tmp_path / "data" / "identities.csv").read_text().splitlines()
    assert rows == ["clip,identity", "clip_0,person0", "clip_1,person1", "clip_2,person0"]
    path = tmp_path / "data" / "clips" / "clip_2.mp4"
    assert len(list(VideoReader(path))) == FRAMES
    sound, rate = load_audio(path)
    heard = np.interp(np.arange(640 * FRAMES) / 16_000, np.arange(sound.shape[1]) / rate, sound[0])
    assert np.corrcoef(heard[640:-640], tone(2)[640:-640])[0, 1] > 0.98  # in time: AAC's delay is taken out
    stamp = path.stat().st_mtime_ns
    shards.unpack(tmp_path / "shards", tmp_path / "data")
    assert path.stat().st_mtime_ns == stamp


def test_unpack_wants_labels_for_all_or_none(tmp_path, video):
    with ShardWriter(tmp_path / "s") as writer:
        writer.write("a", {"mp4": video})
    shards.unpack(tmp_path / "s", tmp_path / "data")
    assert not (tmp_path / "data" / "clips.npz").exists()
    with ShardWriter(tmp_path / "s", append=True) as writer:
        writer.write(*sample(1, video))
    with pytest.raises(ValueError, match="1 of 2"):
        shards.unpack(tmp_path / "s", tmp_path / "data")
