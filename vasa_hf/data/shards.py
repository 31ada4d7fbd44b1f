"""Clips in WebDataset shards: plain tar files that are written once, checked by hash, and read at random.

```
clip-000000.tar     <key>.json   what it is and where it comes from (identity, fps, size, source, seconds, ...)
                    <key>.mp4    square face crop, 25 frames per second
                    <key>.npz    labels of its frames; `FaceLabels.load` reads it
                    <key>.wav    16 kHz mono, 16 bits: 640 samples per frame
index.npz           where each file of each clip begins: random access without reading the tars
manifest.json       name, bytes, sha256 and number of clips of each shard, and what the maker adds
```

A shard appears under its name when it is whole. Nothing in it depends on the time or on who wrote it: the same clips
give the same bytes. Any tool that reads tar reads it, `webdataset` among them.

# Not in the paper: none of the papers tells how its clips are kept.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vasa_hf.media.ffmpeg import READ_OPTIONS, ffmpeg_path, shorten_stderr, staging

KEY = re.compile(r"[A-Za-z0-9_\-]{1,80}")
EXTENSION = re.compile(r"[a-z0-9_]{1,12}(\.[a-z0-9_]{1,12})?")
SHARD = re.compile(r"clip-(\d{6})\.tar")
MANIFEST, INDEX = "manifest.json", "index.npz"
SAMPLING_RATE = 16_000

# --- writing ----------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Write clips into `clip-000000.tar`, `clip-000001.tar`, ... of a folder; a context manager.

    At its end the index and the manifest are written. After an exception the shard that was being filled is gone, those
    before it stay.

    Args:
        folder (`str` or `os.PathLike`): Target; made if it is not there.
        samples_per_shard (`int`, defaults to 1000): Clips of a full shard.
        max_bytes (`int`, *optional*): A shard is closed before it grows beyond this (one clip always fits).
        about (`Mapping`, *optional*): What else the manifest shall say; JSON.
        append (`bool`, defaults to `False`): Whether to add shards to those that are there.

    Attributes:
        num_closed (`int`): Shards that this writer has finished.

    Raises:
        ValueError: If a number is too small, or the folder holds shards already and `append` is off.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        samples_per_shard: int = 1000,
        max_bytes: int | None = None,
        about: Mapping[str, Any] | None = None,
        append: bool = False,
    ):
        if samples_per_shard < 1:
            raise ValueError(f"`samples_per_shard` must be at least 1, got {samples_per_shard}.")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"`max_bytes` must be at least 1, got {max_bytes}.")
        self.folder, self.samples_per_shard, self.max_bytes = Path(folder), samples_per_shard, max_bytes
        self.about = dict(about or {})
        self.folder.mkdir(parents=True, exist_ok=True)
        there = shard_paths(self.folder)
        if there and not append:
            raise ValueError(f"`folder` must hold no shards yet (or pass `append=True`), got {str(folder)!r}.")
        self._next = 1 + int(SHARD.fullmatch(there[-1].name)[1]) if there else 0
        self._keys = {key for path in there for key, _ in scan_tar(path)}
        self._tar: tarfile.TarFile | None = None
        self._count = 0
        self.num_closed = 0

    def __enter__(self) -> ShardWriter:
        """Return itself."""
        return self

    def write(self, key: str, files: Mapping[str, Any]) -> None:
        """Append a clip.

        Args:
            key (`str`): Its name: letters, digits, `_` and `-`, at most 80; used once.
            files (`Mapping` of `str` to `bytes`):
                Extension -> content. `json` may be a dict, `npz` a dict of arrays, `wav` float samples `(n,)` in
                [-1, 1] at 16 kHz.

        Raises:
            ValueError: If the key or an extension is unfit, or the key was used before.
        """
        if not KEY.fullmatch(key):
            raise ValueError(f"`key` must be 1 to 80 letters, digits, `_` or `-`, got {key!r}.")
        if key in self._keys:
            raise ValueError(f"`key` must be new, but {key!r} was written before.")
        if not files or not all(EXTENSION.fullmatch(extension) for extension in files):
            raise ValueError(f"`files` must map extensions such as mp4 to bytes, got {sorted(files)}.")
        encoded = [(extension, encode(extension, files[extension])) for extension in sorted(files)]
        size = sum(512 + len(content) + -len(content) % 512 for _, content in encoded)
        full = self._count >= self.samples_per_shard
        if self._tar is not None and (full or (self.max_bytes and self._tar.offset + size > self.max_bytes)):
            self._close_shard()
        if self._tar is None:
            self._open_shard()
        for extension, content in encoded:
            add_file(self._tar, f"{key}.{extension}", content)
        self._keys.add(key)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the last shard and write index and manifest; or drop what is not whole."""
        if kind is not None:
            if self._tar is not None:
                self._file.close()
                os.unlink(self._file.name)
            return
        if self._tar is not None:
            self._close_shard()
        write_manifest(self.folder, self.about)

    def _open_shard(self) -> None:
        self._file = open(self.folder / f".clip-{self._next:06d}.tar.{os.getpid()}.partial", "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._count = 0

    def _close_shard(self) -> None:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, self.folder / f"clip-{self._next:06d}.tar")
        self._next += 1
        self.num_closed += 1
        self._tar = None


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file to a tar; owner and time are left out, so that equal clips give equal bytes."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))


