"""Puts a folder on the Hub in one commit."""

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id


logger = logging.getLogger(__name__)

KEPT_ON_THE_HUB = (".gitattributes",)


class RepositoryExistsError(ValueError):
    """A repository is there already and was not to be replaced."""


def check_repository(api: HfApi, repo: str, repo_type: str, overwrite: bool) -> bool:
    """Say whether a repository exists; refuse it where it does and is not to be replaced.

    Parameters
    ----------
    api
        Client of the Hub.
    repo
        ``owner/name``.
    repo_type
        ``model``, ``dataset`` or ``space``.
    overwrite
        Whether its files may be replaced.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a repository: {error}") from error
    if repo.count("/") != 1:
        raise ValueError(f"{repo!r} is no name of a repository: write owner/name")
    exists = api.repo_exists(repo, repo_type=repo_type)
    if exists and not overwrite:
        raise RepositoryExistsError(
            f"the {repo_type} repository {repo} exists: choose another name, or replace its files by --overwrite"
        )
    return exists


def upload(api: HfApi, folder: str | Path, repo: str, repo_type: str, *, private: bool, overwrite: bool) -> str:
    """Make the repository and put the folder's files into it, in one commit that also deletes what is not among them.

    A repository that was made for files that then could not be put into it is deleted again.

    Parameters
    ----------
    api
        Client of the Hub.
    repo
        ``owner/name``.
    repo_type
        ``model``, ``dataset`` or ``space``.
    private
        Whether only its owner sees it; a repository that exists stays as it is.
    overwrite
        Whether files of a repository that exists may be replaced.
    """
    exists = check_repository(api, repo, repo_type, overwrite)
    more: dict[str, Any] = {"space_sdk": "gradio"} if repo_type == "space" else {}
    files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    there = api.list_repo_files(repo, repo_type=repo_type) if exists else []
    operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations += [CommitOperationDelete(n) for n in there if n not in files and n not in KEPT_ON_THE_HUB]
    if not exists:
        api.create_repo(repo, repo_type=repo_type, private=private, exist_ok=False, **more)
    commit = None
    try:
        commit = api.create_commit(
            repo, operations, commit_message=f"Publish {repo.split('/')[1]} with cellglot", repo_type=repo_type
        )
    finally:
        if commit is None and not exists:
            _delete(api, repo, repo_type)
    return commit.commit_url


def _delete(api: HfApi, repo: str, repo_type: str) -> None:
    """Delete an empty repository, or say that it is there."""
    try:
        api.delete_repo(repo, repo_type=repo_type, missing_ok=True)
    except (HfHubHTTPError, OSError) as error:
        logger.warning(
            f"nothing was published, but the {repo_type} repository {repo} was made and could not be deleted: publish "
            f"with --overwrite, or delete it on the Hub ({error})"
        )


__all__ = ["RepositoryExistsError", "check_repository", "upload"]
