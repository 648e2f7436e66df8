"""Gene vocabulary: Ensembl ids, token ids, symbols, aliases, and statistics for the normalisation of expression."""

import io
import json
import os
import pickle
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .gene_names import NameCleaner, as_in_r, bare_id, in_mouse_case, numbers_among, species_of, split_id
from .gene_report import RULES, GeneReport


VOCABULARY_FILE = "gene_vocab.json"
STATISTICS_FILE = "gene_stats.safetensors"
STATISTICS = ("median", "mean", "std")

# Usual columns of ids and names in a gene table; the first that is found has priority.
ID_COLUMNS = ("ensembl_id", "ensembl", "gene_ids", "gene_id", "feature_id", "ensembl_gene_id", "ensemblid", "id")
NAME_COLUMNS = ("feature_name", "gene_symbol", "gene_symbols", "symbol", "gene_name", "gene_names", "gene", "name")

_MISSING = ("None", "nan", "<NA>", "NaT")  # texts of missing values
CLEANED = RULES.index("cleaned_name")
_RELEASED = "released dictionaries"
MOST_BYTES = 256 << 20
MOST_UNUSED_IDS = 1 << 22
_SPECIAL = re.compile(r"^<[^<>\s]+>$")


class GeneVocabulary:
    """Genes with token ids, symbols, aliases, and per-gene statistics of a corpus.

    Parameters
    ----------
    token_ids
        Token -> id. Tokens such as ``<pad>`` are special, all others are genes: Ensembl ids without version, or other
        ids. Ids may have gaps.
    symbols
        Gene -> symbol.
    aliases
        Gene -> other names (previous symbols, synonyms).
    medians
        Median of each gene's non-zero counts in the corpus, scaled to a total of 10,000 in each cell: a mapping from
        gene, or an array in the order of `genes`.
    means, stds
        Mean and standard deviation (ddof 0, with zeros) of each gene's log1p of counts, scaled to a total of 10,000.
    metadata
        Source of the vocabulary; saved with it.

    Raises
    ------
    ValueError
        If two tokens share an id, an id is negative, or a median is not positive.

    Attributes
    ----------
    load_human_genes : callable or None
        Returns the table of human genes of cellglot, which knows names that a vocabulary does not have. cellglot sets
        it; None in copies of this file that travel with models.
    """

    load_human_genes: ClassVar[Callable[[], Any] | None] = None

    def __init__(
        self,
        token_ids: Mapping[str, int],
        *,
        symbols: Mapping[str, str] | None = None,
        aliases: Mapping[str, Sequence[str]] | None = None,
        medians: Mapping[str, float] | np.ndarray | None = None,
        means: Mapping[str, float] | np.ndarray | None = None,
        stds: Mapping[str, float] | np.ndarray | None = None,
        metadata: Mapping[str, Any] | None = None,
    ):
        ordered = sorted(((str(t), int(i)) for t, i in token_ids.items()), key=lambda item: item[1])
        self.token_ids: dict[str, int] = dict(ordered)
        ids = [i for _, i in ordered]
        if len(set(ids)) != len(ids):
            shared = next(i for i, j in zip(ids, ids[1:], strict=False) if i == j)
            tokens = [t for t, i in ordered if i == shared]
            raise ValueError(f"tokens {tokens} share the id {shared}: every token needs another id")
        if ids and ids[0] < 0:
            raise ValueError(f"token {ordered[0][0]!r} has the id {ids[0]}: ids start at 0")
        self.tokens: dict[int, str] = {i: t for t, i in ordered}
        self.special_tokens: list[str] = [t for t, _ in ordered if t.startswith("<") and _SPECIAL.match(t)]
        special = set(self.special_tokens)
        self.genes: list[str] = [t for t, _ in ordered if t not in special]
        self.gene_token_ids = np.array([self.token_ids[g] for g in self.genes], dtype=np.int64)
        known = set(self.genes)
        self.symbols = {g: str(s) for g, s in (symbols or {}).items() if g in known}
        self.aliases = {g: sorted({str(a) for a in names}) for g, names in (aliases or {}).items() if g in known}
        self.medians = self._statistic("median", medians)
        self.means = self._statistic("mean", means)
        self.stds = self._statistic("std", stds)
        if self.medians is not None and not (self.medians > 0).all():
            gene = self.genes[int(np.flatnonzero(~(self.medians > 0))[0])]
            raise ValueError(f"the median of gene {gene} is {self.medians[self.genes.index(gene)]}, not positive")
        self.metadata = dict(metadata or {})
        self._lookup: tuple[dict[str, int], dict[str, list[int]], dict[str, list[int]]] | None = None
        self._lookup_in_r: dict[str, list[int]] | None = None
        self._token_of_gene: dict[str, int] | None = None
        self._last_match: tuple | None = None

    def _statistic(self, name: str, values: Mapping[str, float] | np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        if isinstance(values, Mapping):
            missing = [g for g in self.genes if g not in values]
            if missing:
                raise ValueError(f"{len(missing):,} of {len(self.genes):,} genes have no {name}, e.g. {missing[:3]}")
            values = np.array([float(values[g]) for g in self.genes])
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (len(self.genes),):
            raise ValueError(f"{name} has shape {array.shape}, but the vocabulary has {len(self.genes):,} genes")
        wrong = ~np.isfinite(array) | (array < 0 if name == "std" else False)
        if wrong.any():
            gene = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"the {name} of {int(wrong.sum()):,} of {len(array):,} genes is not a finite number, or is negative, "
                f"first that of {self.genes[gene]}: {array[gene]}"
            )
        return array

    def __len__(self) -> int:
        return len(self.token_ids)

    def __contains__(self, token: object) -> bool:
        return token in self.token_ids

    def __eq__(self, other: object) -> bool:
        return type(other).__name__ == type(self).__name__ and self.to_dict() == other.to_dict()  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        statistics = [n for n, v in zip(STATISTICS, self._statistics(), strict=True) if v is not None]
        return f"GeneVocabulary({len(self.genes):,} genes, special tokens {self.special_tokens}, {statistics})"

    def __getstate__(self) -> dict[str, Any]:
        """Return a state without tables for look-ups, which is the same in every process."""
        names = {name: given for name, given in self._names().items() if name != "metadata"}
        return {"names": json.dumps(names), "metadata": self.metadata, "statistics": self._statistics()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        medians, means, stds = state["statistics"]
        given = {"medians": medians, "means": means, "stds": stds, "metadata": state["metadata"]}
        self.__init__(**json.loads(state["names"]), **given)  # type: ignore[misc]

    def _statistics(self) -> tuple[np.ndarray | None, ...]:
        return self.medians, self.means, self.stds

    @property
    def vocab_size(self) -> int:
        """Largest token id plus one: the rows of an embedding."""
        return next(reversed(self.tokens), -1) + 1  # tokens are in the order of their ids

    def symbol(self, gene: str) -> str:
        """Return the gene's symbol, or the gene itself if it has none."""
        return self.symbols.get(gene, gene)

    # ---------------------------------------------------------------- making vocabularies

    @classmethod
    def from_released(
        cls,
        token_dictionary: str | os.PathLike | Mapping[str, int],
        gene_medians: str | os.PathLike | Mapping[str, float] | None = None,
        gene_names: str | os.PathLike | Mapping[str, str] | None = None,
    ) -> "GeneVocabulary":
        """Read the dictionaries that Geneformer, scCello and LangCell publish as pickles.

        Parameters
        ----------
        token_dictionary
            Ensembl id -> token id, with ``<pad>`` and ``<mask>``. A missing ``<cls>`` is added as the last id.
        gene_medians
            Ensembl id -> non-zero median.
        gene_names
            Gene name -> Ensembl id; the first name of a gene is its symbol, others become aliases.

        Raises
        ------
        ValueError
            If a file is not a pickle, or contains other types than plain containers, strings, numbers and NumPy
            scalars.
        """
        tokens = {str(t): int(i) for t, i in read_released_dictionary(token_dictionary).items()}
        tokens.setdefault("<cls>", max(tokens.values(), default=-1) + 1)
        symbols: dict[str, str] = {}
        aliases: dict[str, list[str]] = {}
        for name, gene in (read_released_dictionary(gene_names) if gene_names is not None else {}).items():
            if symbols.setdefault(str(gene), str(name)) != str(name):
                aliases.setdefault(str(gene), []).append(str(name))
        medians = None
        if gene_medians is not None:
            medians = {str(g): float(m) for g, m in read_released_dictionary(gene_medians).items()}
        return cls(tokens, symbols=symbols, aliases=aliases, medians=medians, metadata={"source": _RELEASED})

    @classmethod
    def from_statistics(cls, genes: Sequence[str], **names_and_statistics: Any) -> "GeneVocabulary":
        """Make a vocabulary of genes in this order, without special tokens, which tokenizers add.

        Parameters
        ----------
        genes
            Ensembl ids, or others.
        **names_and_statistics
            Parameters of the class: ``symbols``, ``aliases``, ``medians``, ``means``, ``stds`` (arrays in the order
            of `genes`, or mappings), ``metadata``.

        Raises
        ------
        ValueError
            If a gene occurs twice.
        """
        if len(set(genes)) != len(genes):
            raise ValueError("a gene occurs twice in the vocabulary: sum duplicates first")
        return cls({g: i for i, g in enumerate(genes)}, **names_and_statistics)

    def with_special_tokens(self, first: Sequence[str] = (), last: Sequence[str] = ()) -> "GeneVocabulary":
        """Return the same genes in the same order, with new ids after `first` and before `last` special tokens."""
        names = self._names() | {"token_ids": {t: i for i, t in enumerate([*first, *self.genes, *last])}}
        return GeneVocabulary(**names, medians=self.medians, means=self.means, stds=self.stds)

    # ---------------------------------------------------------------- files

    def to_dict(self) -> dict[str, Any]:
        """Return tokens, names and statistics as plain types."""
        statistics = {
            n: None if v is None else v.tolist() for n, v in zip(STATISTICS, self._statistics(), strict=True)
        }
        return self._names() | {"statistics": statistics}

    def _names(self) -> dict[str, Any]:
        return {
            "token_ids": self.token_ids,
            "symbols": {g: self.symbols[g] for g in self.genes if g in self.symbols},
            "aliases": {g: self.aliases[g] for g in self.genes if self.aliases.get(g)},
            "metadata": self.metadata,
        }

    def save_files(self, vocabulary_file: str | os.PathLike, statistics_file: str | os.PathLike) -> None:
        """Write the two files, each under a temporary name first."""
        text = json.dumps({"format_version": 1} | self._names(), ensure_ascii=False, separators=(",", ":"))
        _replace(vocabulary_file, lambda path: Path(path).write_text(text, encoding="utf-8"))
        arrays = {n: v for n, v in zip(STATISTICS, self._statistics(), strict=True) if v is not None}
        _replace(statistics_file, lambda path: save_file(arrays, path, metadata={"genes": str(len(self.genes))}))

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``gene_vocab.json`` and ``gene_stats.safetensors`` into `folder`, which is made if missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.save_files(Path(folder) / VOCABULARY_FILE, Path(folder) / STATISTICS_FILE)

    @classmethod
    def load_files(
        cls, vocabulary_file: str | os.PathLike, statistics_file: str | os.PathLike | None = None
    ) -> "GeneVocabulary":
        """Read the two files that `save_files` writes.

        Raises
        ------
        ValueError
            If a file is damaged, or the two do not belong together.
        """
        try:
            size = os.path.getsize(vocabulary_file)
            if size > MOST_BYTES:
                raise ValueError(f"it has {size:,} bytes")
            content = json.loads(Path(vocabulary_file).read_text(encoding="utf-8"))
            token_ids = _checked_ids(content["token_ids"])
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{vocabulary_file} is not a gene vocabulary of cellglot ({error!r})") from error
        arrays: dict[str, np.ndarray] = {}
        if statistics_file is not None and os.path.exists(statistics_file):
            try:
                arrays = load_file(statistics_file)
            except (OSError, SafetensorError, TypeError, ValueError) as error:
                raise ValueError(f"{statistics_file} is not a readable safetensors file ({error})") from error
        try:
            return cls(
                token_ids,
                symbols=content.get("symbols"),
                aliases=content.get("aliases"),
                medians=arrays.get("median"),
                means=arrays.get("mean"),
                stds=arrays.get("std"),
                metadata=content.get("metadata"),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{vocabulary_file}, {statistics_file or 'no statistics'}: {error}") from error

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "GeneVocabulary":
        """Read the vocabulary that `save` wrote into `folder`.

        Raises
        ------
        FileNotFoundError
            If `folder` contains no vocabulary.
        """
        if not (Path(folder) / VOCABULARY_FILE).exists():
            raise FileNotFoundError(f"{folder} contains no {VOCABULARY_FILE}")
        return cls.load_files(Path(folder) / VOCABULARY_FILE, Path(folder) / STATISTICS_FILE)

    # ---------------------------------------------------------------- resolving the genes of a file

    def resolve(
        self,
        index: Iterable[str],
        columns: Mapping[str, Iterable[str]] | None = None,
        gene_column: str | None = None,
    ) -> "GeneMatch":
        """Find the genes of a file in the vocabulary.

        Each gene is looked up by Ensembl id, then by versioned id, symbol and alias. Each rule uses the index
        first, then the usual columns of a gene table (``ensembl_id``, ``gene_ids``, ``feature_id``,
        ``feature_name``, ...). Names are compared exactly; a name that is not found is cleaned, if its meaning is
        certain, and looked up again (``TP53_ENSG00000141510``, ``GRCh38---TP53``, ``TBCE-1`` if there is ``TBCE``,
        ``HLA.A``). A gene with an Ensembl id is matched to a gene with one only by the id, or if the id is an alias,
        and never by its symbol (genes share and exchange symbols). A name of several genes is ambiguous and left out.
        With cellglot, its table of human genes knows more symbols, earlier symbols, aliases and retired ids; they
        count as ``symbol`` and ``alias``. Columns of a retired id and of the present one have the same token, and
        tokenizers sum them. Without cellglot, retired ids are known that the vocabulary has as aliases. Vocabularies
        of released dictionaries leave retired ids out, as their models did.

        Parameters
        ----------
        index
            Names of the genes, as in ``adata.var_names``.
        columns
            Columns of the gene table, as in ``adata.var``.
        gene_column
            The only column to look at; ``"index"`` for the index.

        Raises
        ------
        ValueError
            If there is no such column.
        """
        sources = name_sources(index, columns, gene_column)
        if self._last_match is not None and _same_sources(self._last_match[0], sources):
            return self._last_match[1]
        match = self._resolve(sources)
        self._last_match = (sources, match)
        return match

    def _tables(self) -> tuple[dict[str, int], dict[str, list[int]], dict[str, list[int]]]:
        if self._lookup is None:
            ids: dict[str, int] = {}
            names: dict[str, list[int]] = {}
            aliases: dict[str, list[int]] = {}
            for gene, token in zip(self.genes, self.gene_token_ids.tolist(), strict=True):
                ids[gene] = token
                if gene in self.symbols:
                    names.setdefault(self.symbols[gene], []).append(token)
                for alias in self.aliases.get(gene, ()):
                    aliases.setdefault(alias, []).append(token)
            self._lookup = ids, names, aliases
        return self._lookup

    def _resolve(self, sources: list[tuple[str, np.ndarray]]) -> "GeneMatch":
        ids, names, aliases = self._tables()
        n = len(sources[0][1])
        token_ids = np.full(n, -1, dtype=np.int64)
        rules = np.full(n, -1, dtype=np.int8)
        ambiguous = np.zeros(n, dtype=bool)
        retired = np.zeros(n, dtype=bool)
        conflicts = 0
        own_id: list[str | None] = [None] * n
        for _, values in sources:
            for i, name in enumerate(values):
                bare = bare_id(name)
                longer = bare is None and ("ENS" in name or "ens" in name) and name not in ids
                if longer and (split := split_id(name)) is not None:
                    bare = split[0]
                if bare is None and name not in ids:
                    continue
                if own_id[i] is None:
                    own_id[i] = bare
                elif bare is not None and bare != own_id[i]:
                    conflicts += 1
                    continue
                if rules[i] < 0 and (token := ids.get(name)) is not None:
                    token_ids[i], rules[i] = token, 0 if bare is not None else 2
                elif rules[i] < 0 and bare is not None and (token := ids.get(bare)) is not None:
                    token_ids[i], rules[i] = token, CLEANED if longer else 1
        for rule, table in ((2, names), (3, aliases)):
            for _, values in sources:
                for i in np.flatnonzero((rules < 0) & ~ambiguous).tolist():
                    own = own_id[i]
                    if own is not None and rule == 2:
                        continue
                    tokens = table.get(values[i] if own is None else own)
                    if tokens is not None and len(tokens) == 1:
                        token_ids[i], rules[i], retired[i] = tokens[0], rule, own is not None
                    elif tokens is not None:
                        ambiguous[i] = True
        for _, values in sources:
            left = [i for i in np.flatnonzero((rules < 0) & ~ambiguous).tolist() if own_id[i] is None and values[i]]
            self._match_cleaned(values, left, token_ids, rules, ambiguous)
        left = np.flatnonzero((rules < 0) & ~ambiguous).tolist()
        load = type(self).load_human_genes
        if left and load is not None and next(filter(bare_id, self.genes), "ENSG").startswith("ENSG"):
            self._match_human(load(), sources, left, own_id, token_ids, rules, ambiguous, retired)
        match = GeneMatch(token_ids, rules, ambiguous, conflicts, sources[0][1], self._hint(sources, rules))
        match.retired = int(retired.sum())
        match.cleaned_names = self._examples(match, sources)
        return match

    def _match_cleaned(
        self,
        values: np.ndarray,
        rows: list[int],
        token_ids: np.ndarray,
        rules: np.ndarray,
        ambiguous: np.ndarray,
    ) -> None:
        """Clean names that were not found, and look them up again."""
        if not rows:
            return
        cleaner = NameCleaner(values, species_of(self.genes))
        for i in rows:
            name = cleaner.clean(values[i])
            tokens = self._tokens_of(name) if name != values[i] else None
            if tokens is None and "." in name:
                tokens = self._names_in_r().get(name[1:] if name[0] == "X" and name[1:2].isdigit() else name)
            if tokens is not None and len(tokens) == 1:
                token_ids[i], rules[i] = tokens[0], CLEANED
            elif tokens is not None:
                ambiguous[i] = True

    def _match_human(
        self,
        human: Any,
        sources: list[tuple[str, np.ndarray]],
        rows: list[int],
        own_id: list[str | None],
        token_ids: np.ndarray,
        rules: np.ndarray,
        ambiguous: np.ndarray,
        retired: np.ndarray,
    ) -> None:
        """Look up names and ids that the vocabulary does not have in the table of human genes."""
        tokens = self._tokens_by_gene(human)
        by_retired = {} if self._as_released() else self._tokens_by_present_id(human)
        for i in rows:
            own = own_id[i]
            if own is not None:
                if (token := tokens.get(own)) is None and not self._as_released():
                    present = human.present_id(own) or own
                    token = tokens.get(present, by_retired.get(present))
                    retired[i] = token is not None
                if token is not None:
                    token_ids[i], rules[i] = token, 3
                continue
            name, genes = next(((v[i], g) for _, v in sources if v[i] and (g := human.find(v[i]))), ("", ()))
            if len(genes) > 1:
                ambiguous[i] = True
            elif genes and (token := tokens.get(genes[0])) is not None:
                token_ids[i], rules[i] = token, 2 if name == human.symbol(genes[0]) else 3

    def _tokens_by_gene(self, human: Any) -> dict[str, int]:
        """Return Ensembl id -> token, also of genes that the vocabulary names by a symbol."""
        if self._token_of_gene is None:
            ids = self._tables()[0]
            named: dict[str, list[int]] = {}
            for gene, token in ids.items():
                if bare_id(gene) is None and len(genes := human.find(gene)) == 1:
                    named.setdefault(genes[0], []).append(token)
            self._token_of_gene = {gene: found[0] for gene, found in named.items() if len(found) == 1} | ids
        return self._token_of_gene

    def _as_released(self) -> bool:
        """Whether the vocabulary is a released dictionary, whose models never saw counts of retired ids."""
        return self.metadata.get("source") == _RELEASED

    def _tokens_by_present_id(self, human: Any) -> dict[str, int]:
        """Return the present Ensembl ids of genes that the vocabulary has by one retired id alone -> token."""
        ids = self._tables()[0]
        found: dict[str, list[int]] = {}
        for gene, token in ids.items():
            if (present := human.present_id(gene)) is not None and present not in ids:
                found.setdefault(present, []).append(token)
        return {gene: tokens[0] for gene, tokens in found.items() if len(tokens) == 1}

    def _tokens_of(self, name: str) -> list[int] | None:
        """Return the tokens of genes with this id or name, or None."""
        ids, names, aliases = self._tables()
        token = ids.get(name, ids.get(bare_id(name) or name))
        return [token] if token is not None else names.get(name, aliases.get(name))

    def _names_in_r(self) -> dict[str, list[int]]:
        """Return names that R changes (with dashes, ...), as R writes them -> tokens."""
        if self._lookup_in_r is None:
            ids, names, aliases = self._tables()
            found: dict[str, set[int]] = {}
            for table in ({g: [t] for g, t in ids.items()}, names, aliases):
                for name, tokens in table.items():
                    if (key := as_in_r(name)) != name:
                        found.setdefault(key, set()).update(tokens)
            self._lookup_in_r = {key: sorted(tokens) for key, tokens in found.items()}
        return self._lookup_in_r

    def _examples(self, match: "GeneMatch", sources: list[tuple[str, np.ndarray]]) -> list[tuple[str, str]]:
        """Return some names that were cleaned, and their genes."""
        rows = np.flatnonzero(match.rules == CLEANED)[:3].tolist()
        return [(str(match.names[i] or sources[-1][1][i]), self.tokens[int(match.token_ids[i])]) for i in rows]

    def _hint(self, sources: list[tuple[str, np.ndarray]], rules: np.ndarray) -> str:
        lost = [str(n) for n in sources[0][1][rules < 0]]
        if len(lost) < max(10, len(rules) // 10):
            return ""
        share = max(len(lost) // 2, 1)
        if sum(n.startswith("ENSMUSG") for n in lost) >= share:
            return "the lost genes have mouse ids (ENSMUSG...): read the file with --species mouse (species='mouse')"
        if in_mouse_case(lost):
            return "the lost genes are named as in mouse (Cd3e): read the file with --species mouse (species='mouse')"
        if sum(n.startswith(("ENST", "NM_")) for n in lost) >= share:
            return "the lost names are transcripts (ENST...): sum them to genes first"
        if numbers_among(lost).sum() >= share:
            return "the lost names are numbers: name the column of Ensembl ids, as in gene_column='gene_ids'"
        if not self.symbols and not any(map(bare_id, lost[:100])) and any(map(bare_id, self.genes)):
            return (
                "the file has gene symbols, but the vocabulary has none: name the column of Ensembl ids, as in "
                "gene_column='gene_ids', or use a vocabulary with symbols"
            )
        return ""


@dataclass
class GeneMatch:
    """The genes of a file in a vocabulary.

    Parameters
    ----------
    token_ids
        Token id of each gene (column) of the file, or -1; shape (genes,).
    rules
        Index in `cellglot.tokenization.gene_report.RULES` of the rule that matched each gene, or -1.
    ambiguous
        Flags of genes that were left out because their name means several genes.
    conflicts
        Number of genes with different Ensembl ids in two columns.
    names
        Names of the genes in the file.
    hint
        How to match more genes, if the names show it.
    cleaned_names
        Examples of names that were cleaned, with their genes.
    retired
        Number of genes that were found although the file, or the vocabulary, has a retired Ensembl id of them.
    """

    token_ids: np.ndarray
    rules: np.ndarray
    ambiguous: np.ndarray
    conflicts: int
    names: np.ndarray
    hint: str
    cleaned_names: list[tuple[str, str]] = field(default_factory=list)
    retired: int = 0

    @property
    def known(self) -> np.ndarray:
        """Whether each gene has a token, shape (genes,)."""
        return self.token_ids >= 0

    def duplicated(self) -> np.ndarray:
        """Whether each gene shares its token with another column, shape (genes,)."""
        tokens, first, counts = np.unique(self.token_ids, return_inverse=True, return_counts=True)
        return (counts[first] > 1) & self.known

    def report(self) -> GeneReport:
        """Return a report of genes matched and lost, without counts and cells."""
        known = self.known
        return GeneReport(
            genes=len(known),
            matched_by_rule={rule: int((self.rules == r).sum()) for r, rule in enumerate(RULES)},
            unknown=int((~known & ~self.ambiguous).sum()),
            ambiguous=int(self.ambiguous.sum()),
            summed=int(known.sum() - len(np.unique(self.token_ids[known]))),
            conflicts=self.conflicts,
            retired=self.retired,
            hint=self.hint,
            cleaned_names=list(self.cleaned_names),
        )


def name_sources(
    index: Iterable[str], columns: Mapping[str, Iterable[str]] | None, gene_column: str | None = None
) -> list[tuple[str, np.ndarray]]:
    """Return the (column, names) pairs in which a file's genes are looked up, in this order."""
    sources = [("index", _text(index))]
    present = {} if columns is None else {str(c): c for c in columns}
    if gene_column is not None and gene_column != "index":
        if gene_column not in present:
            raise ValueError(f"no column {gene_column!r} among the genes' columns {sorted(present)}")
        return [(gene_column, _text(columns[present[gene_column]]))]  # type: ignore[index]
    if gene_column is None:
        lower = {column_key(c): c for c in present}
        for usual in (*ID_COLUMNS, *NAME_COLUMNS):
            if usual in lower:
                sources.append((lower[usual], _text(columns[present[lower[usual]]])))  # type: ignore[index]
    return sources


def is_usual(column: str) -> bool:
    """Whether a column is used without being named."""
    return column_key(column) in (*ID_COLUMNS, *NAME_COLUMNS)


def column_key(column: str) -> str:
    """Return the name of a column as in `ID_COLUMNS` and `NAME_COLUMNS`."""
    return column.lower().replace(" ", "_").replace("-", "_")


def _text(values: Iterable[Any]) -> np.ndarray:
    """Return names as an object array of stripped strings; missing ones become empty."""
    values = list(values)
    try:
        texts = list(map(str.strip, values))  # three times as fast if all are strings
    except TypeError:
        texts = [v.strip() if isinstance(v, str) else "" if str(v) in _MISSING else str(v).strip() for v in values]
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array


def _same_sources(a: list[tuple[str, np.ndarray]], b: list[tuple[str, np.ndarray]]) -> bool:
    return [n for n, _ in a] == [n for n, _ in b] and all(
        len(x) == len(y) and bool((x == y).all()) for (_, x), (_, y) in zip(a, b, strict=True)
    )


def _replace(path: str | os.PathLike, write: Any) -> None:
    """Write a file atomically, with permissions by the umask (safetensors writes files for their owner only)."""
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.part")
    open(temporary, "xb").close()
    try:
        permissions = stat.S_IMODE(os.stat(temporary).st_mode)
        write(temporary)
        os.chmod(temporary, permissions)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# -------------------------------------------------------------------- released pickles


def _checked_ids(token_ids: Any) -> dict[str, int]:
    """Refuse ids that are not whole numbers, or too large for tables of them."""
    if not isinstance(token_ids, dict) or not all(type(i) is int for i in token_ids.values()):
        raise ValueError("token_ids must map each token to a whole number")
    if token_ids and max(token_ids.values()) > 8 * len(token_ids) + MOST_UNUSED_IDS:
        raise ValueError(f"the id {max(token_ids.values()):,} is too large for {len(token_ids):,} tokens")
    return token_ids


# Errors that damaged pickles raise.
UNREADABLE = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


class _PickledDtype:
    """Replaces ``numpy.dtype`` during unpickling: keeps the type code and runs no code of NumPy."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


def _pickled_scalar(dtype: _PickledDtype, content: bytes) -> float | int | bool:
    if not isinstance(dtype, _PickledDtype) or not re.fullmatch(r"[biuf][1248]", dtype.code):
        raise pickle.UnpicklingError(f"a NumPy scalar of type {getattr(dtype, 'code', dtype)!r}, not a number")
    order = dtype.order if dtype.order in "<>" else "="
    return np.frombuffer(content, dtype=np.dtype(order + dtype.code), count=1)[0].item()


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Read bytes of pickles of protocol 2 and older."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Reads dict, list, tuple, set, str, numbers and NumPy scalars; refuses every other name."""

    _ADMITTED = {
        ("_codecs", "encode"): _latin1_bytes,
        ("numpy", "dtype"): _PickledDtype,
        ("numpy.core.multiarray", "scalar"): _pickled_scalar,
        ("numpy._core.multiarray", "scalar"): _pickled_scalar,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a supported name."""
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is unsupported")
        return self._ADMITTED[module, name]


def read_released_dictionary(source: str | os.PathLike | Mapping) -> Mapping:
    """Read a pickle of plain containers, strings, numbers and NumPy scalars."""
    if isinstance(source, Mapping):
        return source
    content = Path(source).read_bytes()
    try:
        dictionary = _PlainUnpickler(io.BytesIO(content)).load()
    except UNREADABLE as error:
        raise ValueError(
            f"{source} cannot be read: {error}. Only pickles of dictionaries of strings and numbers are supported"
        ) from error
    if not isinstance(dictionary, dict):
        raise ValueError(f"{source} contains a {type(dictionary).__name__}, not a dictionary")
    return dictionary


__all__ = ["STATISTICS_FILE", "VOCABULARY_FILE", "GeneMatch", "GeneVocabulary", "bare_id"]
