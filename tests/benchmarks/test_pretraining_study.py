"""The study of pretraining: its objectives, what is scored, its tables."""

import pytest
from evaluation_records import write_between
from pretraining_objectives import OBJECTIVES, common_type, objective_config
from pretraining_study import folds_of, tables

from cellglot.model_cards.collection.recipe import read_recipe
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.training.config import read_section
from cellglot.training.families.langcell import TOWERS
from cellglot.training.families.records import FAMILIES


def test_a_label_that_leaves_types_open_is_what_they_have_in_common():
    ontology = CellOntology.blood()
    assert common_type("CL:0000236", ontology) == "CL:0000236"
    assert common_type("CL:0000625 | CL:0000624", ontology) == "CL:0000791"  # CD8 and CD4: mature alpha-beta T
    assert common_type("K562 line", ontology) is None and common_type("CL:0000236 | K562 line", ontology) is None


@pytest.mark.parametrize("base", ["human-exceiver", "human-sccello"])
def test_objectives_train_networks_of_the_size_of_the_base(base):
    recipe = read_recipe(base)
    given = recipe.config()
    for name, (config_name, changes) in OBJECTIVES[given.model["type"]].items():
        config = objective_config(config_name, changes, recipe, 7)
        family = FAMILIES.of(config.model["type"], name)
        read_section(family.pretraining_data, config.data, "data")
        network = config.model.get("cell_config", config.model)
        assert network["num_hidden_layers"] == given.model["num_hidden_layers"], name
        assert "encoder_tokens" not in network, name  # pretraining needs the states of all tokens
        assert config.trainer["max_steps"] == 7 and config.data["thin_to_median"] == given.data["thin_to_median"]
        if "cell_config" in config.model:
            assert set(network) <= set(TOWERS["cell_config"].__dataclass_fields__), name
        assert set(changes) <= set(config.model)


def test_a_langcell_has_one_fold_named_by_its_laboratories(tmp_path):
    assert [fold.name for fold in folds_of(tmp_path, read_recipe("human-langcell"))] == [
        "sccomp nine samples and Hao 2021"
    ]
    (tmp_path / "folds/one and two").mkdir(parents=True)
    assert [fold.name for fold in folds_of(tmp_path, read_recipe("human-exceiver"))] == ["one and two"]


def test_tables_have_a_line_for_each_method_and_part():
    few = {str(n): {"mean": n / 100, "std": 0.01} for n in (5, 10, 20, 50)}
    bio = {"nmi": 0.1, "ari": 0.2, "asw_label": 0.3, "avg_bio": 0.2}
    row = {"first": {"few_labels": few, "clustering": bio}, "first to second": {"few_labels": few}}
    made = tables(
        {
            "base / one": {"this model": row, "random weights": row, "its linear latent": row},
            "masked / one": {"this model": row},
            "PCA / one": row,
        }
    )
    for name in ("base", "base, random weights", "base: its linear latent", "masked", "PCA"):
        assert f"| first | {name} | 0.100 | 0.200 | 0.300 | 0.200 |" in made
        assert f"| first to second | {name} | 0.050 ± 0.010 | 0.100 ± 0.010 |" in made
    assert "| first to second | PCA | 0.100 |" not in made.split("labels of")[0]


def test_tables_are_written_between_the_marks_of_their_name(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- tables -->\nold\n<!-- end of tables -->\nb\n<!-- study -->\n<!-- end of study -->\nc\n")
    write_between(page, "study", "| new |")
    assert "old" in page.read_text() and "<!-- study -->\n\n| new |\n\n<!-- end of study -->\nc" in page.read_text()
    write_between(page, "tables", "| other |")
    assert "old" not in page.read_text() and page.read_text().count("<!-- end of") == 2
