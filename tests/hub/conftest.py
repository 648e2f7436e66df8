from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch


MODELING = Path(__file__).parents[2] / "modeling"
MODEL_NAMES = sorted(path.stem.removeprefix("configuration_") for path in MODELING.glob("configuration_*.py"))


class Family(NamedTuple):
    """The tokenizer that is registered for a model, on the genes of the blood cells, and its model classes by name."""

    tokenizer: Any
    models: dict[str, Any]


def pytest_generate_tests(metafunc):
    """Run a test that takes `model_name` once for every configuration in `modeling`."""
    if "model_name" in metafunc.fixturenames:
        metafunc.parametrize("model_name", MODEL_NAMES)


@pytest.fixture(scope="session")
def model_names():
    return MODEL_NAMES


@pytest.fixture(scope="session")
def make_family(request, vocabulary):
    """Make a `Family` by the name of the model: every class of the configuration's auto_map, sized for the tokenizer.

    The configuration is the tiny one of the fixture `<model>_config` of tests/conftest.py.
    """
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    import cellglot.modeling

    def make(model_name: str) -> Family:
        tiny_config = request.getfixturevalue(f"{model_name}_config")
        config = tiny_config()
        registered = TOKENIZER_MAPPING[type(config)]
        kinds = registered if isinstance(registered, tuple) else (registered,)
        cells = getattr(config, "cell_config", config)
        longest = getattr(cells, "max_position_embeddings", None)
        options = {} if longest is None else {"model_max_length": longest}
        tokenizer = next(kind for kind in kinds if kind is not None).from_vocabulary(vocabulary, **options)
        config = tiny_config(vocab_size=tokenizer.vocab_size, num_labels=3)
        names = {path.split(".")[1] for kind, path in config.auto_map.items() if kind.startswith("AutoModel")}
        torch.manual_seed(0)
        models = {name: getattr(cellglot.modeling, name)(config).eval() for name in sorted(names)}
        return Family(tokenizer, models)

    return make


@pytest.fixture
def tiny_config(model_name, request):
    """Make the model's tiny configuration."""
    return request.getfixturevalue(f"{model_name}_config")


@pytest.fixture
def family(model_name, make_family):
    """The model's family, for this test alone."""
    return make_family(model_name)


@pytest.fixture
def tokenizer(family):
    return family.tokenizer


@pytest.fixture
def models(family):
    return family.models


@pytest.fixture(scope="session")
def few_cells(blood):
    """Dense counts of 12 blood cells and the names of their genes."""
    return blood.X[:12].toarray().astype("float32"), list(blood.var_names)
