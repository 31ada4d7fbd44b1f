"""Networks of metrics: this project's, converted ones, and TorchScript files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vasa_hf import Capp, FaceRecognizer, SyncExpert, SyncNet, pretrained_features
from vasa_hf.models.lpips import Lpips


def load_networks(
    folder: str | os.PathLike, device: str | torch.device = "cpu", **paths: str | os.PathLike | None
) -> dict[str, Any]:
    """Load the networks of metrics: from the given paths, else from the model's folder.

    Args:
        folder (`str` or `os.PathLike`): Folder of a pipeline, with `face_recognizer`, `sync_expert` or `capp` or none.
        device (`str` or `torch.device`): Where to run them.
        **paths: `recognizer`, `sync_expert`, `capp`, `syncnet`, `lpips`, `fid_network` and `fvd_network`.

    Raises:
        ValueError: If a path does not exist.
    """
    networks: dict[str, Any] = {}
    own = {"face_recognizer": FaceRecognizer, "sync_expert": SyncExpert, "capp": Capp}
    for name, kind in own.items():
        if os.path.isfile(os.path.join(folder, name, "config.json")):
            networks[name] = kind.from_pretrained(folder, subfolder=name).float()
    if (recognizer := paths.get("recognizer")) is not None:
        networks["face_recognizer"] = pretrained_features(recognizer)
    for name, kind in (("sync_expert", SyncExpert), ("capp", Capp), ("syncnet", SyncNet)):
        if (path := paths.get(name)) is not None:
            if not os.path.isfile(os.path.join(path, "config.json")):
                raise ValueError(f"`{name}` must be a folder with config.json, got {path!r}.")
            networks[name] = kind.from_pretrained(path).float()
    if (path := paths.get("lpips")) is not None:
        networks["lpips"] = Lpips.load(path)
    networks = {name: network.eval().to(device) for name, network in networks.items()}
    if (path := paths.get("fid_network")) is not None:
        networks["fid"] = load_inception(path, device)
    if (path := paths.get("fvd_network")) is not None:
        networks["fvd"] = load_i3d(path, device)
    return networks


def load_torchscript(path: str | os.PathLike, what: str, device: str | torch.device = "cpu") -> Any:
    """Load a TorchScript network from a local file.

    Args:
        path (`str` or `os.PathLike`): The file.
        what (`str`): Name of the argument, for messages.
        device (`str` or `torch.device`): Where to run it.

    Raises:
        ValueError: If it does not exist or is no TorchScript file.
    """
    if not os.path.isfile(path):
        raise ValueError(f"`{what}` must be an existing TorchScript file, got {os.fspath(path)!r}.")
    try:
        return torch.jit.load(os.fspath(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"`{what}` must be a TorchScript file, but {os.fspath(path)!r} is none: {error}") from error


def load_i3d(path: str | os.PathLike, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor]:
    """Load I3D as a function of clips in [-1, 1], from StyleGAN-V's TorchScript file (`i3d_torchscript.pt`)."""
    network = load_torchscript(path, "fvd_network", device)
    return lambda clips: network(clips.to(device), rescale=False, resize=False, return_features=True)


def load_inception(path: str | os.PathLike, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor]:
    """Load Inception as a function of images in [-1, 1], from StyleGAN's file (`inception-2015-12-05.pt`)."""
    network = load_torchscript(path, "fid_network", device)
    return lambda images: network((images.to(device) * 127.5 + 128).clamp(0, 255).byte(), return_features=True)
