import pytest

from cellglot.model_cards.card.details import CardError, check_complete, read_details


def test_options_go_before_the_file(tmp_path):
    (tmp_path / "card.yaml").write_text(
        "license: mit\ndatasets: owner/cells\nontology_release: 2024-04-05\ntags: []\n"
    )
    details = read_details(tmp_path, license="apache-2.0", title=None)
    assert (details.license, details.datasets, details.ontology_release) == (
        "apache-2.0",
        ["owner/cells"],
        "2024-04-05",
    )
    assert read_details(tmp_path / "nothing_there").license is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("licence: mit", "field 'licence' does not exist; is 'license' meant"),
        ("- mit", "must contain fields"),
        ("license: [mit", "is not YAML"),
        ("tags: 3", "tags must be a list of texts, not 3"),
        ("title: [a, b]", "title must be a text"),
        ("license: Apache 2", "'Apache 2' is not an identifier of the Hub: did you mean 'apache-2.0'"),
        ("base_model_relation: copy", "must be finetune or merge"),
        ("license: other", "needs license_name and license_link"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_details(tmp_path)


def test_a_file_that_is_named_exists(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mine\.yaml with the details of the card does not exist"):
        read_details(tmp_path, tmp_path / "mine.yaml")


def test_a_licence_of_its_own(tmp_path):
    (tmp_path / "card.yaml").write_text("license: other\nlicense_name: lab\nlicense_link: https://example.org/terms\n")
    assert read_details(tmp_path).license_name == "lab"


def test_empty_fields_are_named_with_the_way_to_give_them():
    with pytest.raises(CardError) as error:
        check_complete(
            {"license": None, "training_data": "blood", "base_model": ""}, ["license", "training_data", "base_model"]
        )
    said = str(error.value)
    assert "license" in said and "--license, or license in card.yaml" in said
    assert "base_model, the repository" in said and "--base-model" in said and "training_data," not in said
