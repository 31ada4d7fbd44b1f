"""Content Credentials (C2PA): a manifest in a file, signed with the user's own certificate; needs the extra `[c2pa]`.

The manifest says that the file was created by a trained model, and by which software, and binds this to the file's
bytes: whoever changes the file breaks the signature, and whoever encodes it again loses the manifest.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from vasa_hf import __version__

from .provenance import SYNTHETIC_SOURCE

# Tried in turn: which of them a key is for is in the key.
ALGORITHMS = ("es256", "ps256", "ed25519", "es384", "es512")
# Files of others must not make this machine ask servers.
_READ_SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


@dataclass(frozen=True)
class ContentCredentials:
    """Certificate and key that sign videos; checked at once, by signing an image in memory.

    Signatures bear no time stamp of an authority: they are valid as long as the certificate.

    Args:
        certificate (`str` or `os.PathLike`): PEM file: the signer's certificate first, then those that vouch for it.
        key (`str` or `os.PathLike`): PEM file (PKCS#8) of the private key, not encrypted.

    Raises:
        ImportError: If c2pa-python is not installed.
        ValueError: If a file cannot be read, or they cannot sign: not a pair, expired, or not meant for it.
    """

    certificate: str | os.PathLike
    key: str | os.PathLike

    def __post_init__(self):
        image = io.BytesIO()
        Image.new("RGB", (1, 1)).save(image, format="PNG")
        image.seek(0)
        self._sign("image/png", image, io.BytesIO(), {})

    def sign(self, source: str | os.PathLike, target: str | os.PathLike, entries: Mapping[str, Any]) -> None:
        """Write a copy of an MP4 file with a signed manifest.

        Args:
            source (`str` or `os.PathLike`): The file.
            target (`str` or `os.PathLike`): The copy.
            entries (`dict`): What else the manifest says of how the video was made, such as `model`.

        Raises:
            ValueError: If they cannot sign.
        """
        with open(source, "rb") as read, open(target, "w+b") as write:
            self._sign("video/mp4", read, write, entries)

    def _sign(self, mime: str, source: Any, target: Any, entries: Mapping[str, Any]) -> None:
        c2pa = _import_c2pa()
        agent = {"name": "vasa_hf", "version": __version__}
        action = {"action": "c2pa.created", "digitalSourceType": SYNTHETIC_SOURCE, "softwareAgent": agent}
        if entries:
            action["parameters"] = {"org.vasa_hf": dict(entries)}
        assertion = {"label": "c2pa.actions.v2", "data": {"actions": [action]}}
        manifest = {"claim_generator_info": [agent], "format": mime, "assertions": [assertion]}
        try:
            # Not those of the environment: `sign` asks no server.
            with self._signer(c2pa) as signer, c2pa.Builder(manifest) as builder:
                builder.sign(signer, mime, source, target)
        except c2pa.C2paError as error:
            raise ValueError(f"`certificate` and `key` must be able to sign, got {self._names()}: {error}") from error

    def _signer(self, c2pa: ModuleType) -> Any:
        texts = []
        for name in ("certificate", "key"):
            path = getattr(self, name)
            try:
                texts.append(Path(path).read_bytes())
            except OSError as error:
                raise ValueError(f"`{name}` must be a PEM file, got {os.fspath(path)!r}: {error.strerror}.") from error
        for algorithm in ALGORITHMS:
            try:
                return c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, *texts, None))
            except c2pa.C2paError:
                continue
        raise ValueError(f"`key` must be a PKCS#8 key for one of {', '.join(ALGORITHMS)}, got {os.fspath(self.key)!r}.")

    def _names(self) -> str:
        return f"{os.fspath(self.certificate)!r} and {os.fspath(self.key)!r}"


def read_content_credentials(path: str | os.PathLike) -> dict[str, Any] | None:
    """Read the C2PA manifest of a file, whoever wrote it; `None` if it has none.

    Returns:
        `dict`: `state` (`"Valid"`: the file is as it was signed; `"Trusted"`: by a certificate of the installed trust
        list; `"Invalid"`), `signer`, `generator` (the software that wrote the manifest), `synthetic` (whether it says
        that a trained model created the file).

    Raises:
        ImportError: If c2pa-python is not installed.
        ValueError: If the manifest cannot be read.
    """
    c2pa = _import_c2pa()
    try:
        with c2pa.Settings.from_dict(_READ_SETTINGS) as settings, c2pa.Context(settings=settings) as context:
            reader = c2pa.Reader.try_create(os.fspath(path), context=context)
            if reader is None:
                return None
            with reader:
                store, state = json.loads(reader.json()), reader.get_validation_state()
    except c2pa.C2paError.NotSupported:
        return None
    except c2pa.C2paError as error:
        raise ValueError(
            f"`path` must hold a readable C2PA manifest or none, got {os.fspath(path)!r}: {error}"
        ) from error
    manifest = store["manifests"][store["active_manifest"]]
    actions = [
        action
        for assertion in manifest.get("assertions", [])
        if assertion["label"].startswith("c2pa.actions")
        for action in assertion["data"].get("actions", [])
    ]
    generators = [entry.get("name") for entry in manifest.get("claim_generator_info", [])]
    return {
        "state": state,
        "signer": manifest.get("signature_info", {}).get("issuer"),
        "generator": next(iter(generators), None),
        "synthetic": any("trainedAlgorithmicMedia" in action.get("digitalSourceType", "") for action in actions),
    }


def _import_c2pa() -> ModuleType:
    try:
        import c2pa
    except ImportError as error:
        raise ImportError("Content Credentials need c2pa-python: pip install 'vasa-hf[c2pa]'.") from error
    return c2pa
