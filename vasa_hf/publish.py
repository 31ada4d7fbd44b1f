"""Publishing a model on the Hugging Face Hub: what may go there, and the upload. `vasa-hf push` is its command.

Everything goes in one commit, so that a repository never holds half a model; weights and configurations that the
folder no longer has leave the repository in the same commit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vasa_hf.hub import resolve

CARD = "README.md"
# Weights, configurations, images and text: no files that run code when a repository is opened.
SAFE_SUFFIXES = (
    *(".safetensors", ".json", ".txt", ".md", ".ply", ".splat"),
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp4", ".wav", ".flac"),
)
# Not published: hidden files (.git, caches), and the folder from which `vasa-hf fit` resumes.
_WORKING_FOLDERS = ("fit",)
_REPLACED = (".safetensors", ".json")


def release_files(folder: str | os.PathLike) -> list[str]:
    """Check that a folder may be published and list what of it would be.

    Args:
        folder (`str` or `os.PathLike`): With a card `README.md`, and `config.json` or `model_index.json`.

    Returns:
        `list[str]`: Paths in the folder, with `/`, sorted.

    Raises:
        ValueError: If it is no model, has no card with `license` and `library_name` in its metadata, or holds files of
            other kinds than `SAFE_SUFFIXES` or weights that are no safetensors.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` must be an existing folder or the name of an embedded model, got {str(folder)!r}.")
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    files = sorted(path.as_posix() for path in visible if path.parts[0] not in _WORKING_FOLDERS)
    if not {"config.json", "model_index.json"} & set(files):
        raise ValueError(f"`folder` must hold a model, {str(folder)!r} has neither config.json nor model_index.json.")
    unsafe = [name for name in files if not (name.lower().endswith(SAFE_SUFFIXES) or Path(name).name == "LICENSE")]
    if unsafe:
        raise ValueError(
            f"`folder` must hold nothing but {', '.join(SAFE_SUFFIXES)} files and LICENSE, got {unsafe[0]!r}"
            f"{f' and {len(unsafe) - 1} more' * (len(unsafe) > 1)}: move them away, or save weights as safetensors."
        )
    _check_card(folder)
    for name in files:
        if name.endswith(".safetensors"):
            _check_safetensors(folder / name)
    return files


def publish(
    name_or_path: str | os.PathLike,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a model with its card to the Hub; the repository and the branch are made if they do not exist.

    Args:
        name_or_path (`str` or `os.PathLike`):
            A folder that `save_pretrained` of a pipeline or an avatar wrote, with a card, or an embedded model's name.
        repo (`str`): `user/name`, or `name` for the user who is logged in.
        private (`bool`, defaults to `False`): Make a repository that only its owners see.
        revision (`str`, *optional*): Branch; the main one by default.
        token (`str`, *optional*): Instead of the logged-in user's.

    Returns:
        `str`: Address of the commit.

    Raises:
        ValueError: If the folder may not be published (see `release_files`), or the Hub refuses it.
        PermissionError: If no account is logged in, or may not write there.
        ConnectionError: If the Hub cannot be reached.
    """
    folder = Path(resolve(name_or_path))
    files = release_files(folder)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token, library_name="vasa_hf")
    with _explain_errors(repo):
        repo_id = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:
            raise ValueError(f"`repo` must be private, but {repo_id!r} exists and it is public.")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        present = api.list_repo_files(repo_id, revision=revision)
        deleted = [name for name in present if name.endswith(_REPLACED) and name not in files]
        # Not `upload_folder`: it splits large folders into several commits.
        operations = [CommitOperationDelete(name) for name in deleted]
        operations += [CommitOperationAdd(name, folder / name) for name in files]
        message = f"Upload {folder.name} with vasa_hf"
        return str(api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url)


def _check_card(folder: Path) -> None:
    from huggingface_hub import ModelCard

    if not (folder / CARD).is_file():
        raise ValueError(
            f"`folder` must hold a model card {CARD}, {str(folder)!r} has none: write what it was made from, with "
            "whose consent, and what it must not be used for (https://huggingface.co/docs/hub/model-cards)."
        )
    try:
        card = ModelCard.load(folder / CARD).data
    except Exception as error:  # of YAML, or of the metadata's meaning
        raise ValueError(f"`folder` must hold a card whose metadata can be read, got {CARD}: {error}") from error
    missing = [name for name in ("license", "library_name") if not getattr(card, name)]
    if missing:
        raise ValueError(f"`folder` must hold a card with {' and '.join(missing)} in its metadata, {CARD} lacks it.")


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            pass
    except SafetensorError as error:
        raise ValueError(f"`folder` must hold safetensors, but {str(file)!r} cannot be read: {error}") from error


@contextmanager
def _explain_errors(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into errors that say what to do."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    login = "Log in with `hf auth login`, or set HF_TOKEN to a token of https://huggingface.co/settings/tokens"
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"No account is logged in to the Hub. {login} that may write.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise PermissionError(
                f"No account is logged in to the Hub, or the token is no longer valid. {login}."
            ) from error
        if status == 403:
            raise PermissionError(
                f"You, or your token, may not write to {repo!r}: a token needs the role `write`, and `repo` must be "
                f"yours or your organisation's. {login}."
            ) from error
        raise ValueError(f"`repo` {repo!r} was refused by the Hub: {error}") from error
    except ConnectionError:
        raise
    except Exception as error:
        # The client's own library of HTTP differs between its versions; the class has one name in all of them.
        if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
            raise ConnectionError(f"The Hub cannot be reached: {error}") from error
        raise
