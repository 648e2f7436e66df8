import json

import pytest

from cellglot.model_cards.prepare.staging import MODEL_FILES, PickleError, stage_code, stage_files


@pytest.fixture
def trained(folders, tmp_path):
    """A model's folder with all that training leaves beside it."""
    import shutil

    folder = tmp_path / "trained"
    shutil.copytree(folders["classifier"], folder)
    for name in ("checkpoint-20/optimizer.pt", "checkpoint-20/model.safetensors", "corpus/manifest.json",
                 "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json",
                 "events.out.tfevents.1", "runs/x/events.out.tfevents.2", ".git/config", "notes.txt"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def test_what_belongs_is_copied_and_the_rest_is_counted(trained, tmp_path):
    staged = stage_files(trained, tmp_path / "new", MODEL_FILES)
    assert set(staged.files) == {
        "config.json", "gene_stats.safetensors", "gene_vocab.json", "model.safetensors", "tokenizer_config.json",
        "training_run.json",
    }  # fmt: skip
    assert set(staged.left_out) == {
        ".git/", "checkpoint-20/", "corpus/", "events.out.tfevents.1", "notes.txt", "optimizer.pt", "rng_state_0.pth",
        "runs/", "scheduler.pt", "trainer_state.json", "training_args.bin",
    }  # fmt: skip
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_paths_of_this_machine_are_shortened_and_counted(trained, tmp_path):
    config = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/ada/base"}))
    staged = stage_files(trained, tmp_path / "new", MODEL_FILES)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["_name_or_path"] == "base"
    record = json.loads((tmp_path / "new" / "training_run.json").read_text())
    assert record["base_model"] == "exceiver"
    assert {name: len(paths) for name, paths in staged.cleaned.paths.items()} == {
        "config.json": 1,
        "training_run.json": 1,
    }


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "sub/table.pkl"])
def test_a_pickle_is_refused(trained, tmp_path, name):
    (trained / name).parent.mkdir(exist_ok=True)
    (trained / name).write_bytes(b"x")
    with pytest.raises(PickleError, match=f"contains {name}: a pickle runs code when it is loaded"):
        stage_files(trained, tmp_path / "new", MODEL_FILES)


def test_code_is_that_of_the_package(trained, tmp_path):
    (trained / "modeling_exceiver.py").write_text("changed = True")
    stage_files(trained, tmp_path / "new", MODEL_FILES)
    copied = stage_code(tmp_path / "new")
    assert {"modeling_exceiver.py", "tokenization_exceiver.py", "pipeline_cell_embedding.py"} <= set(copied)
    assert "class ExceiverModel" in (tmp_path / "new" / "modeling_exceiver.py").read_text()


def test_code_of_others_is_refused(trained, tmp_path):
    stage_files(trained, tmp_path / "new", MODEL_FILES)
    config = tmp_path / "new" / "config.json"
    config.write_text(json.dumps({"auto_map": {"AutoModel": "modeling_other.Model"}}))
    with pytest.raises(ValueError, match=r"names the code modeling_other\.py, which is not part of cellglot"):
        stage_code(tmp_path / "new")
