import datetime

import numpy as np
import pandas as pd
import pytest

from cellglot.tokenization.reading.labels import MISSING_LABELS, carried_texts, label_text, read_labels
from cellglot.tokenization.reading.obs import FrameTable


@pytest.mark.parametrize("text", sorted(MISSING_LABELS))
def test_words_for_no_label(text):
    for spelt in (text, text.upper(), text.title(), f"  {text}\t"):
        assert label_text(spelt) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" NK cell ", "NK cell"),
        (b"B cell", "B cell"),
        (3, "3"),
        (3.0, "3"),
        (np.float32(3), "3"),
        (2.5, "2.5"),
        (np.int8(4), "4"),
        (True, "True"),
        (np.bool_(False), "False"),
        (pd.Timestamp("2024-05-01"), "2024-05-01"),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        ("unknown lymphocyte", "unknown lymphocyte"),
        (None, None),
        (np.nan, None),
        (pd.NA, None),
        (pd.NaT, None),
        (np.datetime64("NaT"), None),
    ],
)
def test_a_label_of_any_type(value, text):
    assert label_text(value) == text
    assert read_labels([value]).texts.tolist() == [text]


COLUMNS = {
    "objects": pd.Series([1, 2, None, 1], dtype=object),
    "floats": pd.Series([1.0, 2.0, np.nan, 1.0]),
    "nullable whole numbers": pd.Series([1, 2, None, 1], dtype="Int64"),
    "nullable floats": pd.Series([1.0, 2.0, None, 1.0], dtype="Float64"),
    "categories of whole numbers": pd.Series(pd.Categorical([1, 2, None, 1])),
    "categories of floats": pd.Series(pd.Categorical([1.0, 2.0, None, 1.0])),
    "texts": pd.Series(["1", "2 ", "Unknown", " 1"]),
    "pandas 3's texts": pd.Series(["1", "2", np.nan, "1"], dtype=pd.StringDtype("python", na_value=np.nan)),
    "arrow's texts": pd.Series(["1", "2", None, "1"], dtype=pd.StringDtype("pyarrow")),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_all_types_give_the_same_labels(kind):
    column = COLUMNS[kind]
    expected = ["1", "2", None, "1"]
    assert read_labels(column).texts.tolist() == expected
    assert read_labels(FrameTable(column.to_frame("a")).column("a", 0, 4)).texts.tolist() == expected
    carried = carried_texts(FrameTable(column.to_frame("a")).column("a", 0, 4))
    assert read_labels(carried).texts.tolist() == expected


def test_what_was_read_is_counted():
    found = read_labels(["T cell", "T cell ", "nan", "Unknown", "Unknown", None, np.nan, 1, True])
    assert found.texts.tolist() == ["T cell", "T cell", None, None, None, None, None, "1", "True"]
    assert found.missing == {"nan": 1, "Unknown": 2} and found.cleaned == 1
    note = found.note("labels in 'kind'")
    assert note.startswith("labels in 'kind': 3 cells have 'Unknown' (2), 'nan' (1)") and "1 labels had blanks" in note
    assert read_labels(["T cell", None]).note() == ""


def test_carried_texts_keep_the_words_of_the_schema():
    given = ["unknown", " female ", "nan", "", "<NA>", None, 2.0]
    assert carried_texts(given).tolist() == ["unknown", "female", None, None, None, None, "2"]


def test_values_that_cannot_be_hashed():
    assert read_labels([["a"], ["a"], {"b": 1}]).texts.tolist() == ["['a']", "['a']", "{'b': 1}"]
