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
    if exists and not overwrite and _holds_files(api, repo, repo_type):
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

    A new repository is deleted again if the Hub refuses the upload. If the upload is interrupted, it stays, empty: the
    same call resumes the upload, and does not send large files again that arrived.

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
    message = f"Publish {repo.split('/')[1]} with cellglot"
    try:
        return api.create_commit(repo, operations, commit_message=message, repo_type=repo_type).commit_url
    except (Exception, KeyboardInterrupt) as error:
        if not exists and _is_refused(error):
            _delete(api, repo, repo_type)
        elif not exists:
            logger.warning(
                f"the upload was interrupted, and the {repo_type} repository {repo} is still empty: "
                "publish again to resume it; large files that arrived are not sent again"
            )
        raise


def _is_refused(error: BaseException) -> bool:
    """Whether the Hub refused what was sent, so that sending it again does not help."""
    response = getattr(error, "response", None)
    return isinstance(error, ValueError) or 400 <= getattr(response, "status_code", 0) < 500


def _holds_files(api: HfApi, repo: str, repo_type: str) -> bool:
    """Whether there is more in a repository than the Hub puts into a new one."""
    return any(name not in KEPT_ON_THE_HUB for name in api.list_repo_files(repo, repo_type=repo_type))


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
