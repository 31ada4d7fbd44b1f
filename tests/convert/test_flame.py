"""FLAME files, written in the real files' format: no FLAME file, scipy or chumpy is needed."""

import os
import pickle
import pickletools
import struct
import sys
import types

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.testing_utils.flame_format import full_size_arrays
from vasa_hf.cli import main
from vasa_hf.convert.checkpoint import read_pickle
from vasa_hf.convert.flame import ALLOWED, FlameSizes, convert_flame

SIZES = FlameSizes(vertices=12, triangles=4, shapes=3, expressions=2)


def arrays(sizes=SIZES, seed=0):
    """A model of this size, as plain arrays."""
    rng = np.random.default_rng(seed)
    out = {name: rng.normal(size=shape) * 0.05 for name, shape in sizes.shape_of().items()}
    out["f"] = rng.integers(0, sizes.vertices, (sizes.triangles, 3)).astype(np.uint32)
    for name in ("weights", "J_regressor"):
        out[name] = np.abs(out[name]) * (rng.random(out[name].shape) < 0.6) + 1e-3
        out[name] /= out[name].sum(1, keepdims=True)
    out["kintree_table"] = np.array([[4294967295, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.int64)
    return out


@pytest.fixture
def foreign(monkeypatch):
    """Stand-ins for chumpy and scipy.sparse, there while a pickle is written and gone when it is read."""
    made = {}
    for name, bases in (("chumpy.ch.Ch", ()), ("chumpy.reordering.Select", ()), ("scipy.sparse.csc.csc_matrix", ()),
                        ("scipy.sparse._csr.csr_matrix", ())):  # fmt: skip
        module, _, kind = name.rpartition(".")
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            inner = ".".join(parts[:end])
            if inner not in made:
                made[inner] = types.ModuleType(inner)
                monkeypatch.setitem(sys.modules, inner, made[inner])
        made[name] = type(kind, bases, {"__module__": module})
        setattr(made[module], kind, made[name])

    def make(name, **state):
        thing = made[name]()
        thing.__dict__.update(state)
        return thing

    def gone():
        for name in list(made):
            monkeypatch.delitem(sys.modules, name, raising=False)

    make.gone = gone
    return make


def compressed(dense, by_column=True):
    lines = dense.T if by_column else dense
    index = [np.flatnonzero(line).astype(np.int32) for line in lines]
    data = np.concatenate([line[i] for line, i in zip(lines, index, strict=True)])
    start = np.concatenate([[0], np.cumsum([len(i) for i in index])]).astype(np.int32)
    return {"_shape": dense.shape, "maxprint": 50, "indices": np.concatenate(index), "indptr": start, "data": data}


def as_released(foreign, model):
    """The same model, with the classes of the released files."""
    chumpy = {"_dirty_vars": {"x"}, "_itr": None, "_depends_on_deps": False}
    out = dict(model)
    for name in ("v_template", "shapedirs"):
        out[name] = foreign("chumpy.ch.Ch", x=model[name], **chumpy)
    count = model["posedirs"].size
    whole = foreign("chumpy.ch.Ch", x=np.concatenate([model["posedirs"].ravel(), np.zeros(5)]), **chumpy)
    select = {"a": whole, "idxs": np.arange(count), "preferred_shape": model["posedirs"].shape}
    out["posedirs"] = foreign("chumpy.reordering.Select", **select)
    out["J_regressor"] = foreign("scipy.sparse.csc.csc_matrix", **compressed(model["J_regressor"]))
    out["J_regressor_prior"] = foreign("scipy.sparse._csr.csr_matrix", **compressed(model["J_regressor"], False))
    return out | {"bs_style": "lbs", "bs_type": "lrotmin"}


def written(tmp_path, content, name="generic_model.pkl", protocol=2):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_every_array_arrives_with_its_values(tmp_path, foreign, protocol):
    model = arrays()
    source = written(tmp_path, as_released(foreign, model), "flame2023.pkl", protocol)
    foreign.gone()
    report = convert_flame(source, tmp_path / "out" / "flame.safetensors", sizes=SIZES, register=False)
    assert report.complete and len(report.names("converted")) == 7
    assert report.names("not needed") == ["J_regressor_prior", "bs_style", "bs_type"]
    assert "12 x 3 x 5" in str(report)
    read = load_file(tmp_path / "out" / "flame.safetensors")
    assert set(read) == {"v_template", "shapedirs", "posedirs", "J_regressor", "weights", "f"}
    for name, value in read.items():
        np.testing.assert_allclose(value, model[name], rtol=1e-6, err_msg=name)
    with safe_open(tmp_path / "out" / "flame.safetensors", "np") as file:
        expected = {"format": "flame", "version": "2023", "num_shapes": "3", "num_expressions": "2", "jaw": "true"}
        assert file.metadata() == expected
    assert not any(name.split(".")[0] in ("chumpy", "scipy") and "ch" in name for name in sys.modules)


def test_rows_and_columns_of_sparse_matrices(tmp_path, foreign):
    model = arrays()
    read = read_pickle(written(tmp_path, as_released(foreign, model)), ALLOWED)
    np.testing.assert_allclose(read["J_regressor"], model["J_regressor"])
    np.testing.assert_allclose(read["J_regressor_prior"], model["J_regressor"])
    assert read["bs_style"] == "lbs"


def python2_bytes(model):
    """Arrays as Python 2 pickled them: contents are byte strings, which Python 3 reads as text."""
    out = [b"\x80\x02}("]
    for name, value in model.items():
        value = np.asfortranarray(value)
        kind = value.dtype.str[1:].encode()
        out += [b"U", bytes([len(name)]), name.encode()]
        out += [b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n", b"K\x00\x85U\x01b\x87R"]
        shape = b"".join(b"M" + struct.pack("<H", side) for side in value.shape)
        out += [b"(K\x01(", shape, b"tcnumpy\ndtype\nU\x02", kind, b"K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ"]
        content = value.tobytes(order="F")
        out += [b"\xff\xff\xff\xffK\x00tb\x88T", struct.pack("<i", len(content)), content, b"tb"]
    return b"".join([*out, b"u."])


def test_a_file_of_python_2(tmp_path):
    model = arrays()
    (tmp_path / "generic_model.pkl").write_bytes(python2_bytes(model))
    convert_flame(tmp_path / "generic_model.pkl", tmp_path / "flame.safetensors", "2020", SIZES, register=False)
    read = load_file(tmp_path / "flame.safetensors")
    for name, value in read.items():
        np.testing.assert_allclose(value, model[name], rtol=1e-6, err_msg=name)


def refused(tmp_path, content, message, **options):
    source = content if hasattr(content, "exists") else written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        convert_flame(source, tmp_path / "flame.safetensors", **{"sizes": SIZES, "register": False, **options})
    assert not list(tmp_path.glob("flame.*"))
    return str(error.value)


class Malicious:
    """Makes a folder when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, protocol):
    marker = tmp_path / "executed"
    source = written(tmp_path, arrays() | {"x": Malicious(marker)}, protocol=protocol)
    assert any(code.name in ("REDUCE", "NEWOBJ") for code, *_ in pickletools.genops(source.read_bytes()))
    refused(tmp_path, source, r"`source` must contain only arrays of numbers, but needs (posix|nt)\.mkdir")
    assert not marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cchumpy.ch\nos.system\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"cscipy.sparse\nload_npz\n.",
        b"Pother\n.",
    ],
)
def test_other_names_are_refused(tmp_path, code):
    (tmp_path / "generic_model.pkl").write_bytes(code)
    refused(tmp_path, tmp_path / "generic_model.pkl", "`source` must (contain only arrays|be complete)")


def test_arrays_of_objects_are_refused(tmp_path):
    refused(tmp_path, arrays() | {"x": np.array([{}, None], object)}, "plain numbers, but has one of type 'O8'")


def test_misfits_are_all_named(tmp_path):
    model = arrays()
    del model["posedirs"]
    model["weights"] = np.zeros((12, 24))
    model["v_template"][0, 0] = np.nan
    message = refused(tmp_path, model, "`source` does not fit FLAME's head")
    outcomes = {line.split()[0]: " ".join(line.split()[1:]) for line in message.splitlines()}
    assert outcomes["posedirs"] == "12 x 3 x 36 - missing" and outcomes["v_template"].endswith("not finite")
    assert outcomes["weights"] == "12 x 5 12 x 24 shape"


def test_a_body_is_no_head(tmp_path):
    message = refused(tmp_path, arrays(FlameSizes(60, 40, 10, 0)), "nothing was written", sizes=None)
    assert "5023 x 3" in message and "60 x 3" in message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kintree_table", np.array([[-1, 0, 1, 2, 3], [0, 1, 2, 3, 4]]), "expected the parents"),
        ("f", np.full((4, 3), 12, np.uint32), "f: must index 12 vertices"),
        ("weights", np.ones((12, 5)), "weights: rows must sum to 1"),
        ("v_template", 100 * arrays()["v_template"], "head in metres"),
        ("shapedirs", "none", "no numbers"),
    ],
)
def test_senseless_arrays_are_refused(tmp_path, name, value, message):
    assert message in refused(tmp_path, arrays() | {name: value}, "`source`")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps([1]), pickle.dumps({"f": 1})[:-3], None])
def test_other_files_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "x.pkl").write_bytes(content)
    refused(tmp_path, tmp_path / "x.pkl", "`source`")


def test_versions(tmp_path):
    (tmp_path / "FLAME2020").mkdir()
    source = written(tmp_path / "FLAME2020", arrays())
    convert_flame(source, tmp_path / "a.safetensors", sizes=SIZES, register=False)
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata()["version"] == "2020"
    refused(tmp_path, source, "`version` must be one of 2017, .* but is '2021'", version="2021")
    with pytest.raises(ValueError, match="`destination` must end in .safetensors"):
        convert_flame(source, tmp_path / "a.pkl", sizes=SIZES, register=False)


def test_the_command(tmp_path, capsys):
    """A model of FLAME's full size is converted; a foreign file ends with an error and without a file."""
    source = written(tmp_path, full_size_arrays())
    assert main(["convert", "flame", str(source), str(tmp_path / "flame.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "7 tensors converted" in said and "landmarks found: 0." in said
    read = load_file(tmp_path / "flame.safetensors")
    assert read["shapedirs"].shape == (5023, 3, 400) and read["landmarks"].shape == (152,)
    source.write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    assert main(["convert", "flame", str(source), str(tmp_path / "other.safetensors")]) != 0
    assert "mkdir" in capsys.readouterr().err and not (tmp_path / "executed").exists()
    assert not (tmp_path / "other.safetensors").exists()