def encode(extension: str, content: Any) -> bytes:
    """Bytes of a file: JSON from a dict, `npz` from a dict of arrays, WAV from samples; bytes stay as they are.

    Raises:
        ValueError: If the content does not fit the extension.
    """
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    if extension == "json" and isinstance(content, Mapping):
        return json.dumps(content, sort_keys=True, ensure_ascii=False).encode()
    if extension == "npz" and isinstance(content, Mapping):
        file = io.BytesIO()
        np.savez_compressed(file, **content)
        return file.getvalue()
    if extension == "wav" and isinstance(content, np.ndarray) and content.ndim == 1:
        file = io.BytesIO()
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(SAMPLING_RATE)
            sound.writeframes(np.rint(content.clip(-1.0, 1.0) * 32767).astype("<i2").tobytes())
        return file.getvalue()
    raise ValueError(f"`files` must hold bytes for {extension!r}, got {type(content).__name__}.")


def decode(extension: str, content: bytes) -> Any:
    """What `encode` was given: a dict, a dict of arrays, float32 samples; or the bytes."""
    if extension == "json":
        return json.loads(content)
    if extension == "npz":
        with np.load(io.BytesIO(content)) as arrays:
            return dict(arrays)
    if extension == "wav":
        with wave.open(io.BytesIO(content)) as sound:
            if sound.getparams()[:3] != (1, 2, SAMPLING_RATE):
                raise ValueError(f"`content` must be a 16-bit mono WAV at 16 kHz, got {sound.getparams()}.")
            return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32767
    return content


# --- manifest and index -----------------------------------------------------------------------------------------------


