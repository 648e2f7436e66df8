"""Messages for unsupported files: what they are, and what to do with them."""

from collections.abc import Iterable
from pathlib import Path


R_ENDINGS = (".rds", ".rdata", ".rda", ".h5seurat")


def why_missing(path: Path | str) -> str:
    """Explain why a path does not exist."""
    start = str(path).split("/")[0]
    if start.endswith(":") and len(start) > 2:
        return f"{path} is an address, not a file: download it first (only SOMA experiments are read over a network)"
    return f"{path} does not exist"


def why_unread(path: Path) -> str:
    """Explain what a file is that is not HDF5."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        return why_not_opened(path, error)
    if not start:
        return f"{path} is empty"
    if path.suffix.lower() in R_ENDINGS:
        return f"{path} is an object of R: write it as .h5ad there, e.g. by zellkonverter::writeH5AD"
    if start.startswith(b"\x1f\x8b"):
        return f"{path} is gzipped: unpack it first"
    if start.startswith(b"PK\x03\x04"):
        return f"{path} is a zip archive: unpack it first"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return (
            f"{path} is a text file, not HDF5: it begins {start[:40].decode()!r}. Convert a table of counts with a "
            "row for each cell by anndata.AnnData(pandas.read_csv(..., index_col=0)).write_h5ad(...)"
        )
    return f"{path} is not an HDF5 file (it begins {start[:8]!r}): a broken download, or another format?"


def why_not_opened(path: Path, error: OSError) -> str:
    """Explain why HDF5 does not open a file: it is locked, not readable for this user, left open, or damaged."""
    said = str(error).lower()
    if isinstance(error, BlockingIOError) or "unable to lock file" in said:
        return (
            f"{path} is open for writing elsewhere, e.g. in a notebook with backed='r+': close it there, or, if no "
            "program writes to it or the file system has no locks, set HDF5_USE_FILE_LOCKING=FALSE"
        )
    if isinstance(error, PermissionError):
        return f"{path} is not readable for this user: change its permissions (chmod), or ask its owner"
    if "already open for write" in said or "consistency flags" in said:
        return (
            f"{path} is marked as open for writing: close it in the program that writes it; if that program crashed, "
            f"remove the mark with h5clear -s {path}"
        )
    return f"{path} is a damaged HDF5 file, perhaps cut short: {error}"


def why_no_cells(path: Path) -> str:
    """Explain what a folder is that is neither zarr nor contains one Matrix Market file."""
    content = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    inside = sorted({p.parent.name for p in path.glob("*/*matrix.mtx*")})
    hint = f"; name one of its folders with a matrix: {', '.join(inside)}" if inside else ""
    return f"{path} is neither zarr nor a 10x folder with one matrix.mtx or matrix.mtx.gz: found {content}{hint}"


def why_no_anndata(content: Iterable[str], missing: Iterable[str]) -> str:
    """Explain what HDF5 or zarr is that lacks groups of AnnData."""
    content = sorted(content)
    if "assays" in content:
        return "this is a Seurat object of R: write it as .h5ad there, e.g. by zellkonverter::writeH5AD"
    return (
        f"no group {' and no group '.join(repr(name) for name in missing)}: this is not an AnnData file. Found: "
        f"{', '.join(repr(name) for name in content[:8]) or 'nothing'}"
    )


def why_no_matrix(modalities: Iterable[str]) -> str:
    """Explain why AnnData or MuData has no matrix."""
    if names := sorted(modalities):
        of_rna = next((name for name in names if name.lower() in ("rna", "gex")), names[0])
        return (
            f"this is MuData of {', '.join(names)}: write the one with RNA counts to a separate file with "
            f"mudata.read(...)[{of_rna!r}].write_h5ad(...)"
        )
    return "found no matrix: neither X nor raw.X nor a layer"


__all__ = ["why_missing", "why_no_anndata", "why_no_cells", "why_no_matrix", "why_not_opened", "why_unread"]
