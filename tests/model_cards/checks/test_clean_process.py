import shutil

import numpy as np
import pytest
import torch

from cellglot.model_cards.checks.clean_process import CleanProcessError, run_in_clean_process
from cellglot.modeling import ExceiverForSequenceClassification
from cellglot.tokenization import ExceiverTokenizer


def test_a_process_without_cellglot_gives_the_same_numbers(model_folders, blood):
    folder, some = model_folders["classifier"], blood[:5]
    values, facts = run_in_clean_process(
        folder, "AutoModelForSequenceClassification", "logits", some.X.toarray(), list(blood.var_names)
    )
    assert facts["module"] == "transformers_modules"
    assert (facts["model"], facts["tokenizer"]) == ("ExceiverForSequenceClassification", "ExceiverTokenizer")
    batch = ExceiverTokenizer.from_pretrained(folder)(some, return_tensors="pt")
    with torch.no_grad():
        expected = ExceiverForSequenceClassification.from_pretrained(folder)(**batch).logits.numpy()
    assert np.allclose(values, expected, atol=1e-5)


def test_a_folder_without_its_code_does_not_load(model_folders, blood, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folders["model"], folder)
    (folder / "modeling_exceiver.py").unlink()
    with pytest.raises(CleanProcessError, match=r"does not load in a clean process:\n(.|\n)*modeling_exceiver"):
        run_in_clean_process(folder, "AutoModel", "pooler_output", blood[:2].X.toarray(), list(blood.var_names))