def shard_paths(folder: str | os.PathLike) -> list[Path]:
    """The shards of a folder, in order."""
    return sorted(path for path in Path(folder).glob("clip-*.tar") if SHARD.fullmatch(path.name))


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with staging(path) as folder:
        (folder / Path(path).name).write_bytes(content)


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(f"`folder` must hold {MANIFEST}, but {str(folder)!r} has none.")
    try:
        manifest = json.loads(path.read_bytes())
        manifest["shards"], manifest["samples"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`folder` must hold a whole {MANIFEST}, but that of {str(folder)!r} is damaged.") from error
    return manifest


def write_manifest(folder: str | os.PathLike, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write index and manifest of the shards that a folder holds, and return the manifest.

    Shards that the last manifest lists with their size keep their hash: they are never changed.

    Args:
        folder (`str` or `os.PathLike`): Holds the shards.
        about (`Mapping`): What else the manifest shall say; JSON.
    """
    folder = Path(folder)
    known = {}
    if (folder / MANIFEST).is_file():
        known = {entry["name"]: entry for entry in read_manifest(folder)["shards"]}
    index = ShardIndex.scan(folder)
    counts = np.bincount(index.shard, minlength=len(index.shards))
    entries = []
    for path, samples in zip(shard_paths(folder), counts.tolist(), strict=True):
        entry = {"name": path.name, "bytes": path.stat().st_size, "samples": samples}
        old = known.get(path.name, {})
        same = old and all(old[name] == value for name, value in entry.items())
        entries.append(entry | {"sha256": old["sha256"] if same else sha256(path)})
    index.save(folder / INDEX)
    manifest = {**about, "version": 1, "samples": len(index), "bytes": sum(e["bytes"] for e in entries)}
    manifest["shards"] = entries
    write_bytes(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode())
    return manifest


def scan_tar(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Walk through the headers of a shard.

    Yields:
        `tuple`: key of a clip, and extension -> (first byte in the tar, bytes).

    Raises:
        ValueError: If the tar is damaged or cut off.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            key, files = None, {}
            for entry in tar:
                name, _, extension = entry.name.partition(".")
                if name != key and files:
                    yield key, files
                    files = {}
                key = name
                files[extension] = (entry.offset_data, entry.size)
            if files:
                yield key, files
            size, end = os.path.getsize(path), tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"`path` must be a whole tar file, but {os.fspath(path)!r} is damaged: {error}.") from error
    if size < end:
        raise ValueError(f"`path` must be a whole tar file, but {os.fspath(path)!r} ends at byte {size} of {end}.")


class ShardIndex(Sequence):
    """Random access to the clips of a folder of shards.

    `index[i]` and `index.read(key)` open, read and close: nothing is shared, so any number of threads and of
    DataLoader workers may use one index at a time. One million clips take about 150 MB.

    Args:
        folder (`str` or `os.PathLike`): Holds `clip-*.tar`, and `index.npz` if it was made by `ShardWriter`; shards of
            others are scanned.

    Raises:
        ValueError: If the folder holds no shards.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        paths = shard_paths(self.folder)
        if not paths:
            raise ValueError(f"`folder` must hold shards clip-000000.tar and so on, but {str(folder)!r} has none.")
        tables = self._load_tables(paths) or self._scan(paths)
        self.shards, self.extensions, self._keys, self.shard, self.offset, self.size = tables
        self._row: dict[bytes, int] | None = None

    @classmethod
    def scan(cls, folder: str | os.PathLike) -> ShardIndex:
        """Make an index from the tars themselves, whatever `index.npz` says; the folder may hold no shard."""
        index = cls.__new__(cls)
        index.folder, index._row = Path(folder), None
        tables = cls._scan(shard_paths(folder))
        index.shards, index.extensions, index._keys, index.shard, index.offset, index.size = tables
        return index

    def _load_tables(self, paths: list[Path]) -> tuple | None:
        """Tables of `index.npz` if it is about these very shards."""
        if not (self.folder / INDEX).is_file():
            return None
        with np.load(self.folder / INDEX) as arrays:
            shards = [str(name) for name in arrays["shards"]]
            sizes = [path.stat().st_size for path in paths]
            if shards != [path.name for path in paths] or arrays["bytes"].tolist() != sizes:
                return None
            names = [str(name) for name in arrays["extensions"]]
            return shards, names, arrays["keys"], arrays["shard"], arrays["offset"], arrays["size"]

    @staticmethod
    def _scan(paths: list[Path]) -> tuple:
        rows = [(number, key, files) for number, path in enumerate(paths) for key, files in scan_tar(path)]
        extensions = sorted({extension for _, _, files in rows for extension in files})
        places = np.full((len(rows), len(extensions), 2), -1, np.int64)
        for row, (_, _, files) in enumerate(rows):
            for extension, place in files.items():
                places[row, extensions.index(extension)] = place
        keys = np.array([key.encode() for _, key, _ in rows], dtype=bytes)
        shard = np.array([number for number, _, _ in rows], np.int32)
        return [path.name for path in paths], extensions, keys, shard, places[..., 0], places[..., 1]

    def save(self, path: str | os.PathLike) -> None:
        """Write the tables as an `npz` file."""
        sizes = [(self.folder / name).stat().st_size for name in self.shards]
        file = io.BytesIO()
        np.savez(
            file,
            shards=np.array(self.shards, dtype=str),
            bytes=np.array(sizes, np.int64),
            extensions=np.array(self.extensions, dtype=str),
            keys=self._keys,
            shard=self.shard,
            offset=self.offset,
            size=self.size,
        )
        write_bytes(path, file.getvalue())

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> list[str]:
        """Names of the clips, in the order of the shards."""
        return [key.decode() for key in self._keys]

    def row(self, key: str | int) -> int:
        """Number of a clip.

        Raises:
            KeyError: If there is no such clip.
        """
        if not isinstance(key, str):
            return range(len(self))[key]
        if self._row is None:
            self._row = {name: row for row, name in enumerate(self._keys.tolist())}
        return self._row[key.encode()]

    def read_bytes(self, key: str | int, extensions: Sequence[str] | None = None) -> dict[str, bytes]:
        """Files of one clip as they are, extension -> bytes.

        Args:
            key (`str` or `int`): Name or number of the clip.
            extensions (`Sequence[str]`, *optional*): Only these; what the clip lacks is left out.

        Raises:
            OSError: If the shard is shorter than the index says.
        """
        row = self.row(key)
        out = {}
        with open(self.folder / self.shards[self.shard[row]], "rb") as file:
            for column, extension in enumerate(self.extensions):
                offset, size = int(self.offset[row, column]), int(self.size[row, column])
                if offset < 0 or (extensions is not None and extension not in extensions):
                    continue
                file.seek(offset)
                out[extension] = file.read(size)
                if len(out[extension]) != size:
                    raise OSError(f"{file.name} ends within {self._keys[row].decode()}.{extension}")
        return out

    def read(self, key: str | int, extensions: Sequence[str] | None = None) -> dict[str, Any]:
        """One clip: `json` as a dict, `npz` as a dict of arrays, `wav` as float32 samples, the rest as bytes.

        Args:
            key (`str` or `int`): Name or number of the clip.
            extensions (`Sequence[str]`, *optional*): Only these; what the clip lacks is left out.
        """
        files = self.read_bytes(key, extensions)
        return {"key": self._keys[self.row(key)].decode()} | {name: decode(name, files[name]) for name in files}

    def frames(self, key: str | int) -> np.ndarray:
        """Images of one clip, uint8 RGB `(frames, height, width, 3)`."""
        from vasa_hf.media.video import VideoReader

        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(self.read_bytes(key, ["mp4"])["mp4"])
            file.flush()
            return np.stack(list(VideoReader(file.name)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read(index)


# --- checking and unpacking -------------------------------------------------------------------------------------------


def check(folder: str | os.PathLike) -> list[str]:
    """Compare a folder with its manifest: every shard by its hash, every clip by its parts.

    Args:
        folder (`str` or `os.PathLike`): What `ShardWriter` or `vasa-hf prepare` wrote.

    Returns:
        `list[str]`: What is wrong, one line each; empty if nothing is.

    Raises:
        ValueError: If there is no manifest to compare with.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    complaints = []
    listed = {entry["name"]: entry for entry in manifest["shards"]}
    for path in shard_paths(folder):
        if path.name not in listed:
            complaints.append(f"{path.name}: not in the manifest")
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            complaints.append(f"{name}: missing")
        elif path.stat().st_size != entry["bytes"]:
            complaints.append(f"{name}: {path.stat().st_size} bytes instead of {entry['bytes']}")
        elif sha256(path) != entry["sha256"]:
            complaints.append(f"{name}: its bytes have changed (sha256)")
    if complaints:
        return complaints
    index = ShardIndex.scan(folder)
    if len(index) != manifest["samples"]:
        complaints.append(f"{len(index)} clips instead of {manifest['samples']}")
    if len(set(index.keys())) != len(index):
        complaints.append("clips with the same key")
    for row, key in enumerate(index.keys()):
        complaints += [f"{key}: {text}" for text in _wrong_clip(index.read(row, ["json", "npz", "wav"]))]
    return complaints


def _wrong_clip(clip: Mapping[str, Any]) -> list[str]:
    """Labels and audio that do not have the number of frames which the metadata tell."""
    frames = clip.get("json", {}).get("frames")
    if frames is None:
        return []
    wrong = []
    if "npz" in clip and clip["npz"]["offsets"].tolist() != [0, frames]:
        wrong.append(f"labels of {clip['npz']['offsets'][-1]} frames instead of {frames}")
    if "wav" in clip and len(clip["wav"]) != frames * SAMPLING_RATE // 25:
        wrong.append(f"{len(clip['wav'])} samples of audio for {frames} frames")
    return wrong


def unpack(shards: str | os.PathLike, folder: str | os.PathLike) -> int:
    """Write the layout that the trainers read: `clips/*.mp4` with audio, `clips.npz`, `identities.csv`.

    Clips that are there are left alone, so it may be stopped and run again.

    Args:
        shards (`str` or `os.PathLike`): Folder of shards.
        folder (`str` or `os.PathLike`): Target; made if it is not there.

    Returns:
        `int`: Number of clips.

    Raises:
        ValueError: If only some of the clips have labels.
    """
    index, folder = ShardIndex(shards), Path(folder)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    people, labels = [], []
    for row, key in enumerate(index.keys()):
        files = index.read_bytes(row)
        target = folder / "clips" / f"{key}.mp4"
        if not target.exists():
            write_bytes(target, files["mp4"]) if "wav" not in files else _join(files["mp4"], files["wav"], target)
        people.append((key, decode("json", files.get("json", b"{}")).get("identity") or key))
        if "npz" in files:
            labels.append(decode("npz", files["npz"]))
    with staging(folder / "identities.csv") as part, open(part / "identities.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("clip", "identity"), *people])
    if labels and len(labels) != len(index):
        raise ValueError(f"`shards` must hold labels for all clips or none, but {len(labels)} of {len(index)} have.")
    if labels:
        with staging(folder / "clips.npz") as part:
            np.savez(part / "clips.npz", **_merge(labels, index.keys()))
    return len(index)


def training_folder(data: str | os.PathLike) -> Path:
    """The folder that trainers read: `data` itself, or if it holds shards, `data/unpacked`, made when it is not there.

    Args:
        data (`str` or `os.PathLike`): Folder of shards, or of `clips/`, `clips.npz` and so on.
    """
    data = Path(data)
    if not shard_paths(data):
        return data
    unpacked = data / "unpacked"
    last = unpacked / "identities.csv"
    if not last.exists() or last.stat().st_mtime < (data / MANIFEST).stat().st_mtime:
        unpack(data, unpacked)
    return unpacked


def _merge(labels: list[dict[str, np.ndarray]], keys: list[str]) -> dict[str, np.ndarray]:
    """Labels of many clips as one table, frames one after another."""
    shared = {name: labels[0][name] for name in ("landmark_ids", "canonical") if name in labels[0]}
    for clip, key in zip(labels, keys, strict=True):
        if any(not np.array_equal(clip[name], value) for name, value in shared.items()):
            raise ValueError(f"`shards` must be labelled by one analyzer, but {key!r} has another canonical face.")
    by_frame = set.intersection(*(set(clip) for clip in labels)) - {*shared, "names", "offsets"}
    lengths = [int(clip["offsets"][-1]) for clip in labels]
    table = {name: np.concatenate([clip[name] for clip in labels]) for name in sorted(by_frame)}
    return {"names": np.array(keys), "offsets": np.r_[0, np.cumsum(lengths)].astype(np.int32), **table, **shared}


def _join(video: bytes, audio: bytes, target: Path) -> None:
    """Put video and audio into one MP4; the video is not encoded again."""
    with staging(target) as part:
        (part / "frames.mov").write_bytes(video)
        (part / "audio.wav").write_bytes(audio)
        command = [ffmpeg_path(), *READ_OPTIONS, "-v", "error", "-i", f"file:{part / 'frames.mov'}"]
        command += ["-i", f"file:{part / 'audio.wav'}", "-map", "0:v", "-map", "1:a", "-c:v", "copy"]
        # An AAC frame is 1024 samples: at 16 kHz that is longer than a video frame.
        command += [
            "-c:a",
            "aac",
            "-b:a",
            "96k",
            "-ar",
            "48000",
            "-movflags",
            "+faststart",
            f"file:{part / target.name}",
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(f"ffmpeg could not join video and audio of {target.name}: {shorten_stderr(done.stderr)}")
