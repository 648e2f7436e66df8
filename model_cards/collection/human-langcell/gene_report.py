"""Report of the genes and cells of a file that were tokenized."""

from dataclasses import asdict, dataclass, field


RULES = ("ensembl_id", "versioned_id", "symbol", "alias", "cleaned_name")


@dataclass
class GeneReport:
    """Numbers of genes matched and lost, counts covered, and cells cut.

    Parameters
    ----------
    genes
        Genes (columns) of the file.
    matched_by_rule
        Genes matched, by rule: ``ensembl_id``, ``versioned_id`` (``ENSG00000141510.17``), ``symbol``, ``alias``,
        ``cleaned_name`` (``TP53_ENSG00000141510``, ``GRCh38---TP53``, ``HLA.A``).
    unknown
        Genes that are not in the vocabulary.
    ambiguous
        Genes that were left out because their name means several genes of the vocabulary.
    summed
        Genes (columns) that were added to another column of the same gene.
    conflicts
        Genes with different Ensembl ids in two columns of the gene table; the first column is used.
    counts
        Counts of all cells.
    counts_covered
        Counts of all cells on matched genes.
    largest_losses
        The ten lost genes with the most counts, as (name, counts).
    cells
        Cells that were tokenized.
    cells_without_genes
        Cells in which no matched gene is expressed.
    cells_cut
        Cells with more expressed genes than the tokenizer's length.
    tokens_cut
        Genes that were cut from these cells, the least expressed ones.
    counts_in
        Where the counts were found (``X``, ``raw.X``, ``layers['counts']``), and how they were recovered.
    hint
        How to match more genes, if the names show it.
    left_out
        Type of features that are not genes (antibodies, peaks, ...) -> number of features, which count nowhere else.
    note
        A sentence about types of features that have no meaning: these features count as genes.
    cleaned_names
        Examples of names matched by ``cleaned_name``, as (name, gene).
    retired
        Genes (columns) that were matched although the file, or the vocabulary, has a retired Ensembl id of them.
    """

    genes: int = 0
    matched_by_rule: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RULES, 0))
    unknown: int = 0
    ambiguous: int = 0
    summed: int = 0
    conflicts: int = 0
    counts: float = 0.0
    counts_covered: float = 0.0
    largest_losses: list[tuple[str, float]] = field(default_factory=list)
    cells: int = 0
    cells_without_genes: int = 0
    cells_cut: int = 0
    tokens_cut: int = 0
    counts_in: str = ""
    hint: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    note: str = ""
    cleaned_names: list[tuple[str, str]] = field(default_factory=list)
    retired: int = 0

    @property
    def matched(self) -> int:
        """Genes matched by any rule."""
        return sum(self.matched_by_rule.values())

    @property
    def lost(self) -> int:
        """Genes not matched: unknown or ambiguous."""
        return self.unknown + self.ambiguous

    @property
    def coverage(self) -> float:
        """Share of counts on matched genes, between 0 and 1; without counts, share of matched genes."""
        if self.counts:
            return self.counts_covered / self.counts
        return self.matched / self.genes if self.genes else 0.0

    def to_dict(self) -> dict:
        """Return all fields and derived numbers as plain types, for JSON."""
        return asdict(self) | {"matched": self.matched, "lost": self.lost, "coverage": self.coverage}

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Describe in a few lines what was matched, lost, summed and cut."""
        rules = ", ".join(f"{n:,} by {rule.replace('_', ' ')}" for rule, n in self.matched_by_rule.items() if n)
        lines = [
            f"{self.matched:,} of {self.genes:,} genes are in the vocabulary" + (f" ({rules})" if rules else ""),
            f"{self.coverage:.1%} of counts are covered"
            + (f"; counts are in {self.counts_in}" if self.counts_in else ""),
        ]
        if self.cleaned_names:
            taken = ", ".join(f"{name!r} for {gene}" for name, gene in self.cleaned_names)
            lines.append(f"names were cleaned: {taken}")
        if self.left_out:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in self.left_out.items())
            lines.append(f"left out features that are not genes: {kinds}")
        if self.note:
            lines.append(self.note)
        if self.lost:
            lines.append(f"lost: {self.unknown:,} unknown genes, {self.ambiguous:,} ambiguous names")
        if self.largest_losses:
            shares = [f"{name} ({n:,.0f})" for name, n in self.largest_losses]
            lines.append("largest losses in counts: " + ", ".join(shares))
        if self.retired:
            lines.append(f"{self.retired:,} genes were matched by a retired Ensembl id")
        if self.summed:
            lines.append(f"{self.summed:,} duplicate genes were summed")
        if self.conflicts:
            lines.append(f"{self.conflicts:,} genes have two Ensembl ids in the file; the first source was used")
        if self.cells_without_genes:
            lines.append(
                f"{self.cells_without_genes:,} of {self.cells:,} cells express no gene of the model: an unfiltered "
                "file?"
            )
        if self.cells_cut:
            lines.append(f"{self.cells_cut:,} of {self.cells:,} cells were cut, by {self.tokens_cut:,} tokens in all")
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)


__all__ = ["RULES", "GeneReport"]
