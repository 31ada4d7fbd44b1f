"""Which avatars a pipeline has: those that come with its weights, those that were added, and how both are saved.

```
folder/  model_index.json    VASA-1's components, or "talking_face": the name of a model that has them
         face_autoencoder/ ...
         avatars/anna/       as `Vasa3DGaussianAvatar.save_pretrained` writes it; the folder's name is the avatar's
```
"""

from __future__ import annotations

import itertools
import json
import mimetypes
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import __version__ as diffusers_version

from vasa_hf.gaussians.export import SAVERS
from vasa_hf.models.gaussian_avatar_vasa3d import Vasa3DGaussianAvatar
from vasa_hf.motion import POSE_DIM
from vasa_hf.pipelines.loading import HUB_OPTIONS, EmbeddedWeightsMixin, load_model, local_folder, require_safetensors
from vasa_hf.pipelines.vasa_talking_face import VasaTalkingFacePipeline

_INDEX, _AVATARS, _BASE = "model_index.json", "avatars", "talking_face"


class AvatarShelfMixin(EmbeddedWeightsMixin):
    """`from_pretrained`, `save_pretrained` and avatars by name, for a pipeline whose components are VASA-1's.

    The pipeline has `_avatars` (name -> folder, or the avatar that was added), `_loaded` (name -> avatar in memory) and
    `_talking_face` (VASA-1's pipeline).
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> AvatarShelfMixin:
        """Load a pipeline and the names of its avatars.

        Where `model_index.json` says `"talking_face": name`, VASA-1's components are those of that other model.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Name of embedded weights (`"vasa3d-small"`, no network), a folder, or a repository of the Hub. One of
                VASA-1 gives a pipeline without avatars.
            **kwargs: As for `VasaTalkingFacePipeline.from_pretrained`.

        Raises:
            ValueError: If there is no such model, or its weights are not what it says.
        """
        require_safetensors(kwargs)
        options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        folder = local_folder(pretrained_model_name_or_path, **options)
        base = _read_index(folder).get(_BASE)
        if base is None:
            pipeline = super().from_pretrained(folder, **kwargs)
        else:
            options.pop("revision", None)
            talking_face = VasaTalkingFacePipeline.from_pretrained(base, **kwargs, **options)
            pipeline = cls(**talking_face.components)
            pipeline._talking_face = talking_face
        pipeline.model_name = Path(os.fspath(pretrained_model_name_or_path)).name
        found = sorted(folder.glob(f"{_AVATARS}/*/config.json"))
        pipeline._avatars = {file.parent.name: file.parent for file in found}
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        talking_face: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save avatars and components as safetensors.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write.
            safe_serialization (`bool`, defaults to `True`): Must be true.
            talking_face (`str`, *optional*):
                Name of embedded weights or of a repository that has VASA-1's components: they are left out here then,
                and `from_pretrained` takes them from there.
            **kwargs: As for `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: If `safe_serialization=False` is asked for.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization` must be True: weights are saved as safetensors only, got False.")
        if talking_face is not None and kwargs:
            raise ValueError(f"`talking_face` leaves nothing for {sorted(kwargs)} to do: save first, then upload.")
        folder = Path(save_directory)
        for name, avatar in self._avatars.items():
            _save_avatar(avatar, folder / _AVATARS / name)
        if talking_face is None:
            super().save_pretrained(save_directory, **kwargs)
            return
        folder.mkdir(parents=True, exist_ok=True)
        index = {"_class_name": type(self).__name__, "_diffusers_version": diffusers_version, _BASE: talking_face}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")

    @property
    def avatars(self) -> list[str]:
        """Names of the avatars that come with these weights or were added."""
        return list(self._avatars)

    def add_avatar(self, name: str, avatar: Vasa3DGaussianAvatar) -> None:
        """Give an avatar a name, under which it is called and saved.

        Args:
            name (`str`): Letters, digits, `_` and `-`.
            avatar (`Vasa3DGaussianAvatar`): Fitted with these components.

        Raises:
            ValueError: If the name is no such name, or the avatar does not belong to these components.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"`name` must be letters, digits, _ and -, got {name!r}.")
        self.check_avatar(avatar)
        self._avatars[name] = self._loaded[name] = avatar

    def load_avatar(self, name_or_path: str | os.PathLike, **kwargs: Any) -> Vasa3DGaussianAvatar:
        """Load an avatar.

        Args:
            name_or_path (`str` or `os.PathLike`): One of `avatars`, a folder that `save_pretrained` of an avatar wrote,
                or a repository of the Hub.
            **kwargs: As for `Vasa3DGaussianAvatar.from_pretrained`.

        Raises:
            ValueError: If there is none, or it does not belong to these components.
        """
        name = os.fspath(name_or_path)
        if name not in self._loaded:
            if name not in self._avatars:
                _check_place(name, self.avatars)
            avatar = load_model(Vasa3DGaussianAvatar, self._avatars.get(name, name), **kwargs)
            self.check_avatar(avatar)
            if name not in self._avatars:
                return avatar.to(self._execution_device)
            self._loaded[name] = avatar
        return self._loaded[name].to(self._execution_device)

    def check_avatar(self, avatar: Vasa3DGaussianAvatar) -> None:
        """Raise `ValueError` unless the avatar was fitted to the motion that these components make."""
        if not isinstance(avatar, Vasa3DGaussianAvatar):
            raise ValueError(f"`avatar` must be a Vasa3DGaussianAvatar, got {type(avatar).__name__}.")
        avatar.check_motion_space(self.face_autoencoder.config.motion_space)
        wanted, got = self.face_autoencoder.motion_dim, avatar.config.motion_dim
        if got != wanted:
            raise ValueError(f"`avatar` must have `motion_dim` {wanted} to fit the `face_autoencoder`, got {got}.")
        if not avatar.own_motion[POSE_DIM - 1] > 0:
            raise ValueError("`avatar` must be fitted, this one does not know its portrait's pose: see `pipe.fit`.")


def _check_place(name: str, avatars: Sequence[str]) -> None:
    """Raise `ValueError` unless an avatar may lie there."""
    if Path(name).suffix.lower() in SAVERS:
        raise ValueError(
            f"`avatar` must be an avatar that can move, but {name!r} is an export of a single frame: load the folder "
            "that `avatar.save_pretrained` wrote."
        )
    picture = (mimetypes.guess_type(name)[0] or "").startswith("image/")
    repository = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not picture
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


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / _INDEX).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`pretrained_model_name_or_path` must hold a whole pipeline, got {str(folder)!r}: {error}"
        ) from error
    return index if isinstance(index, dict) else {}
