"""``convert``: released checkpoints to folders that ``from_pretrained`` loads."""

import os
from pathlib import Path

from cellglot.outputs import OutputFolder
from cellglot.verbs.cells import as_path, or_none


SYSTEMS = ("exceiver", "sccello", "langcell")


def convert(
    system: str,
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    token_dictionary: str | os.PathLike | None = None,
    gene_medians: str | os.PathLike | None = None,
    cell_types: str | os.PathLike | None = None,
    text_tokenizer: str | None = None,
    overwrite: bool = False,
) -> str:
    """Convert a released checkpoint.

    Parameters
    ----------
    system
        ``"exceiver"``, ``"sccello"`` or ``"langcell"``.
    checkpoint
        Released file (exceiver) or folder (sccello, langcell).
    output
        Folder for the model.
    token_dictionary, gene_medians
        Released pickles of tokens and of medians of genes, for a tokenizer of scCello or LangCell.
    cell_types
        scCello: Cell Ontology id -> row, as ``.json`` or the released pickle.
    text_tokenizer
        LangCell: folder or repository of the tokenizer of texts.
    overwrite
        Replace an earlier conversion in `output`.

    Returns
    -------
    str
        What was written, and what the release lacks.

    Raises
    ------
    ValueError
        If the system is unknown, an option is for another one, or the checkpoint does not fit together.
    """
    if system not in SYSTEMS:
        raise ValueError(f"system {system!r}: it is one of {', '.join(SYSTEMS)}")
    if text_tokenizer and system != "langcell":
        raise ValueError("text_tokenizer (--text-tokenizer) is for langcell")
    if system == "langcell" and cell_types:
        raise ValueError("cell_types (--cell-types) is for sccello")
    if system == "exceiver" and (token_dictionary or gene_medians or cell_types):
        raise ValueError("--token-dictionary, --gene-medians and --cell-types are not for exceiver")
    if system == "sccello" and (token_dictionary is None) != (gene_medians is None):
        raise ValueError("a tokenizer needs both --token-dictionary and --gene-medians")
    given = (token_dictionary, gene_medians, text_tokenizer)
    if system == "langcell" and any(given) and not all(given):
        raise ValueError("a processor needs all of --token-dictionary, --gene-medians and --text-tokenizer")
    source, target = as_path(checkpoint), as_path(output)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: name the released checkpoint")
    tokens, medians, types = or_none(token_dictionary), or_none(gene_medians), or_none(cell_types)
    with OutputFolder(target, "convert", [source, tokens, medians, types, text_tokenizer]) as folder:
        folder.refuse_earlier(overwrite)
        if system == "langcell":
            report = _convert_langcell(source, target, tokens, medians, text_tokenizer)
        elif system == "sccello":
            report = _convert_sccello(source, target, tokens, medians, types)
        else:
            report = _convert_exceiver(source, target)
        folder.finish()
    return report


def _convert_exceiver(checkpoint: Path, output: Path) -> str:
    from cellglot.modeling.convert import exceiver as convert_exceiver
    from cellglot.modeling.model_files import check_finite
    from cellglot.tokenization.genes.placeholder_genes import placeholder_tokenizer

    model = convert_exceiver.convert(*convert_exceiver.read_checkpoint(checkpoint))
    check_finite(str(checkpoint), model)
    convert_exceiver.save_converted(model, output)
    placeholder_tokenizer(model.config.num_genes).save_pretrained(output)
    return (
        f"{type(model).__name__} in {output}. Its rows cannot be tied to genes: neither the order of the genes nor "
        "their means and standard deviations were published."
    )


def _convert_sccello(
    checkpoint: Path, output: Path, token_dictionary: Path | None, gene_medians: Path | None, cell_types: Path | None
) -> str:
    from cellglot.inputs import read_json
    from cellglot.modeling.convert import sccello as convert_sccello
    from cellglot.modeling.model_files import check_finite
    from cellglot.tokenization import GeneVocabulary, RankValueTokenizer
    from cellglot.tokenization.gene_vocabulary import read_released_dictionary

    rows = None
    if cell_types is not None:
        is_json = cell_types.suffix == ".json"
        given = read_json(cell_types) if is_json else read_released_dictionary(cell_types)
        rows = {str(name): int(row) for name, row in given.items()}
    model = convert_sccello.convert(*convert_sccello.read_checkpoint(checkpoint), cell_types=rows)
    check_finite(str(checkpoint), model)
    config, tokenizer = model.config, None
    if token_dictionary is not None:
        vocabulary = GeneVocabulary.from_released(token_dictionary, gene_medians)
        tokenizer = RankValueTokenizer.from_vocabulary(
            vocabulary, total="vocabulary", model_max_length=config.max_position_embeddings
        )
        if tokenizer.vocab_size != config.vocab_size:
            raise ValueError(
                f"{token_dictionary} has {tokenizer.vocab_size:,} tokens, but the checkpoint has "
                f"vocab_size={config.vocab_size:,}"
            )
    convert_sccello.save_converted(model, output)
    report = f"{type(model).__name__} in {output}; {len(rows or ()):,} of {config.num_cell_types:,} cell types named."
    if tokenizer is None:
        return f"{report} No tokenizer written: pass --token-dictionary and --gene-medians for one."
    tokenizer.save_pretrained(output)
    return f"{report} Tokenizer of {config.num_genes:,} genes."


def _convert_langcell(
    checkpoint: Path,
    output: Path,
    token_dictionary: Path | None,
    gene_medians: Path | None,
    text_tokenizer: str | None,
) -> str:
    from cellglot.modeling.convert import langcell as convert_langcell
    from cellglot.modeling.loading import load_tokenizer
    from cellglot.modeling.model_files import check_finite
    from cellglot.tokenization import GeneVocabulary, LangCellProcessor, RankValueTokenizer

    given = (token_dictionary, gene_medians, text_tokenizer)
    model = convert_langcell.convert(*convert_langcell.read_checkpoint(checkpoint))
    check_finite(str(checkpoint), model)
    report = f"{type(model).__name__} in {output}."
    if not all(given):
        convert_langcell.save_converted(model, output)
        return (
            f"{report} No processor written: pass --token-dictionary, --gene-medians and --text-tokenizer for one "
            "(as released: microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract)."
        )
    texts, config = load_tokenizer(str(text_tokenizer)), model.config
    if len(texts) == config.text_config.vocab_size - 2:  # the release adds two tokens to PubMedBERT's
        texts.add_special_tokens({"bos_token": "[DEC]"})
        texts.add_tokens(["[ENC]"], special_tokens=True)
    genes = RankValueTokenizer.from_vocabulary(
        GeneVocabulary.from_released(token_dictionary, gene_medians),
        model_max_length=config.cell_config.max_position_embeddings,
    )
    for kind, found, size in (
        ("--token-dictionary", genes.vocab_size, config.vocab_size),
        ("--text-tokenizer", len(texts), config.text_config.vocab_size),
    ):
        if found != size:
            raise ValueError(f"{kind} has {found:,} tokens, but the checkpoint has {size:,}")
    convert_langcell.save_converted(model, output)
    LangCellProcessor(genes, texts).save_pretrained(output)
    return f"{report} Tokenizers of {config.vocab_size - 3:,} genes and {len(texts):,} words."


__all__ = ["convert"]
