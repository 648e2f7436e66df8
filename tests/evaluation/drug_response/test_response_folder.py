import numpy as np
import pandas as pd
import pytest

from cellglot.evaluation.drug_response.folder import read_drug_response
from cellglot.evaluation.drug_response.line_expression import line_cells
from cellglot.evaluation.drug_response.splits import SPLITS, split_pairs
from cellglot.inputs import InputError
from cellglot.tokenization import RankValueTokenizer


def changed(table, row, column, value):
    table = table.copy()
    table[column] = table[column].astype(object)
    table.loc[row, column] = value
    return table


def test_tables_are_matched_by_name_and_what_is_left_out_is_said(response_tables, write_response):
    plain = read_drug_response(write_response("plain"))
    assert (len(plain), len(plain.lines), len(plain.drugs)) == (320, 40, 8) and not plain.notes
    expression = response_tables["expression"].iloc[::-1].drop(index=3)  # another order, without LINE-3
    drugs = changed(changed(response_tables["drugs"], 1, "smiles", ""), 2, "smiles", "not a structure")
    response = pd.concat([response_tables["response"], response_tables["response"].iloc[[0]].assign(ln_ic50=100.0)])
    response = changed(response.reset_index(drop=True), 5, "ln_ic50", "NA")
    folder = write_response(
        "odd", expression=expression, drugs=drugs, response=response.sample(frac=1, random_state=1)
    )
    found = read_drug_response(folder)
    assert found.lines == list(expression["cell_line"]) and len(found) == 39 * 6 - 1
    notes = "\n".join(found.notes)
    for said in (
        "drug 2",
        "RDKit cannot read",
        "drug 1",
        "without expression (LINE-3)",
        "1 repeated pairs",
        "1 pairs wi",
    ):
        assert said in notes, said
    line, drug = found.lines.index("LINE-0"), found.drugs.index("drug 0")
    value = found.ln_ic50[(found.line == line) & (found.drug == drug)]
    assert value == pytest.approx((response_tables["response"].ln_ic50[0] + 100) / 2)
    np.testing.assert_array_equal(found.expression[0], response_tables["expression"].drop(columns="cell_line").loc[39])
    assert found.types[0] == "" and found.types[1] == "SKCM"


def test_screens_of_a_drug_stay_apart_and_are_held_out_together(response_tables, write_response):
    response = response_tables["response"]
    both = pd.concat([response.assign(screen="GDSC1"), response.assign(screen="GDSC2", ln_ic50=response.ln_ic50 + 1)])
    data = read_drug_response(write_response(response=both))
    assert len(data.drugs) == 16 and len(set(data.structures)) == 8 and "drug 0 (GDSC2)" in data.drugs
    split = split_pairs(data, "drugs held out")
    held = {data.structures[n] for n in data.drug[split.test]}
    assert len(held) == 2 and not held & {data.structures[n] for n in data.drug[split.train]}


@pytest.mark.parametrize(
    "table, change, said",
    [
        ("drugs", lambda t: None, "drugs.tsv"),
        ("expression", lambda t: None, "expression.parquet"),
        ("response", lambda t: t.drop(columns="ln_ic50"), "no column 'ln_ic50'"),
        ("response", lambda t: changed(t, 4, "ln_ic50", "high"), "line 6: ln_ic50 'high'"),
        ("response", lambda t: changed(t, 4, "ln_ic50", "inf"), "not a finite number"),
        ("response", lambda t: t.assign(cell_line=t.cell_line + "x"), "do the names"),
        ("expression", lambda t: pd.concat([t, t.iloc[[7]]]), "line 'LINE-7' more than once"),
        ("expression", lambda t: t.assign(**{t.columns[5]: [1.0, np.nan] * 20}), "line 'LINE-1' is missing"),
        ("expression", lambda t: t.drop(columns="cell_line"), "no column 'cell_line'"),
        ("drugs", lambda t: pd.concat([t, t.iloc[[0]].assign(smiles="CCCCC")]), "several structures"),
        ("drugs", lambda t: t.assign(smiles=""), "8 drugs without a structure"),
        ("cell_lines", lambda t: pd.concat([t, t.iloc[[0]].assign(tcga_code="OV")]), "several values of tcga_code"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_refused_with_its_file(response_tables, write_response, table, change, said):
    folder = write_response(**{table: change(response_tables[table])})
    with pytest.raises(InputError, match=said.replace("(", r"\(")) as refused:
        read_drug_response(folder)
    assert str(folder) in str(refused.value)


def test_splits_have_nothing_in_common_and_leave_lines_without_a_type_out(write_response):
    data = read_drug_response(write_response())
    for name in SPLITS:
        split, again = split_pairs(data, name), split_pairs(data, name)
        assert (split.test == again.test).all() and not (split.train & split.test).any()
        lines = set(data.line[split.train]) & set(data.line[split.test])
        drugs = set(data.drug[split.train]) & set(data.drug[split.test])
        assert bool(lines) == (name in ("random pairs", "drugs held out"))
        assert bool(drugs) == (name in ("random pairs", "lines held out"))
    random = split_pairs(data, "random pairs")
    assert random.test.sum() == 12 and "10 lines without a type (80 pairs)" in random.note
    assert not random.train[data.types[data.line] == ""].any()


def test_values_are_unlogged_for_tokens_and_others_are_refused(response_tables, write_response, vocabulary):
    data = read_drug_response(write_response())
    cells = line_cells(data)
    linear = np.exp2(data.expression.astype(float)) - 1
    np.testing.assert_allclose(cells.X, 1e7 * linear / linear.sum(axis=1, keepdims=True), atol=0.51)
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary)
    table = response_tables["expression"].set_index("cell_line")
    z = (table - table.mean()) / table.std(ddof=0)
    for values, kind in ((z, "below 0, as z-scores"), (table / 2 + 3, "as logarithms of microarrays")):
        odd = read_drug_response(write_response(kind[:7], expression=values.reset_index()))
        with pytest.raises(ValueError, match=f"{kind}.*relative ranks"):
            line_cells(odd)
        tokens = tokenizer(line_cells(odd, tokenizer, "relative"))["input_ids"][3]
        order = tokenizer.convert_ids_to_tokens(tokens)
        assert [t for t in order if t in z.columns] == list(z.iloc[3].sort_values(ascending=False).index)
    with pytest.raises(ValueError, match="unknown values of expression 'logs'"):
        line_cells(data, values="logs")
    table.loc["LINE-0"] = 0.0
    silent = read_drug_response(write_response("silent", expression=table.reset_index()))
    with pytest.raises(ValueError, match="LINE-0.*no gene"):
        line_cells(silent)
