"""Transformers finds our classes wherever cellglot is imported, and importing it costs nothing before."""

import copy
import importlib
import pickle
import subprocess
import sys
import threading

import pytest
from transformers import AutoConfig
from transformers.models.auto import modeling_auto, processing_auto, tokenization_auto
from transformers.pipelines import PIPELINE_REGISTRY

import cellglot
from cellglot import auto_classes, modeling
from cellglot.auto_classes import FilledWhenRead, watch
from cellglot.modeling import families
from cellglot.tokenization import families as inputs


# Run under a name that hides the package from nobody but a guess, in workers of both kinds.
SCRIPT = """
import multiprocessing
import sys

import cellglot
assert __name__ != "__main__" or not {"torch", "transformers", "numpy"} & set(sys.modules)


def classes(folder):
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    found = AutoModel.from_config(AutoConfig.from_pretrained(folder)), AutoTokenizer.from_pretrained(folder)
    return [f"{type(one).__module__}.{type(one).__name__}" for one in found]


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.apply(classes, [sys.argv[1]]))
    print(*classes(sys.argv[1]))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(*pool.apply(classes, [sys.argv[1]]))
"""


@pytest.mark.long
def test_scripts_of_any_name_and_their_workers_load_our_classes(gene_classifiers, tmp_path):
    script = tmp_path / "cellglot" / "cellglot.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    # -P: Python does not look for modules in the script's folder, where it would find the script itself
    command = [sys.executable, "-P", str(script), str(gene_classifiers["base"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = "cellglot.modeling.modeling_sccello.ScCelloModel cellglot.tokenization.tokenization_rank_value"
    assert done.stdout.splitlines() == [f"{expected}.RankValueTokenizer"] * 3


def test_every_table_has_our_classes():
    named = set()
    for name, family in families.FAMILIES.items():
        own, *parts = family.config_classes()
        assert own.model_type == name
        for config in (own, *parts):
            assert type(AutoConfig.for_model(config.model_type)) is config
            named |= set(config().auto_map)
        for auto_class in auto_classes.AUTO_CLASSES:
            table = getattr(modeling_auto, auto_class)._model_mapping
            for config, network in family.networks(auto_class):
                assert table[config] is network is getattr(modeling, network.__name__)
                assert network is family.network_named(network.__name__)
        of_inputs = inputs.FAMILIES[name]
        assert tokenization_auto.TOKENIZER_MAPPING[own] is of_inputs.tokenizer_class
        assert tokenization_auto.tokenizer_class_from_name(of_inputs.tokenizer) is of_inputs.tokenizer_class
        assert (
            (own in processing_auto.PROCESSOR_MAPPING)
            == (of_inputs.processor_class is not None)
            == (family.reads_texts)
        )
        if family.reads_texts:
            assert processing_auto.PROCESSOR_MAPPING[own] is of_inputs.processor_class
    assert named == {"AutoConfig", *auto_classes.AUTO_CLASSES}
    for task, name in auto_classes.PIPELINES.items():
        assert PIPELINE_REGISTRY.check_task(task)[1]["impl"] is getattr(modeling, name)


def test_modules_that_are_imported_later_are_seen(tmp_path, monkeypatch):
    (tmp_path / "seen_later.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    monkeypatch.setitem(auto_classes.WATCHED, "seen_later", seen.append)
    module = importlib.import_module("seen_later")
    assert seen == [module] and module.VALUE == 3
    importlib.reload(module)
    assert len(seen) == 2
    finders = list(sys.meta_path)
    importlib.reload(cellglot)
    watch()
    assert sys.meta_path == finders


READS = {
    "contains": lambda table: "late" in table,
    "get": lambda table: table.get("late"),
    "items": lambda table: dict(table.items())["late"],
    "dict": lambda table: dict(table)["late"],
    "unpacked": lambda table: {**table}["late"],
    "or": lambda table: ({} | table)["late"] and (table | {})["late"],
    "list": lambda table: "late" in list(table),
    "len": lambda table: len(table) == 2,
    "pickle": lambda table: pickle.loads(pickle.dumps(table)) == {"early": 1, "late": 2},
    "copy": lambda table: copy.deepcopy(table)["late"] and table.copy()["late"],
}


@pytest.mark.parametrize("read", READS)
def test_a_table_is_filled_once_by_any_read(read):
    fills = []

    def fill():
        fills.append(1)
        assert "late" not in owner.table  # a look while it is filled does not fill it again
        owner.table["late"] = 2

    owner = type("Owner", (), {"table": {}})
    auto_classes._fill_when_read(fill, (owner, "table"))
    owner.table["early"] = 1
    assert not fills and isinstance(owner.table, FilledWhenRead)
    assert READS[read](owner.table) and READS[read](owner.table)
    assert fills == [1]


def test_a_table_that_could_not_be_filled_is_filled_later_and_threads_wait():
    owner, tries, begun = type("Owner", (), {"table": {}}), [], threading.Event()

    def fill():
        tries.append(1)
        if len(tries) == 1:
            raise ImportError("no PyTorch here")
        begun.set()
        thread.join(timeout=0.05)
        owner.table["late"] = 2

    auto_classes._fill_when_read(fill, (owner, "table"))
    with pytest.raises(ImportError, match="no PyTorch"):
        owner.table.get("late")
    found = []
    thread = threading.Thread(target=lambda: begun.wait() and found.append(owner.table.get("late")))
    thread.start()
    assert owner.table["late"] == 2
    thread.join()
    assert found == [2] and len(tries) == 2
