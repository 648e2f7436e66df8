import dataclasses
import json
import re

import pytest

from cellglot.cli import main
from cellglot.training.config import check_keys, configs_folder, load_config, read_section
from cellglot.training.families.records import FAMILIES
from cellglot.training.finetuning.few_shot_task import FewShotSettings
from cellglot.training.finetuning.settings import FinetuneSettings
from cellglot.training.run import training_arguments


TINY = configs_folder() / "exceiver_tiny.yaml"


def written(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_overrides_are_yaml():
    config = load_config(
        TINY,
        [
            "trainer.max_steps=7",
            "trainer.learning_rate=3e-4",
            "trainer.run_name=a=b",
            "trainer.bf16=true",
            "optimizer.name=adam",
            "model.pooling=mean",
        ],
    )
    assert config.trainer["max_steps"] == 7
    assert config.trainer["learning_rate"] == 3e-4
    assert config.trainer["run_name"] == "a=b"
    assert config.trainer["bf16"] is True
    assert config.optimizer == {"name": "adam"}
    assert config.model["pooling"] == "mean" and config.model["hidden_size"] == 8


def test_an_override_reaches_into_a_mapping():
    name = "langcell_small_finetune.yaml"
    given = load_config(name).model["cell_config"]
    changed = load_config(name, ["model.cell_config.pooling=cls", "model.text_config.hidden_size=12"]).model
    assert changed["cell_config"] == given | {"pooling": "cls"} != given
    assert changed["text_config"] == {"hidden_size": 12}


def test_empty_sections_and_files_leave_everything_out(tmp_path):
    path = written(tmp_path, "model:\ntrainer:\n")
    sections = ("model", "data", "optimizer", "trainer", "finetuning")
    assert dataclasses.asdict(load_config(path)) == {name: {} for name in sections}
    assert load_config(path, ["model.type=exceiver"]).model == {"type": "exceiver"}
    assert load_config(written(tmp_path, "")).trainer == {}


@pytest.mark.parametrize("path", sorted(configs_folder().glob("*.yaml")), ids=lambda p: p.name)
def test_configurations_of_the_package_are_understood(path, tmp_path):
    config = load_config(path, ["trainer.use_cpu=true"])
    arguments = training_arguments(config, tmp_path)
    assert arguments.learning_rate == config.trainer["learning_rate"]
    assert arguments.remove_unused_columns is False
    assert arguments.report_to == []


def test_a_bare_no_is_a_strategy(tmp_path):
    config = load_config(TINY, ["trainer.eval_strategy=no", "trainer.save_strategy=no"])
    assert config.trainer["eval_strategy"] is False
    arguments = training_arguments(config, tmp_path)
    assert arguments.eval_strategy == arguments.save_strategy == "no"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps=3", "write section.key=value"),
        ("trainer.max_steps", "write section.key=value"),
        ("training.max_steps=3", "section 'training' does not exist; is 'trainer' meant"),
        ("trainer.=3", "write section.key=value"),
        ("trainer.learning_rate.of=3", "learning_rate is .*, not a mapping"),
        ("trainer.max_steps=[3", r"override 'trainer.max_steps=\[3' is not YAML"),
    ],
)
def test_overrides_that_are_none(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(TINY, [override])


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n"])
def test_a_file_without_sections(tmp_path, text):
    with pytest.raises(ValueError, match="is not a mapping of sections"):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize("overrides", [[], ["trainer.max_steps=3"]])
def test_a_section_that_is_no_mapping(tmp_path, overrides):
    with pytest.raises(ValueError, match="section 'trainer' is not a mapping"):
        load_config(written(tmp_path, "trainer: 3\n"), overrides)


def test_a_file_that_is_no_yaml(tmp_path):
    with pytest.raises(ValueError, match=r"run\.yaml is not YAML"):
        load_config(written(tmp_path, "trainer: [1,\n"))


def test_a_missing_file_names_those_of_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration .*nowhere.yaml; the package has .*exceiver_tiny"):
        load_config(tmp_path / "nowhere.yaml")


def test_unknown_keys_name_what_may_be_meant(tmp_path):
    with pytest.raises(ValueError, match="trainer 'learning_rates' does not exist; is 'learning_rate' meant"):
        training_arguments(load_config(TINY, ["trainer.learning_rates=1"]), tmp_path)
    with pytest.raises(ValueError, match="optimizer 'kind' does not exist; there are name"):
        training_arguments(load_config(TINY, ["optimizer.kind=adam"]), tmp_path)
    check_keys({"a": 1}, ["a", "b"], "thing")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.type=geneformer", "model.type: model type 'geneformer' is unsupported; there are exceiver"),
        ("model.hiden_size=8", "model 'hiden_size' does not exist; is 'hidden_size' meant"),
        ("model.hidden_size=large", "hidden_size"),
        ("model.hidden_size=6", "hidden_size=6 is not a multiple of"),
        ("model.pooling=max", "pooling='max'"),
        ("model.vocab_size=5", "model.vocab_size is 5, but the corpus has 767 ids: remove it"),
        ("data.mask_share=0.1", "data 'mask_share' does not exist"),
        ("data.mask_fraction=0.0001", "masks no gene"),
        ("data.mask_fraction=much", "data.mask_fraction"),
        ("data.mask_fraction=1.5", "data.mask_fraction"),
        ("optimizer.name=sgd", "optimizer.name 'sgd': it is one of adamw, adam"),
        ("trainer.learning_rate=fast", "trainer.learning_rate 'fast' is of type str: it has to be float"),
        ("trainer.max_steps=[1]", "trainer.max_steps [1] is of type list: it has to be int"),
        ("trainer.seed=true", "trainer.seed True is of type bool: it has to be int"),
        ("trainer.output_dir=elsewhere", "trainer 'output_dir' does not exist"),
        ("trainer.eval_strategy=sometimes", "sometimes"),
    ],
)
def test_wrong_settings_end_the_command_with_one_message(corpus, tmp_path, capsys, monkeypatch, override, message):
    files = ["--config", str(TINY), "--corpus", str(corpus.folder), "--output", str(tmp_path / "model")]
    settings = ["--set", "trainer.use_cpu=true", "--set", override]
    monkeypatch.setattr("sys.argv", ["cellglot", "pretrain", *files, *settings])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "error: " in error and message in error.partition("error: ")[2]
    assert not (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("thin_counts", "half", "run.yaml: data.thin_counts 'half' is of type str: it has to be"),
        ("drop_tokens", 1.0, "run.yaml: data.drop_tokens 1.0: it is a share from 0 to below 1"),
        (
            "initialize_gene_embeddings",
            1,
            "run.yaml: data.initialize_gene_embeddings 1 is of type int: it has to be bool",
        ),
        ("thin_count", 0.5, "run.yaml: data 'thin_count' does not exist; is 'thin_counts' meant?"),
    ],
)
def test_every_family_refuses_settings_of_another_type_with_file_and_key(tmp_path, family, key, value, message):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"data": {key: value}}))
    config = load_config(path)
    for settings in (family.pretraining_data, family.finetuning_data):
        with pytest.raises(ValueError, match=re.escape(message)):
            read_section(settings, config.data, "data")
        assert read_section(settings, {key: None} if key != "thin_count" else {}, "data") == settings()


@pytest.mark.parametrize("file", sorted(configs_folder().glob("*.yaml")), ids=lambda file: file.stem)
def test_the_sections_of_every_file_of_the_package_are_valid(file):
    config = load_config(file)
    family = FAMILIES[file.stem.split("_")[0]]
    if file.stem.endswith("few_shot"):
        data = FewShotSettings
    else:
        data = family.finetuning_data if "finetune" in file.stem else family.pretraining_data
    assert read_section(data, config.data, "data") is not None
    assert read_section(FinetuneSettings, config.finetuning, "finetuning").split == "corpus"


def test_a_section_keeps_its_file_when_it_is_changed():
    config = load_config(TINY)
    for changed in (config.data | {"mask_fraction": 2.0}, {"thin_counts": 2} | config.data):
        with pytest.raises(ValueError, match="tiny.yaml: data"):
            read_section(FAMILIES["exceiver"].pretraining_data, changed, "data")
