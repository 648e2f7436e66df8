"""What a saved folder records, so that Auto classes find every class in it."""

import importlib
import json
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files


ROOT = Path(__file__).parents[2]


def code_of(path):
    """The file of a class in auto_map, and all that it imports."""
    file = ROOT / "modeling" / f"{path.split('.')[0]}.py"
    return {file, *map(Path, get_relative_import_files(file))}


def test_files_and_classes_exist(tiny_config):
    import transformers

    config = tiny_config()
    assert {"AutoConfig", "AutoModel"} <= set(config.auto_map)
    for kind, path in config.auto_map.items():
        file, name = path.split(".")
        found = getattr(importlib.import_module(f"cellglot.modeling.{file}"), name)
        assert hasattr(transformers, kind)
        assert found is type(config) if kind == "AutoConfig" else found.config_class is type(config)


def test_every_public_model_has_an_auto_class(tiny_config, model_name):
    from transformers import PreTrainedModel

    import cellglot.modeling

    config = tiny_config()
    mapped = {path.split(".")[1] for path in config.auto_map.values()}
    public = [getattr(cellglot.modeling, name) for name in cellglot.modeling.__all__]
    models = {c.__name__ for c in public if issubclass(c, PreTrainedModel) and c.config_class is type(config)}
    assert models - mapped == {n for n in models if n.endswith("PreTrainedModel")}


def test_saving_one_class_records_all(models, tokenizer, tmp_path):
    for name, model in models.items():
        folder = tmp_path / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        recorded = json.loads((folder / "config.json").read_text())
        assert recorded["auto_map"] == type(model.config)().auto_map
        assert recorded["architectures"] == [name]
        assert json.loads((folder / "tokenizer_config.json").read_text())["auto_map"]["AutoTokenizer"]
        copied = {p for path in recorded["auto_map"].values() for p in code_of(path)}
        for original in copied:
            assert (folder / original.name).read_bytes() == original.read_bytes()


def test_saving_a_loaded_model_keeps_the_record(models, tmp_path):
    for name, model in models.items():
        model.save_pretrained(tmp_path / "first" / name)
        type(model).from_pretrained(tmp_path / "first" / name).save_pretrained(tmp_path / "second" / name)
        first, second = (json.loads((tmp_path / f / name / "config.json").read_text()) for f in ("first", "second"))
        assert first == second
        files = [{p.name for p in (tmp_path / f / name).iterdir()} for f in ("first", "second")]
        assert files[0] == files[1]
