"""What a stranger saves in one process and loads in another: checks without cellglot (test_plain_models.py).

Run twice with the same folder: first with ``make``, which runs the checks of plain_training.py, too, then, in another
process, with ``load``.
"""

import gc
import json
import sys
import traceback
from pathlib import Path


sys.modules["cellglot"] = None  # an import of it fails

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from plain_models import MODELS, SEQUENCES, TOKENS  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


CHECKS = {}
HEADS = [plain for plain in MODELS if plain.auto_class in (SEQUENCES, TOKENS)]
TASKS = {SEQUENCES: "SEQ_CLS", TOKENS: "TOKEN_CLS", "AutoModel": "FEATURE_EXTRACTION"}


def check(models):
    """Note a check, and the models that it is run on."""

    def note(function):
        CHECKS[function.__name__] = function, models
        return function

    return note


def options(plain):
    return {"num_labels": 3} if plain in HEADS else {}


def answer(model, plain):
    batch = plain.batch(labelled=False)
    if plain.labels == "expression":
        batch["query_ids"] = plain.batch()["query_ids"]
    with torch.no_grad():
        return model.eval()(**batch)[plain.prediction].detach().clone()


def same(found, folder):
    torch.testing.assert_close(found, load_file(folder / "answer.safetensors")["answer"], rtol=1e-5, atol=1e-6)


@check(MODELS)
def a_saved_model(plain, root, folder, making):
    if making:
        model = plain.load(root, **options(plain))
        model.save_pretrained(folder)
        save_file({"answer": answer(model, plain)}, folder / "answer.safetensors")
    else:
        kind = getattr(transformers, plain.auto_class)
        same(answer(kind.from_pretrained(folder, trust_remote_code=True), plain), folder)


@check([plain for plain in MODELS if plain.auto_class in TASKS])
def an_adapter_of_peft(plain, root, folder, making):
    if making:
        settings = peft.LoraConfig(task_type=TASKS[plain.auto_class], target_modules=["q_proj", "v_proj"], r=2)
        model = peft.get_peft_model(plain.load(root, **options(plain)), settings)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(0.1 * torch.randn_like(weight))
        model.save_pretrained(folder)
        save_file({"answer": answer(model, plain)}, folder / "answer.safetensors")
        return
    kind = {SEQUENCES: peft.AutoPeftModelForSequenceClassification, TOKENS: peft.AutoPeftModelForTokenClassification}
    auto = kind.get(plain.auto_class, peft.AutoPeftModelForFeatureExtraction)
    same(answer(auto.from_pretrained(folder, trust_remote_code=True, **options(plain)), plain), folder)


@check([plain for plain in MODELS if plain.auto_class == "AutoModel"])
def a_fingerprint_of_datasets(plain, root, folder, making):
    """What is computed with tokenizer or pipeline is found in the next run: they stay the same, also after a call."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{root}/{plain.model}", trust_remote_code=True)
    pipe = transformers.pipeline("cell-embedding", model=f"{root}/{plain.model}", trust_remote_code=True)
    genes = [token for token in tokenizer.get_vocab() if not token.startswith("<")]
    data = Dataset.from_dict({"counts": [[1.0, 2.0, 3.0], [0.0, 5.0, 1.0]]})

    def tokens(rows):
        return tokenizer(rows["counts"], genes=genes[:3])

    def embedded(rows):
        return {"embedding": pipe(torch.tensor(rows["counts"]), genes=genes[:3])}

    prints = {}
    for function in (tokens, embedded):
        first = data.map(function, batched=True)
        assert first._fingerprint == data.map(function, batched=True)._fingerprint, "a call changes it"
        prints[function.__name__] = first._fingerprint
    assert tokenizer.last_report.cells == 2
    if making:
        (folder / "prints.json").write_text(json.dumps(prints))
    else:
        assert json.loads((folder / "prints.json").read_text()) == prints


def main(root, making):
    """Run checks on every model; give what failed as {check: {model: error}}."""
    failed = {}
    for name, (function, models) in CHECKS.items():
        failed[name] = {}
        for plain in models:
            folder = Path(root, name, f"{plain.model}-{plain.auto_class}")
            folder.mkdir(parents=True, exist_ok=True)
            try:
                function(plain, root, folder, making)
            except Exception:  # noqa: BLE001, the table shows all that fail
                failed[name][f"{plain.model} {plain.auto_class}"] = traceback.format_exc(limit=-4)
    return failed


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, step = sys.argv[1:]
    failed = {}
    if step == "make":  # in the same process: what it imports takes longer than what it does
        import plain_training

        gc.collect()
        gc.freeze()  # modules: each training collects garbage
        failed = plain_training.main()
    print(json.dumps(failed | main(folder, step == "make")))
