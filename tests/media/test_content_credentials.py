"""C2PA manifests signed with a certificate of the user's."""

import json
import os

import numpy as np
import pytest

from vasa_hf.media import ContentCredentials, VideoWriter, find_provenance, read_content_credentials, read_video

c2pa = pytest.importorskip("c2pa")
pytest.importorskip("cryptography")
from tests.testing_utils.certificates import write_chain  # noqa: E402 - needs cryptography


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    from cryptography.hazmat.primitives.asymmetric import ec

    return write_chain(tmp_path_factory.mktemp("chain"), ec.generate_private_key(ec.SECP256R1()))


def write(path, **options):
    with VideoWriter(path, 25, (64, 48), **options) as writer:
        for level in (90, 110):
            writer.write(np.full((48, 64, 3), level, np.uint8))
    return path


def test_a_signed_video_says_who_made_it_and_how(chain, tmp_path):
    credentials = ContentCredentials(chain / "cert.pem", chain / "key.pem")
    path = write(tmp_path / "a.mp4", provenance={"model": "vasa-small"}, credentials=credentials)
    assert os.listdir(tmp_path) == ["a.mp4"] and len(list(read_video(path))) == 2
    expected = {"state": "Valid", "signer": "Test Studio", "generator": "vasa_hf", "synthetic": True}
    assert read_content_credentials(path) == expected
    seen = find_provenance(path)
    assert seen.c2pa == expected and seen.note["model"] == "vasa-small" and seen.found and seen.c2pa_checked

    # The reader of the C2PA project agrees, and trusts the certificate if it is told to trust the root.
    trust = {"trust": {"trust_anchors": (chain / "root.pem").read_text()}}
    with c2pa.Context(settings=c2pa.Settings.from_dict(trust)) as context:
        reader = c2pa.Reader(os.fspath(path), context=context)
    store = json.loads(reader.json())
    (manifest,) = store["manifests"].values()
    (action,) = next(a["data"]["actions"] for a in manifest["assertions"] if a["label"].startswith("c2pa.actions"))
    assert reader.get_validation_state() == "Trusted" and action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert action["softwareAgent"]["name"] == "vasa_hf" and action["parameters"]["org.vasa_hf"]["model"] == "vasa-small"


def test_a_changed_video_is_told(chain, tmp_path):
    path = write(tmp_path / "a.mp4", credentials=ContentCredentials(chain / "cert.pem", chain / "key.pem"))
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # in the pictures
    path.write_bytes(content)
    assert read_content_credentials(path)["state"] == "Invalid"


def test_nothing_is_signed_without_credentials(tmp_path):
    assert read_content_credentials(write(tmp_path / "a.mp4")) is None


def test_other_keys_sign_too(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    for index, key in enumerate((ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1()))):
        folder = tmp_path / str(index)
        folder.mkdir()
        write_chain(folder, key)
        path = write(tmp_path / "a.mp4", credentials=ContentCredentials(folder / "cert.pem", folder / "key.pem"))
        assert read_content_credentials(path)["state"] == "Valid"


def test_what_cannot_sign_is_refused_before_the_work(chain, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec

    with pytest.raises(ValueError, match="`certificate` must be a PEM file"):
        ContentCredentials(tmp_path / "none.pem", chain / "key.pem")
    with pytest.raises(ValueError, match="`key` must be a PKCS#8 key"):
        ContentCredentials(chain / "cert.pem", chain / "cert.pem")
    write_chain(tmp_path, ec.generate_private_key(ec.SECP256R1()), days=-1)
    with pytest.raises(ValueError, match="`certificate` and `key` must be able to sign"):  # expired
        ContentCredentials(tmp_path / "cert.pem", tmp_path / "key.pem")
    with pytest.raises(ValueError, match="`certificate` and `key` must be able to sign"):  # not a pair
        ContentCredentials(chain / "cert.pem", tmp_path / "key.pem")
    credentials = ContentCredentials(chain / "cert.pem", chain / "key.pem")
    with pytest.raises(ValueError, match="`credentials` sign what `provenance` says"):
        VideoWriter(tmp_path / "a.mp4", 25, (64, 48), provenance=False, credentials=credentials)
    assert not (tmp_path / "a.mp4").exists()
