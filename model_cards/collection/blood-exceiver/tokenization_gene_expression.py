"""Base of the gene tokenizers: turn cells into padded tokens, and report what was matched."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedTokenizer
from transformers.tokenization_python import Trie
from transformers.tokenization_utils_base import AddedToken, BatchEncoding
from transformers.utils import logging

from .count_matrix import CountMatrix, CountRows, is_named_cell, open_counts
from .gene_encoding import GeneColumns, TokenRows, blocks
from .gene_names import described_columns, listed_names
from .gene_report import GeneReport
from .gene_vocabulary import STATISTICS_FILE, VOCABULARY_FILE, GeneVocabulary
from .token_batches import batches_of_similar_length
from .token_padding import FieldPadding, as_columns, kind_of_tensors


logger = logging.get_logger(__name__)

DEFAULT_MIN_COVERAGE = 0.5

# Counts in memory at once, 8 bytes each, in addition to a model's batches.
VALUES_READ_AHEAD = 1 << 20

# From this number of counts in a process, compiled functions save more time than they take to load.
LARGE_WORK = 1 << 27

# transformers uses lengths above this one for a tokenizer without a length.
NO_LENGTH = 1 << 40


class GeneCoverageError(ValueError):
    """Too few of the counts, or none of the genes, are in the vocabulary."""


class Calls:
    """Results of a tokenizer's calls, left out of pickles: `datasets` then recognises a tokenizer after a call."""

    def __init__(self) -> None:
        self.report: GeneReport | None = None
        self.warnings: dict[str, bool] = {}

    def __reduce__(self) -> tuple:
        return Calls, ()


