"""Groups of HDF5 and zarr: only members that are named are visited, and nothing outside of the file is read."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

from cellglot.tokenization.reading.errors import CellFileError
from cellglot.tokenization.reading.hdf5_arrays import missing_filter


MOST_MEMBERS = 20_000  # of a group that is listed
MOST_LINKS = 64  # followed for one name
MOST_BYTES_OF_A_VALUE = 1 << 20  # of a fixed length, as texts and records have
UNSUSPICIOUS_BYTES = 1 << 24
USUAL_COMPRESSION = 64  # of a whole file
STRONGEST_COMPRESSION = 1_100  # that deflate reaches
LARGEST_CHUNK = 1 << 28


class FileGroup(Mapping[str, Any]):
    """A group in a file of cells, of h5py or zarr."""

    def __init__(self, group: Any):
        self._group = group
        self.name, self.attrs = group.name, group.attrs

    def __contains__(self, name: object) -> bool:
        try:
            self[name]  # type: ignore[index]
        except KeyError:
            return False
        return True

    def _too_many(self, n: int) -> CellFileError:
        return CellFileError(f"{self.name} has more than {MOST_MEMBERS:,} members ({n:,}): it is damaged")


class Hdf5Group(FileGroup):
    """A group of HDF5: links into other files, external storage and virtual data sets are refused when visited.

    Parameters
    ----------
    root
        The file's outermost group; by default `group`.
    """

    def __init__(self, group: h5py.Group, root: "Hdf5Group | None" = None):
        super().__init__(group)
        self._root = self if root is None else root
        if root is None:
            self.file_size = os.path.getsize(group.file.filename)

    def __iter__(self) -> Iterator[str]:
        if len(self._group) > MOST_MEMBERS:
            raise self._too_many(len(self._group))
        yield from self._group

    def __len__(self) -> int:
        return len(self._group)

    def __getitem__(self, name: Any) -> Any:
        """Return a member: a group like this one, or a data set of h5py that was checked.

        Raises
        ------
        KeyError
            If there is none.
        CellFileError
            If a link is broken, or the data are outside of the file, larger than the file allows, or compressed by
            an unknown filter.
        """
        if isinstance(name, h5py.Reference):
            return self._checked(self._group[name])
        return self._walk(str(name), [MOST_LINKS])

    def _walk(self, path: str, links_left: list[int]) -> Any:
        item: Any = self
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if not isinstance(item, Hdf5Group):
                raise KeyError(f"{path!r} in {self.name}")
            item = item._member(part, links_left)
        return item

    def _member(self, name: str, links_left: list[int]) -> Any:
        link = self._group.get(name, getlink=True)
        where = f"{self.name.rstrip('/')}/{name}"
        if link is None:
            raise KeyError(f"no {name!r} in {self.name}")
        if isinstance(link, h5py.ExternalLink):
            raise CellFileError(
                f"{where} is a link into another file ({link.filename!r}), which is not followed: copy the data into "
                "this file"
            )
        if isinstance(link, h5py.SoftLink):
            links_left[0] -= 1
            if links_left[0] < 0:
                raise CellFileError(f"{where} is a link to itself")
            try:
                return (self._root if link.path.startswith("/") else self)._walk(link.path, links_left)
            except KeyError as error:
                raise CellFileError(f"{where} is a link to {link.path!r}, which is not there") from error
        return self._checked(self._group[name])

    def _checked(self, item: Any) -> Any:
        if isinstance(item, h5py.Group):
            return Hdf5Group(item, self._root)
        if isinstance(item, h5py.Dataset):
            check_dataset(item, self._root.file_size)
            return item
        raise CellFileError(f"{item.name} is neither a group nor a data set")


def check_dataset(dataset: h5py.Dataset, file_size: int) -> None:
    """Refuse a data set in other files, of an unknown filter, or too large for a file of `file_size` bytes."""
    settings = dataset.id.get_create_plist()
    if settings.get_external_count():
        outside = settings.get_external(0)[0].decode("utf-8", "replace")
        raise CellFileError(
            f"{dataset.name} takes its bytes from another file ({outside!r}), which is not read: copy the data into "
            "this file"
        )
    layout = settings.get_layout()
    if layout == h5py.h5d.VIRTUAL:
        raise CellFileError(
            f"{dataset.name} is a virtual data set of other files, which are not read: copy the data into this file"
        )
    if (unreadable := missing_filter(dataset, settings)) is not None:
        raise CellFileError(unreadable)
    if dataset.shape is None or dataset.size == 0:
        return
    width = dataset.id.get_type().get_size()
    if width > MOST_BYTES_OF_A_VALUE:
        raise CellFileError(f"{dataset.name} has values of {width:,} bytes each: it is damaged")
    _check_size(dataset, dataset.size * width, settings, layout, file_size)


def _check_size(dataset: h5py.Dataset, declared: int, settings: Any, layout: int, file_size: int) -> None:
    """Compare the declared size of a data set, and of its chunks, with what is stored."""
    width = declared // dataset.size
    chunk = 0
    if layout == h5py.h5d.CHUNKED:
        chunk = width
        for length in settings.get_chunk():
            chunk *= length
    if max(declared, chunk) <= max(UNSUSPICIOUS_BYTES, USUAL_COMPRESSION * file_size) and chunk <= LARGEST_CHUNK:
        return
    stored = dataset.id.get_storage_size()
    if layout != h5py.h5d.CHUNKED:
        possible = declared if declared <= stored <= file_size else 0
    elif settings.get_nfilters():
        possible = max(STRONGEST_COMPRESSION * stored, min(chunk, LARGEST_CHUNK) * dataset.id.get_num_chunks())
        possible = possible if chunk <= max(LARGEST_CHUNK, STRONGEST_COMPRESSION * stored) else 0
    else:
        possible = stored
    if declared > possible:
        raise CellFileError(
            f"{dataset.name} declares {declared:,} bytes (shape {dataset.shape}), but the file contains {stored:,}: "
            "it is damaged, or was never written"
        )


class ZarrGroup(FileGroup):
    """A group of zarr, opened on an `InsideStore`; the sizes of its arrays are compared with what is stored."""

    def __iter__(self) -> Iterator[str]:
        from cellglot.tokenization.reading.zarr_chunks import InsideStore

        store = self._group.store
        if isinstance(store, InsideStore) and (n := store.count(self._group.path, MOST_MEMBERS)) > MOST_MEMBERS:
            raise self._too_many(n)
        yield from self._group

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: Any) -> Any:
        """Return a member: a group like this one, or an array of zarr that was checked."""
        import zarr

        from cellglot.tokenization.reading.zarr_chunks import check_chunks

        item = self._group[name]
        if isinstance(item, zarr.Group):
            return ZarrGroup(item)
        check_chunks(item)
        return item


def open_zarr(path: Path) -> ZarrGroup:
    """Open a zarr store for reading; keys outside of its folder are refused when they are read."""
    import zarr  # slow to import, and most files are HDF5

    from cellglot.tokenization.reading.zarr_chunks import InsideStore

    return ZarrGroup(zarr.open_group(InsideStore(path), mode="r"))


__all__ = ["FileGroup", "Hdf5Group", "ZarrGroup", "open_zarr"]
