"""A folder of token Parquet with its manifest, shards and tokenizer."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellglot.inputs import is_remote, reading
from cellglot.tokenization.corpus.check import AGAIN, CorpusError, check_shards, read_manifest, vocabulary_digest
from cellglot.tokenization.corpus.genes import described_names, described_vocabulary
from cellglot.tokenization.corpus.plan import SPLITS
from cellglot.tokenization.corpus.sources import check_sizes, fetch_description, pinned
from cellglot.tokenization.families import tokenizers
from cellglot.tokenization.reading.cells import FILTERED
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer


MANIFEST = "manifest.json"
WORK = ".work"
SAID = ("labels in ", FILTERED)  # how notes about files begin that the summary has
MOST_CHECKED_BYTES = 4 << 30  # of a corpus whose digests are compared when it is opened for streaming


@dataclass
class Corpus:
    """A folder of token Parquet with its manifest and tokenizer, on disk or at a network source.

    Parameters
    ----------
    folder
        Folder with ``manifest.json``, ``data/`` and ``tokenizer/``; of a network source, a copy without ``data/``.
    manifest
        Its tokenizer, splits and shards, and its files with their gene reports.
    source
        Address of a network source; a repository of the Hub with its commit. None for a folder on disk.
    """

    folder: Path
    manifest: dict[str, Any]
    source: str | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike, contents: bool | None = True) -> "Corpus":
        """Open a finished corpus and check its shards; of a network source, which are not copied, only their sizes.

        Parameters
        ----------
        folder
            A folder, or an address such as ``hf://datasets/OWNER/NAME`` or ``s3://BUCKET/FOLDER``.
        contents
            Whether to read all shards of a folder and compare their digests; None to do so up to 4 GiB. Sizes and
            numbers of cells are always compared.

        Raises
        ------
        CorpusError
            If the folder is not a corpus or not finished, or a shard is missing or cut short; names the shard. If a
            network source does not answer.
        """
        if is_remote(folder):
            return cls._open_source(str(folder).rstrip("/"))
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.exists():
            unfinished = (folder / WORK).exists()
            raise CorpusError(
                f"{folder} contains {'an unfinished corpus' if unfinished else 'no corpus'} (no {MANIFEST}): "
                f"run cellglot tokenize {'again with the same arguments to resume it' if unfinished else 'first'}"
            )
        corpus = cls(folder, read_manifest(path))
        corpus.check(contents)
        return corpus

    @classmethod
    def _open_source(cls, address: str) -> "Corpus":
        address = pinned(address)
        folder = fetch_description(address, MANIFEST)
        corpus = cls(folder, read_manifest(folder / MANIFEST), address)
        corpus.check()
        return corpus

    def check(self, contents: bool | None = True) -> None:
        """Compare the shards with the manifest: size, content (by its digest), cells.

        Parameters
        ----------
        contents
            As for `open`.

        Raises
        ------
        CorpusError
            If a shard is missing, unreadable, or does not match the manifest; names the shard.
        """
        if self.source is None:
            if contents is None:
                contents = sum(shard["bytes"] for shard in self.manifest["shards"]) <= MOST_CHECKED_BYTES
            check_shards(self.folder, self.manifest, contents)
        else:
            check_sizes(self.source, self.manifest["shards"])

    def shards(self, split: str) -> list[str]:
        """Return the paths of a split's shards, or their addresses."""
        place = self.folder if self.source is None else self.source
        return [f"{place}/{s['file']}" for s in self.manifest["shards"] if s["split"] == split]

    def n_cells(self, split: str) -> int:
        """Count the cells of a split."""
        return sum(s["cells"] for s in self.manifest["shards"] if s["split"] == split)

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer."""
        return self.folder / "tokenizer"

    def tokenizer(self) -> GeneExpressionTokenizer:
        """Load the tokenizer.

        Raises
        ------
        CorpusError
            If it is damaged, or its vocabulary does not match the manifest.
        """
        classes = {c.__name__: c for c in tokenizers().values()}
        named = self.manifest["tokenizer"]
        if named not in classes:
            raise CorpusError(
                f"{self.folder / MANIFEST} names an unknown tokenizer {named!r:.60}; known are {', '.join(classes)}"
            )
        with reading(self.tokenizer_folder, AGAIN):
            tokenizer = classes[named].from_pretrained(self.tokenizer_folder)
        recorded = self.manifest.get("vocabulary_digest")
        if recorded is not None and vocabulary_digest(tokenizer.vocabulary) != recorded:
            raise CorpusError(
                f"vocabulary or statistics of {self.tokenizer_folder} do not match the manifest: it is damaged or was "
                f"changed; {AGAIN}"
            )
        return tokenizer

    def summary(self) -> str:
        """Describe what the corpus contains and what was left out.

        Raises
        ------
        InputError
            If the manifest is damaged.
        """
        with reading(self.folder / MANIFEST, AGAIN):
            return "\n".join(self._described())

    def _described(self) -> list[str]:
        m = self.manifest
        cells = ", ".join(f"{self.n_cells(s):,} {s}" for s in SPLITS if self.n_cells(s))
        lines = [
            f"{sum(s['cells'] for s in m['shards']):,} cells ({cells}; held out by {m['split']['by']}), "
            f"{sum(s['tokens'] for s in m['shards']):,} tokens, {m['vocab_size']:,} ids, "
            f"{len(m['shards']):,} shards",
        ]
        own_vocabulary = m.get("plan", {}).get("arguments", {}).get("vocabulary") is None
        if "vocabulary" in m:
            lines += described_vocabulary(m["vocabulary"])
        for file in m["files"]:
            r = file["report"]
            lines.append(
                f"{file['name']}: {file['n_cells']:,} cells, counts in {file['counts_in']}, "
                + described_names(r, own_vocabulary)
                + (f", {r['ambiguous']:,} ambiguous genes left out" if r["ambiguous"] else "")
                + (
                    f", {r['cells_without_genes']:,} cells without genes: an unfiltered file?"
                    if r["cells_without_genes"]
                    else ""
                )
                + (f", {r['cells_cut']:,} cells cut by {r['tokens_cut']:,} tokens" if r["cells_cut"] else "")
                + (f", {file['duplicate_names']:,} duplicate cell names" if file["duplicate_names"] else "")
            )
            lines += [f"{file['name']}: {note}" for note in file.get("notes", ()) if note.startswith(SAID)]
        lines += [f"skipped {name}: {reason}" for name, reason in m["broken"].items()]
        return lines


__all__ = ["MANIFEST", "WORK", "Corpus", "CorpusError"]
