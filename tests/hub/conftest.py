from pathlib import Path

import pytest
import torch


MODELING = Path(__file__).parents[2] / "modeling"


def pytest_generate_tests(metafunc):
    """Run a test that takes `model_name` once for every configuration in `modeling`."""
    if "model_name" in metafunc.fixturenames:
        names = sorted(p.stem.removeprefix("configuration_") for p in MODELING.glob("configuration_*.py"))
        metafunc.parametrize("model_name", names)


@pytest.fixture
def tokenizer(model_name, vocabulary, tiny_config):
    """The tokenizer that is registered for the model, on the genes of the blood cells."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    config = tiny_config()
    registered = TOKENIZER_MAPPING[type(config)]
    kinds = registered if isinstance(registered, tuple) else (registered,)
    cells = getattr(config, "cell_config", config)
    longest = getattr(cells, "max_position_embeddings", None)
    options = {} if longest is None else {"model_max_length": longest}
    return next(kind for kind in kinds if kind is not None).from_vocabulary(vocabulary, **options)


@pytest.fixture
def tiny_config(model_name, request):
    """Make the model's tiny configuration, from the fixture `<model>_config` of tests/conftest.py."""
    return request.getfixturevalue(f"{model_name}_config")


@pytest.fixture
def models(model_name, tiny_config, tokenizer):
    """Every model class that the configuration's auto_map names, by its name, sized for the tokenizer."""
    import cellglot.modeling

    config = tiny_config(vocab_size=tokenizer.vocab_size, num_labels=3)
    names = {path.split(".")[1] for kind, path in config.auto_map.items() if kind.startswith("AutoModel")}
    torch.manual_seed(0)
    return {name: getattr(cellglot.modeling, name)(config).eval() for name in sorted(names)}


@pytest.fixture
def few_cells(blood):
    """Dense counts of 12 blood cells and the names of their genes."""
    return blood.X[:12].toarray().astype("float32"), list(blood.var_names)
