"""Tags that say a video is synthetic."""

import numpy as np
import pytest

from vasa_hf.media import VideoWriter, read_provenance


def test_manifest(tmp_path):
    for provenance in (True, {"model": "vasa-small; a=b \\ #1 'é\n\""}, False):
        with VideoWriter(tmp_path / "a.mp4", 25, (64, 48), provenance=provenance) as writer:
            writer.write(np.full((48, 64, 3), 90, np.uint8))
        manifest = read_provenance(tmp_path / "a.mp4")
        if provenance is False:
            assert manifest is None
        else:
            assert manifest["tool"] == "vasa_hf" and manifest["synthetic"] is True and manifest["time"][:2] == "20"
            assert manifest["model"] == (provenance["model"] if isinstance(provenance, dict) else None)
            assert b"AI-generated (vasa_hf" in (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match="existing file"):
        read_provenance(tmp_path / "missing.mp4")
