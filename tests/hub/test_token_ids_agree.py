"""Models and tokenizers do not import each other: their ids and sizes are compared here."""

import torch


def test_special_tokens_and_sizes(tokenizer, models):
    for model in models.values():
        config = model.config
        assert config.vocab_size == tokenizer.vocab_size == len(tokenizer)
        assert model.get_input_embeddings().weight.shape[0] == tokenizer.vocab_size
        for token in ("pad_token_id", "cls_token_id", "mask_token_id"):
            if getattr(config, token, None) is not None:
                assert getattr(config, token) == getattr(tokenizer, token), token
        assert config.pad_token_id is not None


def test_padding_of_the_tokenizer_is_padding_of_the_model(tokenizer, models, few_cells):
    counts, genes = few_cells
    batch = tokenizer(counts, genes=genes, return_tensors="pt")
    config = next(iter(models.values())).config
    assert torch.equal(batch["input_ids"] == config.pad_token_id, batch["attention_mask"] == 0)
    assert int(batch["input_ids"].max()) < config.vocab_size


def test_genes_of_the_model_are_those_of_the_tokenizer(tokenizer, models):
    special = set(tokenizer.all_special_ids)
    genes = set(tokenizer.vocabulary.gene_token_ids.tolist())
    assert genes.isdisjoint(special)
    assert genes | special == set(range(tokenizer.vocab_size))
    for model in models.values():
        if hasattr(model.config, "num_genes"):
            assert len(genes) == model.config.num_genes


def test_background_values_fit(tokenizer, models):
    bases = [m.base_model for m in models.values() if hasattr(m.base_model, "set_background_values")]
    assert bool(bases) == hasattr(tokenizer, "background_values")
    for base in bases:
        base.set_background_values(tokenizer.background_values)
        assert torch.equal(base.background_values, torch.from_numpy(tokenizer.background_values))
