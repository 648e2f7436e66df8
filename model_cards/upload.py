"""Upload of a folder to the Hub in one commit."""

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id


logger = logging.getLogger(__name__)

KEPT_ON_THE_HUB = (".gitattributes",)


class RepositoryExistsError(ValueError):
    """A repository exists already, and overwriting was not requested."""


def check_repository(api: HfApi, repo: str, repo_type: str, overwrite: bool) -> bool:
    """Return whether a repository exists; refuse an existing one without `overwrite`."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is not a name of a repository: {error}") from error
    if repo.count("/") != 1:
        raise ValueError(f"{repo!r} is not a name of a repository: write owner/name")
    exists = api.repo_exists(repo, repo_type=repo_type)
    if exists and not overwrite:
        raise RepositoryExistsError(
            f"the {repo_type} repository {repo} exists: choose another name, or replace its files by --overwrite"
        )
    return exists


def upload(
    api: HfApi,
    folder: str | Path,
    repo: str,
    repo_type: str,
    *,
    private: bool,
    overwrite: bool,
    space_sdk: str = "gradio",
) -> str:
    """Upload the files of a folder in one commit, which deletes all other files of the repository; return its address.

    A new repository is deleted again if the upload fails.

    Parameters
    ----------
    repo_type
        ``model``, ``dataset`` or ``space``.
    private
        Visibility of a new repository; that of an existing one does not change.
    overwrite
        Whether files of an existing repository may be replaced.
    space_sdk
        Of a new Space: ``gradio`` or ``static``.
    """
    exists = check_repository(api, repo, repo_type, overwrite)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    there = api.list_repo_files(repo, repo_type=repo_type) if exists else []
    operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations += [CommitOperationDelete(n) for n in there if n not in files and n not in KEPT_ON_THE_HUB]
    if not exists:
        more: dict[str, Any] = {"space_sdk": space_sdk} if repo_type == "space" else {}
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
    """Delete an empty repository, or warn that it remains."""
    try:
        api.delete_repo(repo, repo_type=repo_type, missing_ok=True)
    except (HfHubHTTPError, OSError) as error:
        logger.warning(
            f"nothing was published, but the {repo_type} repository {repo} was created and could not be deleted: "
            f"publish with --overwrite, or delete it on the Hub ({error})"
        )


__all__ = ["RepositoryExistsError", "check_repository", "upload"]
