"""Structures of drugs: canonical SMILES, Morgan fingerprints and their similarity, by RDKit."""

from collections.abc import Iterable
from typing import Any

import numpy as np


BITS, RADIUS = 2048, 2
INSTALL = "drug structures need RDKit: install it by pip install 'cellglot[chemistry]'"


def read_structures(smiles: Iterable[str]) -> dict[str, str | None]:
    """Return the canonical SMILES of each SMILES, None where RDKit cannot read it.

    Raises
    ------
    ImportError
        If RDKit is not installed.
    """
    chem = _rdkit()
    found: dict[str, str | None] = {}
    for text in set(smiles):
        molecule = chem.MolFromSmiles(text)
        found[text] = None if molecule is None or not molecule.GetNumAtoms() else chem.MolToSmiles(molecule)
    return found


def morgan_fingerprints(smiles: Iterable[str]) -> np.ndarray:
    """Return the Morgan fingerprints (radius 2, 2,048 bits) of readable structures, shape (drugs, 2048), float32."""
    chem = _rdkit()
    from rdkit.Chem import rdFingerprintGenerator

    made = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    return np.array([made.GetFingerprintAsNumPy(chem.MolFromSmiles(s)) for s in smiles], dtype=np.float32)


def tanimoto_similarity(fingerprints: np.ndarray) -> np.ndarray:
    """Return the Tanimoto similarity of all pairs of fingerprints, shape (drugs, drugs), float64.

    Parameters
    ----------
    fingerprints
        Bits, shape (drugs, bits).
    """
    bits = np.asarray(fingerprints, dtype=np.float64)
    shared, sizes = bits @ bits.T, bits.sum(axis=1)
    return shared / np.maximum(sizes[:, None] + sizes[None] - shared, 1)


def _rdkit() -> Any:
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise ImportError(INSTALL) from error
    rdBase.DisableLog("rdApp.*")  # it writes a paragraph for every SMILES that it cannot read; we name them
    return Chem


__all__ = ["morgan_fingerprints", "read_structures", "tanimoto_similarity"]
