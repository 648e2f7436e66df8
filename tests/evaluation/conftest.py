import pytest
import torch


@pytest.fixture(scope="session")
def model_folders(corpus, tmp_path_factory):
    """A model and a classifier of three classes with random weights and the tokenizer of the blood cells, saved."""
    from cellglot.modeling import ExceiverConfig, ExceiverForSequenceClassification, ExceiverModel

    tokenizer = corpus.tokenizer()
    torch.manual_seed(0)
    folders = {}
    for name, model_class in (("model", ExceiverModel), ("classifier", ExceiverForSequenceClassification)):
        config = ExceiverConfig(
            vocab_size=tokenizer.vocab_size,
            gene_embedding_size=8,
            hidden_size=8,
            num_latents=6,
            num_hidden_layers=1,
            intermediate_size=16,
        )
        config.num_labels = 3
        folders[name] = tmp_path_factory.mktemp("models") / name
        model_class(config).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders
