"""Publishing and loading by a repository's name, against a stand-in for the Hub that speaks its API on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing_utils.avatars import make_avatar
from tests.testing_utils.hub_server import READ_TOKEN, HubServer
from tests.testing_utils.pipelines import make_vasa1_components
from vasa_hf import Vasa3DAvatarPipeline, VasaTalkingFacePipeline
from vasa_hf.cli import main
from vasa_hf.publish import release_files

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[1]
CARD = "---\nlicense: apache-2.0\nlibrary_name: vasa_hf\n---\n\n# Made of noise\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three folders with cards: a pipeline, one of avatars that takes the first from the Hub, and an avatar."""
    folder = tmp_path_factory.mktemp("models")
    components = make_vasa1_components()
    VasaTalkingFacePipeline(**components).save_pretrained(folder / "faces")
    heads = Vasa3DAvatarPipeline(**components)
    heads.add_avatar("anna", make_avatar(0))
    heads.save_pretrained(folder / "heads", talking_face="ada/faces")
    make_avatar(1).save_pretrained(folder / "bea")
    for name in ("faces", "heads", "bea"):
        (folder / name / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory, models):
    """The stand-in, with the three pushed by the command."""
    with HubServer() as server:
        server.home = tmp_path_factory.mktemp("hub")
        for name in ("faces", "heads", "bea"):
            done = push(server, models / name, f"ada/{name}")
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"{server.url}/ada/{name}/commit/{server.commit_id(f'ada/{name}')}\n"
        yield server


def push(server, *words, **environment):
    return python(server, "-m", "vasa_hf.cli", "push", *words, **environment)


def python(server, *words, token="hf_write", **environment):
    """Python in a process that takes the stand-in for the Hub."""
    variables = {**server.client_environment(server.home, token), "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=variables, cwd=server.home, capture_output=True, text=True, timeout=300)


def contents(folder):
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_push_makes_the_repository_and_uploads_the_folder(hub, models):
    held = dict(hub.files("ada/faces"))
    assert held.pop(".gitattributes") and held == contents(models / "faces")
    assert len(hub.repos["ada/faces"]["branches"]["main"]) == 2, "one commit after the first, so never half a model"
    assert not hub.repos["ada/faces"]["private"]
    large = [path for path in held if path.endswith(".safetensors")]
    assert large and sum(command == "PUT" for command, _ in hub.requests) >= len(large)


def test_pipelines_and_avatars_load_by_repository_and_revision(hub, models, tmp_path):
    """What a user writes, in a fresh process with an empty cache; the numbers are those that were saved."""
    other = make_avatar(2)
    other.save_pretrained(tmp_path / "bea")
    (tmp_path / "bea" / "README.md").write_text(CARD)
    assert push(hub, tmp_path / "bea", "ada/bea", "--revision", "second").returncode == 0
    assert push(hub, models / "bea", "ada/secret", "--private", "--revision", "v2").returncode == 0
    code = f"""
import json
from vasa_hf import Vasa3DAvatarPipeline, Vasa3DGaussianAvatar, VasaTalkingFacePipeline

def weights(module):
    return sum(value.double().abs().sum().item() for value in module.state_dict().values())

faces = VasaTalkingFacePipeline.from_pretrained("ada/faces", revision="main")
heads = Vasa3DAvatarPipeline.from_pretrained("ada/heads", revision={hub.commit_id("ada/heads")!r})
results = [faces.model_name, weights(faces.face_autoencoder), heads.model_name, weights(heads.face_autoencoder)]
results += [heads.avatars, weights(heads.load_avatar("anna")), weights(heads.load_avatar("ada/bea"))]
results += [weights(heads.load_avatar("ada/bea", revision="second"))]
results += [weights(Vasa3DGaussianAvatar.from_pretrained("ada/bea", revision="second"))]
results += [heads.contact_sheet("ada/bea", output_size=32).size]
for load in (VasaTalkingFacePipeline.from_pretrained, Vasa3DAvatarPipeline.from_pretrained):
    for name, revision in (("ada/faces", "nowhere"), ("ada/none", None)):
        try:
            load(name, revision=revision)
        except ValueError as error:
            results.append(str(error))
try:
    heads.load_avatar("ada/secret", revision="v2")
except ValueError as error:
    results.append(str(error))
results += [weights(heads.load_avatar("ada/secret", revision="v2", token="hf_write"))]
VasaTalkingFacePipeline.from_pretrained("ada/faces", local_files_only=True)
print(json.dumps(results))
"""
    done = python(hub, "-c", code, token=None)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    folders = (models / "heads" / "avatars" / "anna", models / "bea", tmp_path / "bea")
    anna, bea, second = (weights(Vasa3DAvatarPipeline(**make_vasa1_components()), folder) for folder in folders)
    face = VasaTalkingFacePipeline.from_pretrained(models / "faces").face_autoencoder
    face = sum(value.double().abs().sum().item() for value in face.state_dict().values())
    assert results[:5] == ["faces", pytest.approx(face), "heads", pytest.approx(face), ["anna"]]
    assert results[5:9] == [pytest.approx(value) for value in (anna, bea, second, second)] and bea != second
    assert results[9] == [96, 32]
    assert len(results) == 16 and all("`pretrained_model_name_or_path`" in text for text in results[10:14])
    assert "nowhere" in results[10] and "ada/none" in results[11]
    assert "`name_or_path`" in results[14] and "ada/secret" in results[14] and results[15] == pytest.approx(bea)


def weights(pipe, folder):
    return sum(value.double().abs().sum().item() for value in pipe.load_avatar(folder).state_dict().values())


def test_push_again_commits_what_changed_and_drops_old_weights(hub, models, tmp_path):
    folder = shutil.copytree(models / "bea", tmp_path / "bea")
    assert push(hub, folder, "ada/again").returncode == 0
    first = hub.commit_id("ada/again")
    before = sum(command == "PUT" for command, _ in hub.requests)
    assert push(hub, folder, "ada/again").returncode == 0
    assert hub.commit_id("ada/again") == first, "nothing changed: no commit"
    weight = next(folder.glob("*.safetensors"))
    weight.rename(folder / "renamed.safetensors")
    (folder / "README.md").write_text(CARD + "\nSecond edition.\n")
    hub.repos["ada/again"]["branches"]["main"][-1]["files"]["NOTES.md"] = b"written on the Hub"
    assert push(hub, folder, "ada/again").returncode == 0
    held = hub.files("ada/again")
    assert "renamed.safetensors" in held and weight.name not in held and b"Second" in held["README.md"]
    assert held["NOTES.md"] == b"written on the Hub"
    assert sum(command == "PUT" for command, _ in hub.requests) == before, "what the Hub has is not sent again"


def test_private_and_branches(hub, models):
    assert push(hub, models / "bea", "ada/hidden", "--private", "--revision", "v2").returncode == 0
    assert hub.repos["ada/hidden"]["private"]
    assert "config.json" in hub.files("ada/hidden", "v2") and "config.json" not in hub.files("ada/hidden")
    public = push(hub, models / "faces", "ada/bea", "--private")
    assert public.returncode == 2 and "it is public" in public.stderr
    assert "model_index.json" not in hub.files("ada/bea")


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        (None, "ada/new", "hf auth login"),
        ("hf_old", "ada/new", "no longer valid"),
        (READ_TOKEN, "ada/new", "role `write`"),
        ("hf_write", "bob/new", "`repo` must be yours"),
        ("hf_write", "ada/a b", "Repo id must"),
    ],
)
def test_login_errors_say_what_to_do(hub, models, token, repo, said):
    done = push(hub, models / "bea", repo, token=token)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr, done.stderr
    assert done.stderr.startswith("vasa-hf: error: ") and done.stderr.count("\n") == 1
    assert repo not in hub.repos


def test_no_connection_is_an_error(hub, models):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    for environment in ({"HF_ENDPOINT": nobody}, {"HF_HUB_OFFLINE": "1"}):
        done = push(hub, models / "bea", "ada/new", **environment)
        assert done.returncode == 1 and done.stderr.startswith("vasa-hf: error: "), done.stderr
        assert "Traceback" not in done.stderr


def test_what_is_published_of_a_folder(models, tmp_path):
    folder = shutil.copytree(models / "bea", tmp_path / "bea")
    for name in (
        ".git/config",
        ".DS_Store",
        "fit/log.jsonl",
        "fit/frames.bin",
        "portrait.png",
        "avatars/x/config.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    assert set(release_files(folder)) == {*contents(models / "bea"), "portrait.png", "avatars/x/config.json"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "README.md").unlink(), "must hold a model card README.md"),
        (lambda folder: (folder / "README.md").write_text("# Bea\n"), "license and library_name"),
        (lambda folder: (folder / "README.md").write_text("---\nlicense: [\n---\n"), "metadata can be read"),
        (lambda folder: (folder / "config.json").unlink(), "must hold a model"),
        (lambda folder: (folder / "model.bin").write_bytes(b"x"), "'model.bin'"),
        (lambda folder: (folder / "train.py").write_text("x"), "'train.py'"),
        (lambda folder: (folder / "optimizer.pt").write_text("x"), "'optimizer.pt'"),
        (lambda folder: (folder / "more.safetensors").write_bytes(b"\x80\x04pickle"), "must hold safetensors"),
    ],
)
def test_folders_that_are_refused(models, tmp_path, capsys, change, said):
    """Before anything is sent: this process has no Hub, its environment says offline."""
    folder = shutil.copytree(models / "bea", tmp_path / "bea")
    change(folder)
    assert main(["push", str(folder), "ada/bea"]) == 2
    assert said in capsys.readouterr().err
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_missing_folder_is_rejected(capsys):
    assert main(["push", "nowhere", "ada/bea"]) == 2
    assert (
        "`folder` must be an existing folder or the name of an embedded model, got 'nowhere'" in capsys.readouterr().err
    )
