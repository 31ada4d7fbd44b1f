"""The models of all users: loaded once, in the background. The last portraits and voices are kept encoded."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vasa_hf.checks import parse_json
from vasa_hf.demo.files import digest
from vasa_hf.hub import base_name, read_index, resolve

PRIORS = "motion_priors.safetensors"
SYSTEMS = ("VASA-1", "VASA-3D", "MoDA", "GAIA")


class Recent:
    """Cache of the values used last.

    Args:
        count (`int`): How many to keep.
    """

    def __init__(self, count: int):
        self.count, self.made = count, 0
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value of a key; call `make` if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self.made += 1
            self._values[key] = value
            while len(self._values) > self.count:
                self._values.popitem(last=False)
        return value


class Models:
    """The pipelines of VASA-1 and VASA-3D, which share their components.

    Args:
        name (`str`, defaults to `"vasa3d-small"`): Embedded name, folder or Hub repository.
        device (`str`, *optional*): Defaults to a CUDA device if there is one.
        moda (`str`, defaults to `"moda-small"`): MoDA's pipeline, likewise.
        gaia (`str`, defaults to `"gaia-small"`): GAIA's pipeline, likewise.
    """

    def __init__(
        self,
        name: str = "vasa3d-small",
        device: str | None = None,
        moda: str = "moda-small",
        gaia: str = "gaia-small",
    ):
        self.name, self.device, self.moda, self.gaia_name = name, device, moda, gaia
        self._pipe: Any = None
        self._others: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._loaded = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.portraits, self.sounds, self.features = Recent(8), Recent(8), Recent(256)

    def start(self) -> None:
        """Start loading, in a thread."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._load, daemon=True)
                self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the models are loaded."""
        return self._loaded.is_set()

    def wait(self) -> None:
        """Wait until the models are loaded."""
        self.start()
        self._loaded.wait()
        if self._error is not None:
            raise self._error

    @property
    def avatars(self) -> Any:
        """VASA-3D's pipeline; waits until it is loaded."""
        self.wait()
        return self._pipe

    @property
    def faces(self) -> Any:
        """VASA-1's pipeline, with the same components."""
        return self.avatars.talking_face

    @property
    def heads(self) -> Any:
        """MoDA's pipeline, loaded at its first use; it shares VASA-1's components where it has none of its own."""
        return self._load_other("ModaTalkingHeadPipeline", self.moda)

    @property
    def gaia(self) -> Any:
        """GAIA's pipeline, likewise."""
        return self._load_other("GaiaAvatarPipeline", self.gaia_name)

    def _load_other(self, kind: str, name: str) -> Any:
        faces = self.faces
        with self._lock:
            if kind not in self._others:
                import vasa_hf

                folder = Path(resolve(name))
                parts = ("face_analyzer", "image_processor", "audio_encoder", "audio_processor")
                missing = [part for part in parts if not (folder / part).is_dir()]
                has_base = base_name(read_index(folder)) is not None
                shared = {part: getattr(faces, part) for part in missing} if has_base else {}
                self._others[kind] = getattr(vasa_hf, kind).from_pretrained(name, **shared).to(faces.device)
                self._others[kind].set_progress_bar_config(disable=True)
            return self._others[kind]

    def portrait(self, path: str, face: int | None = None, output_size: int | None = None) -> Any:
        """Encode a portrait; the last ones are cached by the content of their files."""
        key = (digest(path), face, output_size)
        return self.portraits.get(key, lambda: self.faces.prepare_portrait(path, face, output_size=output_size))

    def sound(self, path: str, max_seconds: float) -> tuple[Any, int]:
        """Samples `(n,)` of a voice, mono, and their rate; checked and cached.

        Raises:
            ValueError: If it is longer than `max_seconds`, or cannot be used.
        """
        from vasa_hf.media.audio import load_audio
        from vasa_hf.media.ffmpeg import check_seconds

        def read() -> tuple[Any, int]:
            _, samples, rate = self.faces.prepare_audio(load_audio(path, max_seconds=max_seconds))
            return samples, rate

        samples, rate = self.sounds.get(digest(path), read)
        check_seconds(len(samples) / rate, max_seconds, "audio")
        return samples, rate

    def _load(self) -> None:
        try:
            import torch

            from vasa_hf import Vasa3DAvatarPipeline

            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            pipe = Vasa3DAvatarPipeline.from_pretrained(self.name).to(device)
            pipe.set_progress_bar_config(disable=True)
            # When only controls change, the features of the voice are not computed again.
            processor = pipe.audio_processor
            processor.window_features = partial(self._window_features, processor.window_features)
            self._pipe = pipe
        except BaseException as error:  # noqa: BLE001 - raised again in `wait`
            self._error = error
        finally:
            self._loaded.set()

    def _window_features(self, compute: Callable, encoder: Any, samples: Any, start_frame: int, num_frames: int) -> Any:
        key = (hashlib.blake2b(samples.cpu().numpy().tobytes()).digest(), tuple(samples.shape), start_frame, num_frames)
        return self.features.get(key, lambda: compute(encoder, samples, start_frame, num_frames))


def describe(name: str, moda: str = "moda-small", gaia: str = "gaia-small") -> dict[str, Any]:
    """What a page needs before the weights are loaded: emotions, sizes, sliders, avatars, and folders of cards.

    Args:
        name (`str`): As for `Models`; most is unknown for a Hub repository that is not on this machine.
        moda (`str`): Likewise.
        gaia (`str`): Likewise; the page does not show GAIA without its weights.
    """
    folder = Path(resolve(name))
    index = read_index(folder)
    base = Path(resolve(base_name(index) or name))
    has_gaia = (Path(resolve(gaia)) / "model_index.json").is_file()
    parts = read_index(Path(resolve(gaia))) if has_gaia else {}
    emotions = _json(base / "motion_transformer" / "config.json").get("emotions", [])
    size = _json(base / "face_autoencoder" / "config.json").get("image_size", 256)
    return {
        "emotions": emotions,
        "sizes": [size, 2 * size],
        "avatars": sorted(path.parent.name for path in folder.glob("avatars/*/config.json")),
        "sliders": _directions(base / PRIORS, emotions),
        "folder": folder,
        "gaia": has_gaia,
        "gaia_controls": [name for name in ("landmark_denoiser", "text_denoiser") if (parts.get(name) or [None])[0]],
        "cards": list(dict.fromkeys([base, folder, Path(resolve(moda)), *[Path(resolve(gaia))] * has_gaia])),
    }


def _directions(file: Path, emotions: list[str]) -> list[str]:
    """Names of the known directions of z_dyn that are next to a model's weights."""
    if not file.is_file():
        return []
    with safe_open(file, framework="numpy") as known:
        held = set(known.keys())
    parts = {"blink": ["blink"], "gaze": ["gaze yaw", "gaze pitch"], "emotion": emotions}
    return [name for part, names in parts.items() if part in held for name in names]


def _json(path: Path) -> dict[str, Any]:
    held = parse_json(path.read_bytes(), path.name) if path.is_file() else {}
    return held if isinstance(held, dict) else {}