class GeneExpressionTokenizer(PreTrainedTokenizer):
    """Base of the tokenizers that turn cells into gene tokens.

    Subclasses define how counts become tokens in `_encode_block`.

    Parameters
    ----------
    vocab_file, stats_file
        ``gene_vocab.json`` and ``gene_stats.safetensors``.
    vocabulary
        The vocabulary, instead of its files.
    min_coverage
        Least share of counts on genes of the vocabulary; a call fails if the cells have less.

    Attributes
    ----------
    vocabulary : GeneVocabulary
        Genes, names and statistics.
    last_report : GeneReport or None
        Report of the last call.
    load_compiled : callable or None
        Loads compiled functions (`GeneColumns.compiled`), used from `LARGE_WORK` counts on. cellglot sets it; it is
        None in copies of this file in model repositories, which use NumPy.
    counts_encoded : int
        Number of counts that all tokenizers of this process have encoded.
    """

    load_compiled: ClassVar[Callable[[], Any] | None] = None
    counts_encoded: ClassVar[int] = 0

    _auto_class = "AutoTokenizer"  # as register_for_auto_class sets it, but without importing PyTorch
    vocab_files_names = {"vocab_file": VOCABULARY_FILE, "stats_file": STATISTICS_FILE}
    model_input_names = ["input_ids", "attention_mask"]
    required_statistics: Sequence[str] = ()
    order_matters: ClassVar[bool] = False  # whether models use the place of a token
    special_tokens_first: Sequence[str] = ()
    special_tokens_last: Sequence[str] = ()

    def __init_subclass__(cls, **kwargs: Any):
        """Set the module of a folder's code as an attribute of its package: `dill` searches the class there."""
        super().__init_subclass__(**kwargs)
        package, _, name = cls.__module__.rpartition(".")
        if package in sys.modules and cls.__module__ in sys.modules:
            setattr(sys.modules[package], name, sys.modules[cls.__module__])

    def __init__(
        self,
        vocab_file: str | os.PathLike | None = None,
        stats_file: str | os.PathLike | None = None,
        *,
        vocabulary: GeneVocabulary | None = None,
        min_coverage: float = DEFAULT_MIN_COVERAGE,
        **kwargs: Any,
    ):
        if vocabulary is None:
            if vocab_file is None:
                raise ValueError(f"a gene tokenizer needs a vocabulary: vocabulary=... or the file {VOCABULARY_FILE}")
            vocabulary = GeneVocabulary.load_files(vocab_file, stats_file)
        for name in self.required_statistics:
            if getattr(vocabulary, name) is None and "gene_order" not in vocabulary.metadata:
                raise ValueError(
                    f"{type(self).__name__} needs the {name} of the genes, but the vocabulary has none: is "
                    f"{STATISTICS_FILE} in the folder of {VOCABULARY_FILE}?"
                )
        check_settings({"min_coverage": min_coverage, **kwargs})
        self.vocabulary = self.number_tokens(vocabulary)
        self.min_coverage = min_coverage
        self._calls = Calls()
        super().__init__(min_coverage=min_coverage, **kwargs)

    @classmethod
    def number_tokens(cls, vocabulary: GeneVocabulary) -> GeneVocabulary:
        """Add the special tokens that this tokenizer needs, if some are missing."""
        needed = [*cls.special_tokens_first, *cls.special_tokens_last]
        if all(token in vocabulary for token in needed):
            return vocabulary
        return vocabulary.with_special_tokens(cls.special_tokens_first, cls.special_tokens_last)

    @classmethod
    def from_vocabulary(cls, vocabulary: GeneVocabulary, **options: Any) -> "GeneExpressionTokenizer":
        """Make a tokenizer from a vocabulary.

        Parameters
        ----------
        vocabulary
            Genes with the statistics that this tokenizer needs. Missing special tokens are added.
        **options
            Options of the tokenizer.
        """
        return cls(vocabulary=vocabulary, **options)

    # ---------------------------------------------------------------- state

    @property
    def last_report(self) -> GeneReport | None:
        """Report of the last call; None before the first call, and in a copy."""
        return self._calls.report

    @last_report.setter
    def last_report(self, report: GeneReport | None) -> None:
        self._calls.report = report

    @property
    def deprecation_warnings(self) -> dict[str, bool]:
        """Warnings that were shown; collators of transformers write them here."""
        return self._calls.warnings

    @deprecation_warnings.setter
    def deprecation_warnings(self, given: dict[str, bool]) -> None:
        self._calls.warnings = given

    def __getstate__(self) -> dict[str, Any]:
        """Return a state that is the same in every process, and before and after a call."""
        return {name: value for name, value in self.__dict__.items() if name != "tokens_trie"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        if "tokens_trie" not in state:  # a set, whose order differs between processes
            self.tokens_trie = Trie()
            self._update_trie()

    # ---------------------------------------------------------------- tokens and ids

    @property
    def vocab_size(self) -> int:
        """Largest id of the vocabulary plus one, without added tokens."""
        return self.vocabulary.vocab_size

    def __len__(self) -> int:
        """Return the largest token id plus one, including added tokens: the rows of a model's embedding."""
        return max([self.vocabulary.vocab_size, *(number + 1 for number in self._added_tokens_decoder)])

    def get_vocab(self) -> dict[str, int]:
        """Return token -> id: genes by Ensembl id, then added tokens."""
        return self.vocabulary.token_ids | self.added_tokens_encoder

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Add tokens after the last id, without changing the vocabulary of genes; return the number of new ids."""
        before = len(self)
        genes = []
        for given in new_tokens or ():
            if not isinstance(given, str | AddedToken):
                raise TypeError(f"the token {given!r} is of the type {type(given).__name__}, not text")
            text = str(given)
            if not text or text in self._added_tokens_encoder:
                continue
            if any(sign.isspace() for sign in text):
                raise ValueError(f"the token {text!r} contains blanks, which separate decoded tokens")
            is_special = special_tokens or text in self.all_special_tokens or getattr(given, "special", False)
            number = self.vocabulary.token_ids.get(text, len(self))
            token = AddedToken(text, normalized=False, special=is_special)
            self._added_tokens_decoder[number] = token
            self._added_tokens_encoder[text] = number
            if is_special and text not in self.all_special_tokens:
                self._extra_special_tokens.append(token)
            elif not is_special and text not in self.vocabulary and not text.startswith("<"):
                genes.append(text)
        if genes:
            logger.warning(
                f"{len(genes):,} added tokens, such as {genes[0]!r}, are not genes: no cell has them, because a gene "
                "needs statistics. Add genes to a GeneVocabulary"
            )
        self._update_trie()
        self._update_total_vocab_size()
        return len(self) - before

    def _update_total_vocab_size(self) -> None:
        self.total_vocab_size = len(self)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return text.split()

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Flag the tokens of a cell that are not genes; only `token_ids_0` is used."""
        special = set(self.all_special_ids)
        return [int(int(token) in special) for token in token_ids_0]

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self.vocabulary:
            raise KeyError(
                f"{token!r} is not in the vocabulary of {len(self.vocabulary.genes):,} genes; pass Ensembl ids, "
                f"e.g. {self.vocabulary.genes[0]!r}"
            )
        return self.vocabulary.token_ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        if index not in self.vocabulary.tokens:
            raise KeyError(f"no token has the id {index}; ids are below {self.vocabulary.vocab_size:,}")
        return self.vocabulary.tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join the symbols of genes (or their Ensembl ids, without a symbol) with spaces."""
        return " ".join(self.vocabulary.symbol(token) for token in tokens)

    def find_genes(self, genes: Sequence[str]) -> np.ndarray:
        """Return the token ids of genes by Ensembl id, symbol or alias, shape (genes,)."""
        match = self.vocabulary.resolve(genes)
        if not match.known.all():
            lost = [str(g) for g in match.names[~match.known]]
            raise KeyError(
                f"{len(lost):,} of {len(lost) + int(match.known.sum()):,} genes are not in the vocabulary, or their "
                f"names are ambiguous: {', '.join(lost[:10])}{', ...' if len(lost) > 10 else ''}"
            )
        return match.token_ids

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write ``gene_vocab.json`` and ``gene_stats.safetensors``."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        files = [str(Path(save_directory) / f"{prefix}{name}") for name in (VOCABULARY_FILE, STATISTICS_FILE)]
        self.vocabulary.save_files(*files)
        return tuple(files)

    # ---------------------------------------------------------------- cells to tokens

    def gene_columns(self, counts: CountMatrix, gene_column: str | None = None) -> GeneColumns:
        """Find the genes of an opened matrix in the vocabulary."""
        match = self.vocabulary.resolve(counts.index, counts.columns, gene_column)
        columns = GeneColumns(match)
        load_compiled = type(self).load_compiled
        if load_compiled is not None and self.counts_encoded + (counts.n_stored or 0) >= LARGE_WORK:
            try:
                columns.compiled = load_compiled()
            except ImportError as error:  # e.g. of a Numba that does not support a newer NumPy
                logger.warning_once(f"compiled loops do not load, the slower ones of NumPy are used: {error}")
        if not columns.known.any():
            raise GeneCoverageError(self._coverage_message(columns.match.report(), "no gene of these cells", counts))
        return columns

    def measured_genes(
        self, cells: Any, genes: Sequence[str] | None = None, gene_column: str | None = None
    ) -> np.ndarray:
        """Tell which tokens are genes that cells were measured for, bool, shape (vocabulary,).

        Parameters
        ----------
        cells, genes, gene_column
            As for calls. Cells as ``{gene: count}`` leave out genes without counts: for them it is every gene.
        """
        counts, measured = open_counts(cells, genes), np.zeros(self.vocab_size, dtype=bool)
        ids = self.vocabulary.gene_token_ids
        if counts.names_all_measured:
            match = self.vocabulary.resolve(counts.index, counts.columns, gene_column)
            ids = match.token_ids[match.known]
        measured[ids] = True
        return measured

    def encode_rows(self, rows: CountRows, columns: GeneColumns, max_length: int | None = None) -> Iterator[TokenRows]:
        """Yield the tokens of runs of cells; lost counts are added to `columns`, which are from `gene_columns`."""
        GeneExpressionTokenizer.counts_encoded += len(rows.data)
        for block in blocks(rows) if columns.compiled is None else [rows]:
            yield self._encode_block(block, columns, max_length)

    def _encode_block(self, rows: CountRows, columns: GeneColumns, max_length: int | None) -> TokenRows:
        raise TypeError(f"{type(self).__name__} does not define _encode_block: how counts become tokens")

    def iterate(
        self,
        counts: CountMatrix,
        columns: GeneColumns,
        report: GeneReport,
        max_length: int | None = None,
        max_values: int = 1 << 22,
    ) -> Iterator[TokenRows]:
        """Tokenize an opened matrix in chunks of at most `max_values` counts, and fill `report`."""
        for _, rows in counts.chunks(max_values):
            for encoded in self.encode_rows(rows, columns, max_length):
                self.count_cells(report, encoded)
                yield encoded
        report.counts = columns.counts_seen
        report.counts_covered = columns.counts_seen - float(columns.counts_lost.sum())
        report.largest_losses = columns.largest_losses()
        report.counts_in = counts.described_location
        report.left_out, report.note = dict(counts.left_out), counts.note

    def count_cells(self, report: GeneReport, encoded: TokenRows) -> None:
        """Add the cells of a chunk to a report."""
        special = 1 if self._first_token_id() is not None else 0
        report.cells += len(encoded)
        report.cells_without_genes += int((np.diff(encoded.indptr) <= special).sum())
        report.cells_cut += int((encoded.tokens_cut > 0).sum())
        report.tokens_cut += int(encoded.tokens_cut.sum())

    def _first_token_id(self) -> int | None:
        """Return the id of the token before a cell's genes, or None."""
        return None

    def check_coverage(
        self, report: GeneReport, min_coverage: float | None = None, counts: CountMatrix | None = None
    ) -> None:
        """Raise `GeneCoverageError` if too few counts are covered; `counts` adds their source to the message."""
        threshold = self.min_coverage if min_coverage is None else min_coverage
        if report.coverage < threshold:
            covered = f"{report.coverage:.1%} of these cells' counts (below {threshold:.0%})"
            raise GeneCoverageError(self._coverage_message(report, covered, counts))

    def _coverage_message(self, report: GeneReport, covered: str, counts: CountMatrix | None) -> str:
        lost = f"{report.lost:,} of {report.genes:,} genes ({report.lost / max(report.genes, 1):.0%})"
        hint = f"{report.hint[0].upper()}{report.hint[1:]}. " if report.hint else ""
        source = examples = columns = ""
        if counts is not None:
            source = f"{counts.source}: " if counts.source else ""
            names = [name for name, _ in report.largest_losses[:4]] or [str(name) for name in list(counts.index)[:4]]
            examples = f", e.g. {listed_names(names)}"
            listed = described_columns(counts.columns)
            columns = f" (there are {listed})" if listed else ""
        gene = self.vocabulary.genes[0] if self.vocabulary.genes else ""
        symbol = f" or {self.vocabulary.symbols[gene]!r}" if gene in self.vocabulary.symbols else ""
        return (
            f"{source}the vocabulary covers {covered}: {lost} are not in it{examples}. It names genes as in {gene!r}"
            f"{symbol}. {hint}Name the column of the genes by gene_column=...{columns}, or pass a smaller "
            "min_coverage if this is intended."
        )

    # For pipelines, whose files do not import this one.
    open_counts = staticmethod(open_counts)
    is_named_cell = staticmethod(is_named_cell)

    def batches(
        self,
        cells: Any,
        batch_size: int = 64,
        report: GeneReport | None = None,
        *,
        genes: Sequence[str] | None = None,
        layer: str | None = None,
        gene_column: str | None = None,
        min_coverage: float | None = None,
        return_tensors: str = "pt",
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Tokenize cells into padded batches of similar length, in bounded memory.

        `report`, which is also `last_report`, is filled for all cells.

        Parameters
        ----------
        return_tensors
            ``"pt"`` for tensors of PyTorch, ``"np"`` for arrays of numpy; then PyTorch is not imported.

        Yields
        ------
        cells : numpy.ndarray
            Numbers of the batch's cells.
        batch : dict
            Inputs of the model.
        """
        counts = open_counts(cells, genes, layer)
        columns = self.gene_columns(counts, gene_column)
        report = GeneReport() if report is None else report
        report.__dict__.update(columns.match.report().__dict__)
        self.last_report = report
        parts = self.iterate(counts, columns, report, max_values=VALUES_READ_AHEAD)
        for numbers, arrays in batches_of_similar_length(parts, batch_size, self._padded):
            yield numbers, _in_tensors(arrays, return_tensors).data
        self.check_coverage(report, min_coverage, counts)

    def __call__(
        self,
        cells: Any,
        *,
        genes: Sequence[str] | None = None,
        layer: str | None = None,
        gene_column: str | None = None,
        min_coverage: float | None = None,
        max_length: int | None = None,
        truncation: bool | str | None = None,
        padding: bool | str | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Tokenize cells.

        Parameters
        ----------
        cells
            Raw counts: AnnData (in memory or backed), a matrix of cells x genes (NumPy, any SciPy sparse format, a
            tensor), one cell as a vector, ``{gene: count}`` (or a series) or a list of these, a data frame with genes
            as columns, or an opened file. In AnnData they are searched in X, raw.X and the usual layers.
        genes
            Names of the columns, if `cells` has none.
        layer
            ``"X"``, ``"raw.X"`` or a layer's name: the only place to look at.
        gene_column
            Column of ``adata.var`` with ids or names of genes, ``"index"`` for the index.
        min_coverage
            Least share of covered counts; by default the tokenizer's.
        max_length
            Most tokens of a cell; by default the tokenizer's.
        truncation
            True, the default, cuts cells with more tokens; False leaves them whole.
        padding
            True pads to the longest cell, ``"max_length"`` to `max_length`, False not at all; by default True with
            `return_tensors`, else False.
        pad_to_multiple_of
            Round the padded length up.
        return_tensors
            ``"pt"`` or ``"np"``; by default lists.

        Returns
        -------
        transformers.BatchEncoding
            Fields in `model_input_names`, each of shape (cells, tokens).

        Raises
        ------
        NotCountsError
            If the values are not raw counts and counts cannot be recovered exactly.
        GeneCoverageError
            If no gene, or too small a share of counts, is in the vocabulary.
        ValueError
            If tensors are asked for, and cells of different lengths are not padded.
        """
        if kwargs:
            raise TypeError(f"{type(self).__name__} does not take {', '.join(sorted(kwargs))}")
        return_tensors = getattr(return_tensors, "value", return_tensors)
        _check_tensors(return_tensors)
        cut_to = max_length if _truncates(truncation) else NO_LENGTH
        counts = open_counts(cells, genes, layer)
        columns = self.gene_columns(counts, gene_column)
        report = columns.match.report()
        encoded = list(self.iterate(counts, columns, report, cut_to))
        self.last_report = report
        self.check_coverage(report, min_coverage, counts)
        if report.cells_cut or report.cells_without_genes:
            logger.warning_once(report.summary())
        padding = return_tensors is not None if padding is None else padding
        lengths = [length for rows in encoded for length in np.diff(rows.indptr).tolist()]
        width = self._width(padding, max(lengths, default=0), max_length, pad_to_multiple_of)
        if width is None and return_tensors is None:
            return BatchEncoding(self._ragged(encoded))
        if width is None and len(set(lengths)) > 1:
            raise ValueError("tensors need padding: padding=True or 'max_length'")
        width = max(lengths, default=0) if width is None else width
        if max(lengths, default=0) > width:
            raise ValueError(
                f"a cell has {max(lengths):,} tokens, more than the {width:,} to pad to: leave truncation=False out"
            )
        arrays = self._padded(encoded, width, self._pads_on_left())
        if return_tensors is None:
            return BatchEncoding({name: array.tolist() for name, array in arrays.items()})
        return _in_tensors(arrays, return_tensors)

    # ---------------------------------------------------------------- padding

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad all fields of tokenized cells; transformers' collators call it.

        Parameters
        ----------
        encoded_inputs
            The result of a call, one cell of it, or a list of cells; lists, arrays or tensors, with other fields such
            as labels. A field with an entry for each token of a cell, or for each gene of ``query_ids``, is padded
            with them (`FieldPadding`); other fields are not changed.
        padding
            True pads to the longest cell, ``"max_length"`` to `max_length`, False not at all.
        max_length
            For ``"max_length"``; by default the tokenizer's length.
        pad_to_multiple_of
            Round the padded length up.
        padding_side
            ``"right"`` or ``"left"``; by default the tokenizer's.
        return_attention_mask
            Add a missing ``attention_mask``; by default if it is in `model_input_names`.
        return_tensors
            ``"pt"`` or ``"np"``; by default the kind of `encoded_inputs`.

        Returns
        -------
        transformers.BatchEncoding
            All fields; tokens have shape (cells, tokens), or (tokens,) for one cell.
        """
        columns, single = as_columns(encoded_inputs)
        return_tensors = kind_of_tensors(columns) if return_tensors is None else getattr(
            return_tensors, "value", return_tensors
        )  # fmt: skip
        _check_tensors(return_tensors)
        wanted = "attention_mask" in self.model_input_names if return_attention_mask is None else return_attention_mask
        if wanted and "attention_mask" not in columns:
            columns["attention_mask"] = [[1] * len(tokens) for tokens in columns["input_ids"]]
        fields = FieldPadding(columns, self.pad_token_id, self._pads_on_left(padding_side))
        width = self._width(padding, fields.longest(), max_length, pad_to_multiple_of)
        if return_tensors is None:
            lists = fields.as_lists(width)
            return BatchEncoding({name: rows[0] for name, rows in lists.items()} if single else lists)
        arrays = fields.as_arrays(fields.longest() if width is None else width)
        if width is None and len(set(fields.lengths["input_ids"] or ())) > 1:
            raise ValueError("tensors need padding: padding=True or 'max_length'")
        return _in_tensors({name: array[0] for name, array in arrays.items()} if single else arrays, return_tensors)

    def _width(self, padding: Any, longest: int, max_length: int | None, multiple: int | None) -> int | None:
        """Return the number of tokens to pad to; None for no padding."""
        padding = getattr(padding, "value", padding)
        if padding is False or padding is None or padding == "do_not_pad":
            return None
        if padding not in (True, "longest", "max_length"):
            raise ValueError(f"padding={padding!r}: it is True, 'longest', 'max_length' or False")
        width = longest
        if padding == "max_length":
            width = self.model_max_length if max_length is None else max_length
            if width >= NO_LENGTH:
                raise ValueError(f"padding='max_length' needs max_length=...: {type(self).__name__} has no length")
        return width + -width % multiple if multiple else width

    def _pads_on_left(self, side: str | None = None) -> bool:
        side = self.padding_side if side is None else side
        check_choice("padding_side", side, ("right", "left"))
        if side == "left" and self.order_matters:
            logger.warning_once(
                "padding_side='left': models of these tokens count places from the first token and need padding "
                "on the right"
            )
        return side == "left"

    def _ragged(self, encoded: list[TokenRows]) -> dict[str, list]:
        # Shared Python integers as objects: five times as fast as new ones.
        shared = np.array(range(len(self)), dtype=object)
        fields: dict[str, list] = {name: [] for name in self._field_names(encoded)}
        for rows in encoded:
            bounds = rows.indptr.tolist()
            for low, stop in zip(bounds, bounds[1:], strict=False):
                fields["input_ids"].append(shared[rows.tokens[low:stop]].tolist())
                fields["attention_mask"].append([1] * (stop - low))
                if rows.values is not None:
                    fields["expression_values"].append(rows.values[low:stop].tolist())
        return fields

    def _padded(self, encoded: list[TokenRows], width: int, on_left: bool = False) -> dict[str, np.ndarray]:
        n_cells = sum(len(rows) for rows in encoded)
        arrays = {"input_ids": np.zeros((n_cells, width), dtype=np.int64)}
        if self.pad_token_id != 0:
            arrays["input_ids"].fill(self.pad_token_id)
        if "expression_values" in self._field_names(encoded):
            arrays["expression_values"] = np.zeros((n_cells, width), dtype=np.float32)
        arrays["attention_mask"] = np.zeros((n_cells, width), dtype=np.int64)
        first = 0
        for rows in encoded:
            bounds = rows.indptr.tolist()
            for cell, (low, stop) in enumerate(zip(bounds, bounds[1:], strict=False), start=first):
                place = slice(width - (stop - low), width) if on_left else slice(stop - low)
                arrays["input_ids"][cell, place] = rows.tokens[low:stop]
                arrays["attention_mask"][cell, place] = 1
                if rows.values is not None:
                    arrays["expression_values"][cell, place] = rows.values[low:stop]
            first += len(rows)
        return arrays

    @staticmethod
    def _field_names(encoded: list[TokenRows]) -> list[str]:
        has_values = any(rows.values is not None for rows in encoded)
        return ["input_ids", *(["expression_values"] if has_values else []), "attention_mask"]


def _check_tensors(kind: Any) -> None:
    if kind not in (None, "pt", "np"):
        raise ValueError(f"return_tensors={kind!r}: it is 'pt', 'np' or None")


def _truncates(given: bool | str | None) -> bool:
    """Whether cells with too many tokens are cut, by an argument as other tokenizers take it."""
    given = getattr(given, "value", given)
    if given in (None, True, "longest_first", "only_first"):
        return True
    if given in (False, "do_not_truncate"):
        return False
    raise ValueError(f"truncation={given!r}: it is True or False")


def _in_tensors(arrays: dict[str, np.ndarray], kind: str) -> BatchEncoding:
    if kind == "np":
        return BatchEncoding(arrays)
    import torch

    return BatchEncoding({name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()})


def column_statistics(columns: GeneColumns, vocabulary: GeneVocabulary, values: np.ndarray) -> np.ndarray:
    """Return a statistic of the vocabulary's genes for the columns of a file, 0 for unknown genes."""
    return np.where(columns.known, statistics_by_token(vocabulary, values)[columns.token_ids], 0.0)


def statistics_by_token(vocabulary: GeneVocabulary, values: np.ndarray) -> np.ndarray:
    """Return a statistic of the vocabulary's genes by token id, 0 for other tokens."""
    by_token = np.zeros(vocabulary.vocab_size, dtype=np.float64)
    by_token[vocabulary.gene_token_ids] = values
    return by_token


def check_choice(name: str, value: Any, choices: Mapping[str, str] | Sequence[str]) -> None:
    """Raise an error for a value that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: it is one of {', '.join(repr(c) for c in choices)}")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise an error for invalid settings of a tokenizer."""
    for name, value in settings.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "min_coverage" and not (number and 0 <= value <= 1):
            raise ValueError(f"{name}={value!r:.60}: it is a share, from 0 to 1")
        if name in ("target_sum", "clip") and not (number and 0 < value < float("inf")):
            raise ValueError(f"{name}={value!r:.60}: it is a number above 0")
        if name == "model_max_length" and value is not None and not (number and value >= 1 and value % 1 == 0):
            raise ValueError(f"{name}={value!r:.60}: it is a whole number of tokens")
        if name in ("add_cls_token", "return_expression_values") and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r:.60}: it is true or false")


__all__ = ["DEFAULT_MIN_COVERAGE", "GeneCoverageError", "GeneExpressionTokenizer"]
