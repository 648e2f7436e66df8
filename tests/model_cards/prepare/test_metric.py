import json

import evaluate
import pytest
from huggingface_hub import RepoCard

from cellglot.evaluation import metrics
from cellglot.model_cards.card.details import CardDetails, CardError
from cellglot.model_cards.prepare.metric import prepare_metric
from cellglot.model_cards.prepare.staging import Source
from cellglot.model_cards.publishing import publish


FOLDER = next(iter(metrics.__path__))
NAMES = (
    "cell_embedding_quality", "cell_type_classification", "cell_value_regression", "clustering_agreement",
    "marker_gene_auroc",
)  # fmt: skip


def publishable(tmp_path, name):
    from pathlib import Path

    target = tmp_path / name
    target.mkdir()
    return prepare_metric(Source(Path(FOLDER, name), f"owner/{name}", CardDetails(license="apache-2.0")), target)


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_is_staged_as_a_space(tmp_path, name):
    prepared = publishable(tmp_path, name)
    assert set(prepared.staged.files) == {"README.md", "app.py", "requirements.txt", f"{name}.py"}
    card = RepoCard((tmp_path / name / "README.md").read_text())
    assert card.data["sdk"] == "gradio" and "metric" in card.data["tags"]
    assert {"evaluate", "numpy"} <= set((tmp_path / name / "requirements.txt").read_text().split())
    shown = json.loads(card.text.split("```json\n")[1].split("```")[0])
    (call,) = prepared.job["calls"]
    assert shown == json.loads(json.dumps(evaluate.load(str(tmp_path / name)).compute(**call)))
    compile((tmp_path / name / "app.py").read_text(), "app.py", "exec")


@pytest.mark.usefixtures("no_process")
def test_a_metric_is_published_under_another_name(tmp_path):
    details = CardDetails(license="apache-2.0")
    done = publish(f"{FOLDER}/clustering_agreement", output=tmp_path / "my_agreement", details=details)
    assert done.kind == "metric" and done.compared >= 2
    assert "my_agreement.py" in done.files


def test_a_metric_without_licence(tmp_path):
    with pytest.raises(CardError, match=r"Missing: license, .*--license"):
        publish(f"{FOLDER}/clustering_agreement", output=tmp_path / "new", details=CardDetails())
