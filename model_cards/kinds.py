"""Kinds of folders that can be published."""

from pathlib import Path

from cellglot.contents import contents_of


def folder_kind(folder: str | Path) -> str:
    """Return what a folder to publish contains: ``model``, ``adapter``, ``dataset``, ``index`` or ``metric``.

    Raises
    ------
    ValueError
        If it contains none of them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    kind = contents_of(folder)
    if kind and not (kind == "corpus" and not (folder / "manifest.json").exists()):  # which is not finished
        return "dataset" if kind == "corpus" else kind
    raise ValueError(
        f"{folder} cannot be published: it has neither config.json (a model), adapter_config.json (an adapter), "
        f"manifest.json (token data of cellglot tokenize), reference.json (a reference of cellglot index) nor "
        f"{folder.resolve().name}.py (a metric)"
    )


__all__ = ["folder_kind"]
