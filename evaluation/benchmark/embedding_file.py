"""A file of embeddings in the place of a model: of another tool, or written before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.evaluation.embedding_files import read_embeddings
from cellglot.evaluation.labelled_cells import LabelledCells
from cellglot.outputs import sha256


@dataclass
class EmbeddingFile:
    """Embeddings of the cells of an evaluation.

    Parameters
    ----------
    embedding
        Shape (cells, size), float32.
    facts
        For the record: source, checksum, size, how the cells were compared.
    """

    embedding: np.ndarray
    facts: dict[str, Any]

    @classmethod
    def read(cls, path: Path, data: LabelledCells) -> "EmbeddingFile":
        """Read a file.

        Raises
        ------
        InputError
            If it cannot be read, or its cells are others or in another order than those of `data`.
        """
        embedding, facts = read_embeddings(path, data.cells.names(), data.source)
        known = {"source": str(path), "weights_sha256": sha256(path), "model_class": "embeddings of a file"}
        return cls(embedding, known | {"file": facts, "embedding_size": embedding.shape[1]})


__all__ = ["EmbeddingFile"]
