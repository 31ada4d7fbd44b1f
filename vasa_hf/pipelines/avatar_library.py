"""The avatars of a pipeline: those that come with its weights and those that were added, and how they are saved.

```
folder/  model_index.json    VASA-1's components, or "_base": the name of a model that has them
         face_autoencoder/ ...
         avatars/anna/       as `Vasa3DGaussianAvatar.save_pretrained` writes it; the folder's name is the avatar's
```
"""

from __future__ import annotations

import itertools
import mimetypes
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vasa_hf.checks import shorten
from vasa_hf.gaussians.export import SAVERS
from vasa_hf.models.gaussian_avatar_vasa3d import Vasa3DGaussianAvatar
from vasa_hf.pipelines.loading import load_model

_AVATARS = "avatars"


class AvatarLibrary:
    """Avatars by name.

    Args:
        check (`Callable`): Raises `ValueError` for an avatar that does not fit the pipeline.
    """

    def __init__(self, check: Callable[[Any], None]):
        self._check = check
        self._avatars: dict[str, Path | Vasa3DGaussianAvatar] = {}  # name -> folder, or the added avatar
        self._loaded: dict[str, Vasa3DGaussianAvatar] = {}

    @property
    def names(self) -> list[str]:
        """Names of all avatars."""
        return list(self._avatars)

    def find(self, folder: Path) -> None:
        """List the avatars in a pipeline's folder."""
        self._avatars = {file.parent.name: file.parent for file in sorted(folder.glob(f"{_AVATARS}/*/config.json"))}

    def add(self, name: str, avatar: Vasa3DGaussianAvatar) -> None:
        """Give an avatar a name of letters, digits, `_` and `-`."""
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"`name` must be letters, digits, _ and -, got {shorten(name)}.")
        self._check(avatar)
        self._avatars[name] = self._loaded[name] = avatar

    def check_name(self, name: str) -> None:
        """Raise `ValueError` unless this is the name, folder or repository of an avatar."""
        if name not in self._avatars:
            _check_location(name, self.names)

    def load(self, name: str, **kwargs: Any) -> Vasa3DGaussianAvatar:
        """Load an avatar by its name, folder or repository; one with a name is kept in memory."""
        if name in self._loaded:
            return self._loaded[name]
        self.check_name(name)
        avatar = load_model(Vasa3DGaussianAvatar, self._avatars.get(name, name), **kwargs)
        self._check(avatar)
        if name in self._avatars:
            self._loaded[name] = avatar
        return avatar

    def save(self, folder: Path) -> None:
        """Write all avatars into a pipeline's folder."""
        for name, avatar in self._avatars.items():
            _save_avatar(avatar, folder / _AVATARS / name)


def _check_location(name: str, avatars: Sequence[str]) -> None:
    """Raise `ValueError` unless this may be a folder or repository of an avatar."""
    if Path(name).suffix.lower() in SAVERS:
        raise ValueError(
            f"`avatar` must be an avatar that can move, but {name!r} is an export of a single frame: load the folder "
            "that `avatar.save_pretrained` wrote."
        )
    is_image = (mimetypes.guess_type(name)[0] or "").startswith("image/")
    repository = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not is_image
    if not os.path.isdir(name) and not repository:
        raise ValueError(
            f"`avatar` must be one of {list(avatars)}, an existing folder of an avatar, or its repository on the "
            f"Hub (of an existing portrait make one by `pipe.fit`), got {name!r}."
        )


def _save_avatar(avatar: Path | Vasa3DGaussianAvatar, folder: Path) -> None:
    if isinstance(avatar, Vasa3DGaussianAvatar):
        avatar.save_pretrained(folder)
    elif not folder.exists() or not folder.samefile(avatar):
        folder.mkdir(parents=True, exist_ok=True)
        for file in itertools.chain.from_iterable(map(avatar.glob, ("*.json", "*.safetensors", "portrait.png"))):
            shutil.copyfile(file, folder / file.name)
