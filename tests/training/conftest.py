import os

import datasets
import pytest

from cellglot.training.config import configs_folder, load_config


SIZES = [
    "trainer.per_device_train_batch_size=160",  # 552 training cells: 4 steps an epoch, the last of 72 cells
    "trainer.max_steps=5",
    "trainer.logging_steps=1",
    "trainer.eval_strategy=no",
    "trainer.save_strategy=no",
    "trainer.use_cpu=true",
]


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Keep what `datasets` caches in a temporary folder, in this process and in those started by tests."""
    folder = str(tmp_path_factory.mktemp("datasets"))
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    patch.setitem(os.environ, "HF_DATASETS_CACHE", folder)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny_training():
    """Make the smallest configuration, with some settings changed; the settings alone with `as_text`."""

    def make(*changes, as_text=False):
        settings = SIZES + list(changes)
        return settings if as_text else load_config(configs_folder() / "exceiver_tiny.yaml", settings)

    return make


@pytest.fixture(scope="session")
def pretrained(corpus, tiny_training, tmp_path_factory):
    """A model after five steps on the blood cells without a pause, with dropout."""
    from cellglot.training.pretraining.pretrain import pretrain

    folder = tmp_path_factory.mktemp("pretrained") / "model"
    pretrain(tiny_training("model.hidden_dropout=0.1", "trainer.eval_strategy=epoch"), corpus, folder)
    return folder
