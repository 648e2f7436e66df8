from unittest.mock import create_autospec

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from cellglot.model_cards.upload import RepositoryExistsError, check_repository, upload


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "README.md").write_text("# x")
    (tmp_path / "sub" / "a.json").write_text("{}")
    return tmp_path


@pytest.fixture
def hub():
    """A client of the Hub that answers as an empty Hub does; calls have to fit the real client's."""
    api = create_autospec(HfApi, instance=True)
    api.repo_exists.return_value = False
    api.create_commit.return_value.commit_url = "https://huggingface.co/owner/name/commit/1"
    return api


def test_one_commit_into_a_new_private_repository(hub, folder):
    address = upload(hub, folder, "owner/name", "model", private=True, overwrite=False)
    assert address == "https://huggingface.co/owner/name/commit/1"
    hub.create_repo.assert_called_once_with("owner/name", repo_type="model", private=True, exist_ok=False)
    hub.create_commit.assert_called_once()
    (repo, operations), options = hub.create_commit.call_args
    assert (repo, options["repo_type"], options["commit_message"]) == (
        "owner/name",
        "model",
        "Publish name with cellglot",
    )
    assert all(isinstance(o, CommitOperationAdd) for o in operations)
    assert [o.path_in_repo for o in operations] == ["README.md", "sub/a.json"]


def test_a_metric_is_a_space(hub, folder):
    upload(hub, folder, "owner/name", "space", private=False, overwrite=False)
    hub.create_repo.assert_called_once_with(
        "owner/name", repo_type="space", private=False, exist_ok=False, space_sdk="gradio"
    )


def test_a_repository_that_exists_needs_overwrite(hub, folder):
    hub.repo_exists.return_value = True
    hub.list_repo_files.return_value = [".gitattributes", "README.md"]
    with pytest.raises(RepositoryExistsError, match="the dataset repository owner/name exists: .* --overwrite"):
        upload(hub, folder, "owner/name", "dataset", private=True, overwrite=False)
    hub.create_commit.assert_not_called()


def test_overwriting_deletes_what_is_left_of_before_in_the_same_commit(hub, folder):
    hub.repo_exists.return_value = True
    hub.list_repo_files.return_value = [".gitattributes", "README.md", "old.bin"]
    upload(hub, folder, "owner/name", "model", private=True, overwrite=True)
    hub.create_repo.assert_not_called()
    operations = hub.create_commit.call_args.args[1]
    assert [o.path_in_repo for o in operations if isinstance(o, CommitOperationDelete)] == ["old.bin"]
    assert len([o for o in operations if isinstance(o, CommitOperationAdd)]) == 2


def test_a_repository_whose_files_are_refused_is_deleted_again(hub, folder, caplog):
    hub.create_commit.side_effect = ValueError("Invalid metadata in README.md")
    with pytest.raises(ValueError, match="Invalid metadata"):
        upload(hub, folder, "owner/name", "model", private=True, overwrite=False)
    hub.delete_repo.assert_called_once_with("owner/name", repo_type="model", missing_ok=True)
    hub.delete_repo.side_effect = OSError("not allowed")
    with pytest.raises(ValueError, match="Invalid metadata"):
        upload(hub, folder, "owner/name", "model", private=True, overwrite=False)
    assert "repository owner/name was created and could not be deleted: publish with --overwrite" in caplog.text


def test_an_interrupted_upload_leaves_an_empty_repository_that_the_same_call_fills(hub, folder, caplog):
    for interruption in (OSError("the line is down"), KeyboardInterrupt()):
        hub.create_commit.side_effect = interruption
        with pytest.raises(type(interruption)):
            upload(hub, folder, "owner/name", "model", private=True, overwrite=False)
    hub.delete_repo.assert_not_called()
    assert "publish again to resume it" in caplog.text
    hub.create_commit.side_effect = None
    hub.repo_exists.return_value = True
    hub.list_repo_files.return_value = [".gitattributes"]
    assert upload(hub, folder, "owner/name", "model", private=True, overwrite=False).endswith("/commit/1")
    assert hub.create_repo.call_count == 2  # of the calls that were interrupted


def test_a_repository_of_before_is_never_deleted(hub, folder):
    hub.repo_exists.return_value = True
    hub.list_repo_files.return_value = []
    hub.create_commit.side_effect = OSError("the line is down")
    with pytest.raises(OSError, match="the line is down"):
        upload(hub, folder, "owner/name", "model", private=True, overwrite=True)
    hub.delete_repo.assert_not_called()


@pytest.mark.parametrize("name", ["name", "a/b/c", "owner/na me", "-x/name"])
def test_names_that_are_none(hub, name):
    with pytest.raises(ValueError, match="is not a name of a repository"):
        check_repository(hub, name, "model", overwrite=False)
    hub.repo_exists.assert_not_called()
