"""LangCellProcessor: turn cells and texts into inputs of LangCell."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import BatchEncoding
from transformers.utils import logging


logger = logging.get_logger(__name__)

DEFAULT_TEXT_LENGTH = 512

TEXT_FIELDS = ("text_input_ids", "text_attention_mask")

# Kind of text tokenizer -> type of its model.
MODEL_TYPES = {"Camembert": "camembert", "Electra": "electra", "Roberta": "roberta", "XLMRoberta": "xlm-roberta"}


class LangCellProcessor(ProcessorMixin):
    """A gene tokenizer for cells and a text tokenizer for their descriptions.

    A saved folder has the gene tokenizer at its root, where `AutoTokenizer` finds it, and the text tokenizer in
    ``text_tokenizer/``.

    Parameters
    ----------
    tokenizer
        Tokenizer of cells, a `RankValueTokenizer`.
    text_tokenizer
        Tokenizer of texts, of the text encoder's checkpoint.

    Attributes
    ----------
    texts_cut : int
        Number of texts that the last call cut because they were too long for the text encoder.

    Examples
    --------
    >>> processor = LangCellProcessor(tokenizer, AutoTokenizer.from_pretrained(text_checkpoint))
    >>> inputs = processor(adata, text=["cell type: B cell. "], return_tensors="pt")
    >>> model.annotate(**inputs).scores.shape
    torch.Size([700, 1])
    """

    def __init__(self, tokenizer: Any, text_tokenizer: Any):
        super().__init__(tokenizer, text_tokenizer)
        self.texts_cut = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without results of calls."""
        return self.__dict__ | {"texts_cut": 0}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the fields that a call returns."""
        return [*self.tokenizer.model_input_names, *TEXT_FIELDS]

    @property
    def last_report(self) -> Any:
        """Report of the gene tokenizer's last call."""
        return self.tokenizer.last_report

    def __call__(
        self,
        cells: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        truncation: bool | str | None = None,
        padding: bool | str | None = None,
        return_tensors: str | None = None,
        text_max_length: int | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Tokenize cells, texts, or both, in any numbers.

        Parameters
        ----------
        cells
            Input of the gene tokenizer: AnnData, a matrix with ``genes=``, ...
        text
            A text, or several. Texts that are too long for the text encoder are cut with a warning; see `texts_cut`.
        truncation, padding
            Of cells and of texts, as for the gene tokenizer: cut by default, padded if there are `return_tensors`.
        return_tensors
            ``"pt"`` or ``"np"``; by default lists.
        text_max_length
            Most tokens of a text, including special ones; by default the text tokenizer's, at most 512.
        **options
            Options of the gene tokenizer: ``genes``, ``layer``, ``gene_column``, ``min_coverage``, ``max_length``, ...

        Returns
        -------
        transformers.BatchEncoding
            For cells, ``input_ids`` and ``attention_mask`` of shape (cells, tokens); for texts, ``text_input_ids``
            and ``text_attention_mask`` of shape (texts, tokens).

        Raises
        ------
        ValueError
            If there are neither cells nor texts, or a text is empty; also the errors of the gene tokenizer.
        """
        if cells is None and text is None:
            raise ValueError("neither cells nor text: pass cells, text=[...], or both")
        given: dict[str, Any] = {}
        if cells is not None:
            both = {"truncation": truncation, "padding": padding, "return_tensors": return_tensors}
            given |= self.tokenizer(cells, **both, **options)
        elif options:
            raise TypeError(f"the options {', '.join(sorted(options))} need cells")
        if text is not None:
            padding = return_tensors is not None if padding is None else padding
            given |= self._tokenize_texts(text, truncation, padding, return_tensors, text_max_length)
        return BatchEncoding(given)

    def _tokenize_texts(
        self,
        text: str | Sequence[str],
        truncation: bool | str | None,
        padding: bool | str,
        return_tensors: str | None,
        max_length: int | None,
    ) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("no candidates: text=[] is empty")
        for number, one in enumerate(texts):
            if not isinstance(one, str) or not one.strip():
                raise ValueError(f"text {number} of {len(texts):,} is empty: {one!r}. Every class needs a description")
        longest = min(max_length or self.text_tokenizer.model_max_length, DEFAULT_TEXT_LENGTH)
        tokens = self.text_tokenizer(
            texts,
            truncation=True if truncation is None else truncation,
            max_length=longest,
            padding=padding,
            return_tensors=return_tensors,
            return_token_type_ids=False,
        )
        # A fast tokenizer keeps the last options of truncation and padding; a call without these resets them.
        lengths = [len(ids) for ids in self.text_tokenizer(texts, verbose=False)["input_ids"]]
        whole = truncation in (False, "do_not_truncate")
        self.texts_cut = 0 if whole else sum(length > longest for length in lengths)
        if self.texts_cut:
            logger.warning(
                f"{self.texts_cut:,} of {len(texts):,} texts have more than {longest:,} tokens (the longest has "
                f"{max(lengths):,}) and were cut."
            )
        return {f"text_{name}": tokens[name] for name in ("input_ids", "attention_mask")}

    def pad(self, encoded_inputs: Any, *, return_tensors: str | None = None, **options: Any) -> BatchEncoding:
        """Pad tokens of cells and texts; transformers' collators call it.

        Parameters
        ----------
        encoded_inputs
            The result of a call, or a list of results for pairs of a cell and a text; either part can be missing.
        return_tensors
            ``"pt"`` or ``"np"``; by default the kind of `encoded_inputs`.
        **options
            Options of both tokenizers' ``pad``.
        """
        if not isinstance(encoded_inputs, Mapping):
            encoded_inputs = {name: [one[name] for one in encoded_inputs] for name in encoded_inputs[0]}
        texts = {n: given for n, given in encoded_inputs.items() if n in TEXT_FIELDS}
        cells = {n: given for n, given in encoded_inputs.items() if n not in texts}
        padded = dict(self.tokenizer.pad(cells, return_tensors=return_tensors, **options)) if cells else {}
        if texts:
            named = {n.removeprefix("text_"): given for n, given in texts.items()}
            of_texts = self.text_tokenizer.pad(named, return_tensors=return_tensors, **options)
            padded |= {f"text_{n}": given for n, given in of_texts.items()}
        return BatchEncoding(padded)

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Save both tokenizers, and the type of the text tokenizer, as other processors do."""
        folder = Path(save_directory, "text_tokenizer")
        folder.mkdir(parents=True, exist_ok=True)
        # Without a configuration in this folder, AutoTokenizer uses the class of the folder above.
        kind = type(self.text_tokenizer).__name__.removesuffix("Fast").removesuffix("Tokenizer")
        recorded = {"model_type": MODEL_TYPES.get(kind, "bert")}
        (folder / "config.json").write_text(json.dumps(recorded) + "\n", encoding="utf-8")
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


LangCellProcessor.register_for_auto_class()

__all__ = ["LangCellProcessor"]
