"""Pipelines travel with the models: where cellglot cannot be imported they give the same numbers."""

import json

import numpy as np
import pytest
from transformers import pipeline

from cellglot.modeling.annotation_calibration import AnnotationCalibration, EmbeddingReference


# What a stranger lacks: for an adapter there is PEFT, which takes accelerate.
OURS = ["cellglot", "anndata", "h5py", "matplotlib", "pandas", "pyarrow", "scanpy", "sklearn", "typer", "umap", "zarr"]
MORE = ["accelerate", "datasets", "peft", "scipy"]

STRANGER = """
import json
import numpy as np, torch, transformers
torch.set_num_threads(1)
stored = np.load("cells.npz")

class Table(dict):
    columns = ()

class Cells:  # an AnnData to those who look at attributes
    X, var, var_names = stored["counts"], Table(), stored["genes"]
    obs_names = [f"cell {number}" for number in range(len(X))]

results = []
for task, folder, options in arguments:
    made = transformers.pipeline(task, model=folder, trust_remote_code=True, device="cpu", **options)
    found = made(Cells())
    one = made({gene: int(count) for gene, count in zip(Cells.var_names, Cells.X[0]) if count})
    modules = {type(part).__module__.split(".")[0] for part in (made, made.model, made.tokenizer)}
    results.append([np.asarray(found).tolist(), np.asarray(one).tolist(), sorted(modules)])
    if options == {} and task == "cell-type-annotation":
        made.save_pretrained(f"{folder}-again")
        again = transformers.pipeline(task, model=f"{folder}-again", trust_remote_code=True, device="cpu")
        np.testing.assert_array_equal(np.asarray(again(Cells())), np.asarray(found))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def as_stranger(stranger, tmp_path_factory, few_cells):
    """Run jobs, (task, folder, options) each, in a clean process."""

    def run(jobs, blocked):
        counts, genes = few_cells
        folder = tmp_path_factory.mktemp("stranger")
        np.savez(folder / "cells.npz", counts=counts, genes=np.array(genes))
        return json.loads(stranger(STRANGER, *jobs, lacking=blocked, folder=folder).splitlines()[-1])

    return run


def here(jobs, few_cells):
    """The same in this process, with cellglot: no trust is asked for."""
    counts, genes = few_cells
    made = [pipeline(task, model=folder, device="cpu", **options) for task, folder, options in jobs]
    assert all(type(p).__module__.startswith("cellglot.") for p in made)
    return [p(counts, genes=genes) for p in made]


def check(jobs, results, expected):
    for (_, folder, _), (found, one, modules), here_found in zip(jobs, results, expected, strict=True):
        assert modules == ["transformers_modules"], folder
        if isinstance(here_found, np.ndarray):
            np.testing.assert_allclose(np.array(found, dtype=np.float32), here_found, atol=1e-6)
            np.testing.assert_allclose(np.array(one, dtype=np.float32), here_found[0], atol=1e-6)
        else:
            assert [f["label"] for f in found] == [f["label"] for f in here_found]
            np.testing.assert_allclose([f["score"] for f in found], [f["score"] for f in here_found], atol=1e-6)
            assert found[0].keys() == here_found[0].keys()
            assert one["label"] == found[0]["label"] and one["score"] == pytest.approx(found[0]["score"], abs=1e-6)


def calibrate(folder, model, few_cells):
    """Put a calibration into a model's folder; it keeps what the model embeds of some cells."""
    counts, genes = few_cells
    x = pipeline("cell-embedding", model=str(folder), device="cpu")(counts, genes=genes)
    reference = EmbeddingReference(x.mean(0), np.eye(x.shape[1], dtype=np.float32)[:, :8], x[:, :8] - x.mean(0)[:8])
    classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
    AnnotationCalibration(
        classes=classes, cell_types=["CL:0000084", None, "CL:0000236"], terms=["CL:0000542"],
        term_names=["lymphocyte"], below=np.array([[True, False, True]]), temperature=1.5,
        levels=np.array([0.8, 0.9]), set_thresholds=np.array([0.5, 0.7]), reference=reference,
        distances=np.linspace(0, 2, 9, dtype=np.float32),
    ).save(folder)  # fmt: skip


@pytest.fixture(scope="module")
def jobs(model_names, make_family, few_cells, tmp_path_factory):
    """Pipelines of the models of each family, by its name; classifiers have a calibration, too."""
    found = {name: [] for name in model_names}
    for model_name in model_names:
        family = make_family(model_name)
        for name, model in family.models.items():
            classifies = name.endswith("ForSequenceClassification")
            if not classifies and name != model.config.auto_map["AutoModel"].split(".")[1]:
                continue
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            family.tokenizer.save_pretrained(folder)
            found[model_name].append(["cell-embedding", str(folder), {}])
            if classifies:
                calibrate(folder, model, few_cells)
                found[model_name].append(["cell-type-annotation", str(folder), {}])
    return found


@pytest.fixture(scope="module")
def results(jobs, as_stranger):
    """What the pipelines of all families give in one clean process, by the name of the family."""
    given = iter(as_stranger([job for of_one in jobs.values() for job in of_one], [*OURS, *MORE]))
    return {model_name: [next(given) for _ in of_one] for model_name, of_one in jobs.items()}


def test_pipelines_give_the_same_numbers_without_cellglot(results, jobs, model_name, few_cells):
    check(jobs[model_name], results[model_name], here(jobs[model_name], few_cells))


def test_annotation_by_texts_and_by_an_adapter(as_stranger, cell_text_folder, gene_classifiers, few_cells):
    given = {"candidate_labels": {"B cell": ["makes antibodies", "b"], "T cell": "kills"}, "alpha": 0.3}
    adapter = {"adapter": str(gene_classifiers["adapter"])}
    jobs = [
        ["cell-type-annotation", str(cell_text_folder), given],
        ["cell-type-annotation", str(gene_classifiers["base"]), adapter],
    ]
    check(jobs, as_stranger(jobs, OURS), here(jobs, few_cells))


def test_folders_name_their_pipelines(models, tmp_path):
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        recorded = json.loads((tmp_path / name / "config.json").read_text()).get("custom_pipelines")
        if name.endswith("TextModel"):
            assert recorded is None
            continue
        head = next((h for h in ("SequenceClassification", "TokenClassification") if name.endswith(f"For{h}")), None)
        own = [f"AutoModelFor{head}"]  # of LangCell's heads, without projection into the space of texts, everything
        assert recorded["cell-embedding"]["pt"] == (own if head and "LangCell" in name else ["AutoModel"])
        if head == "SequenceClassification":
            assert recorded["cell-type-annotation"]["pt"] == own
        for made in recorded.values():
            assert (tmp_path / name / f"{made['impl'].split('.')[0]}.py").exists()
        assert type(model.config).from_pretrained(tmp_path / name).custom_pipelines == {}  # cellglot's are registered
