import argparse
import os
import pathlib
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vasa_hf.convert.checkpoint import (
    ConversionError,
    find,
    locate,
    match,
    read_checkpoint,
    read_pickle,
    require,
    state_dict,
)
from vasa_hf.convert.writing import check_destination, new_folder


class Runs:
    """Makes a folder when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class RunsLate:
    """The same, but as the state of a harmless object."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return argparse.Namespace, (), {"log_dir": Runs(self.path)}


class ObjectArray:
    """An array of objects, whose elements numpy unpickles."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return np.array([Runs(self.path)], object).__reduce__()


MALICIOUS = [Runs, RunsLate, ObjectArray]


@pytest.mark.parametrize("malicious", MALICIOUS)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_that_run_code_are_refused_and_do_not_run(tmp_path, malicious, zipped):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = {"weight": torch.zeros(2), "args": malicious(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="`source` must .*"):
        read_checkpoint(path)
    assert not marker.exists()
    # The file is a working attack: who unpickles it runs it.
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("malicious", MALICIOUS)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_that_run_code_are_refused_and_do_not_run(tmp_path, malicious, protocol):
    if malicious is ObjectArray and protocol == 0:
        pytest.skip("numpy writes no object arrays in protocol 0")
    marker, path = tmp_path / "executed", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"mean": np.zeros(3), "x": malicious(marker)}, protocol))
    with pytest.raises(ValueError, match="`source` must (hold|contain only) arrays of .*numbers"):
        read_pickle(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()


def test_an_archive_whose_pickle_was_swapped_is_refused(tmp_path):
    """What torch wrote, with another pickle inside: the tensors next to it do not make it trusted."""
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, pickle.dumps(Runs(marker), 2) if name.endswith("data.pkl") else content)
    with pytest.raises(ValueError, match="`source` must be a checkpoint of tensors alone"):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy\nndarray.__class__\n.",
        b"ctorch\nload\n(S'x'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"cargparse\nNamespace\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x19ndarray.__init_subclass__\x93.",
        b"Pelsewhere\n.",
    ],
)
def test_other_names_are_refused(tmp_path, code):
    (tmp_path / "x.pkl").write_bytes(code)
    with pytest.raises(ValueError, match="`source` must (contain only arrays|be complete)"):
        read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("suffix", ["pkl", "pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04", None])
def test_other_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"x.{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="`source` must be"):
        (read_pickle if suffix == "pkl" else read_checkpoint)(path)


def test_dicts_are_expected(tmp_path):
    torch.save([1], tmp_path / "x.pth")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([1]))
    for read, name in ((read_checkpoint, "x.pth"), (read_pickle, "x.pkl")):
        with pytest.raises(ValueError, match="holds a list"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="dict of tensors, but 'x.pth'"):
        state_dict({"epoch": 3}, "x.pth")


def in_fortran_order():
    return np.asfortranarray(np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_arrays_arrive_with_their_values(tmp_path, protocol):
    arrays = {
        "whole": np.arange(6, dtype=np.int64).reshape(2, 3),
        "fortran": in_fortran_order(),
        "big": np.array([1.5, -2.0], ">f4"),
        "half": np.array([0.5], np.float16),
        "number": np.float32(3.5),
        "truth": np.array([True, False]),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays, protocol))
    read = read_pickle(tmp_path / "x.pkl")
    assert set(read) == set(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(read[name], value, err_msg=name)


def renamed(module, name, base):
    """A class that pickles as one of another module, without importing that."""
    return type(name, (base,), {"__module__": module})


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("home", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("kind", ["PosixPath", "WindowsPath"])
def test_options_and_arrays_next_to_tensors(tmp_path, monkeypatch, kind, home, zipped):
    """Paths of any system and of newer Pythons become texts; arrays become tensors."""

    class Path:
        def __reduce__(self):
            return type(self), ("/", "experiments", "run")

    path = renamed(home, kind, Path)
    if home not in sys.modules:
        monkeypatch.setitem(sys.modules, home, type(sys)(home))
    monkeypatch.setattr(sys.modules[home], kind, path, raising=False)
    args = argparse.Namespace(fps=25, log_dir=path())
    content = {"args": args, "model": {"weight": torch.arange(3.0)}, "mean": np.arange(2.0), "iter": 7}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    read = read_checkpoint(tmp_path / "x.pt")
    assert type(read["args"]).__module__ == "argparse" and type(read["args"]) is not argparse.Namespace
    assert vars(read["args"]) == {"fps": 25, "log_dir": "/experiments/run"}
    assert torch.equal(read["model"]["weight"], torch.arange(3.0)) and read["iter"] == 7
    assert torch.equal(read["mean"], torch.arange(2.0, dtype=torch.float64))
    assert not isinstance(read["args"].log_dir, pathlib.PurePath)
    assert not {argparse.Namespace, type(read["args"]), np.ndarray} & set(torch.serialization.get_safe_globals())


def test_safetensors_are_read(tmp_path):
    save_file({"weight": torch.arange(3.0)}, tmp_path / "x.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "x.safetensors")["weight"], torch.arange(3.0))


def test_a_stream_of_numbers_is_no_array(tmp_path):
    """Contents that do not fill the shape, and shapes that numpy would have to guess, are refused."""
    good = pickle.dumps({"x": np.zeros(4, np.float32)}, 2)
    for broken in (good.replace(b"K\x04\x85", b"K\x05\x85"), good[:-30]):
        assert broken != good
        (tmp_path / "x.pkl").write_bytes(broken)
        with pytest.raises(ValueError, match="`source` must be a pickle of arrays"):
            read_pickle(tmp_path / "x.pkl")


def test_the_report_tells_everything():
    expected = {name: (2, 3) for name in ("fits", "missing", "shape", "nan", "text")} | {"counter": ()}
    found = {name: torch.zeros(2, 3) for name in ("fits", "extra", "table")}
    found |= {"shape": torch.zeros(3, 2), "nan": np.full((2, 3), np.nan), "text": "two by three"}
    report = match(expected, found, may_lack={"counter": "zero"}.get, may_have={"table": "recomputed"}.get)
    outcomes = {row.name: row.outcome for row in report.rows}
    assert outcomes == {
        "fits": "converted",
        "missing": "missing",
        "shape": "shape",
        "nan": "not finite",
        "text": "no numbers",
        "counter": "zero",
        "extra": "extra",
        "table": "recomputed",
    }
    assert report.summary() == (
        "1 tensors converted, 1 missing, 1 extra, 1 shape, 1 not finite, 1 no numbers, 2 not needed"
    )
    with pytest.raises(ConversionError) as error:
        report.check("a model")
    lines = str(error.value).splitlines()
    assert lines[0].startswith("`source` does not fit a model, nothing was written: 1 tensors")
    assert lines[1].split() == ["tensor", "expected", "found", "outcome"]
    assert [line.split() for line in lines[2:]] == [
        ["missing", "2", "x", "3", "-", "missing"],
        ["shape", "2", "x", "3", "3", "x", "2", "shape"],
        ["nan", "2", "x", "3", "2", "x", "3", "not", "finite"],
        ["text", "2", "x", "3", "-", "no", "numbers"],
        ["extra", "-", "2", "x", "3", "extra"],
    ]
    report.rows = [row for row in report.rows if row.outcome not in ("missing", "shape", "not finite", "no numbers")]
    assert not report.complete
    report.rows = [row for row in report.rows if row.outcome != "extra"]
    report.check("a model")
    report.problems.append("no cosine schedule")
    with pytest.raises(ConversionError, match="no cosine schedule"):
        report.check("a model")


def test_files_are_found_where_they_may_lie(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.pt").touch()
    assert find(tmp_path, ("a/one.pt", "b/*.pt")) == tmp_path / "b" / "two.pt"
    assert find(tmp_path, ("b", "one.pt")) is None
    with pytest.raises(ValueError, match="`source` must hold one.pt or c/one.pt"):
        require(tmp_path, ("one.pt", "c/one.pt"))


def test_sources_that_are_nowhere(tmp_path):
    assert locate(tmp_path, ()) == tmp_path
    (tmp_path / "file").touch()
    for source in (tmp_path / "file", tmp_path / "none", "https://example.org/x", "one/two/three"):
        with pytest.raises(ValueError, match="`source` must be a folder or a repository owner/name of the Hub"):
            locate(source, ())
    # Not in the cache, and the tests may not download.
    with pytest.raises(ValueError, match="`source` must be a folder or a repository of the Hub, got 'no-such/model'"):
        locate("no-such/model", ("*.pth",))


def test_a_repository_of_the_cache_is_a_source(tmp_path, monkeypatch):
    """What the Hub's client has downloaded before is found without a network."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    (snapshot / "moda").mkdir(parents=True)
    (snapshot / "moda" / "net-200.pth").touch()
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = locate("owner/name", ("moda/*.pth",))
    assert (folder / "moda" / "net-200.pth").is_file()


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        (folder / "part").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "part").touch()
        assert not list((tmp_path / "out").iterdir())
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "part"]
    with pytest.raises(ValueError, match="`destination` must be a new or an empty folder"):
        check_destination(tmp_path / "out")
