"""What a stranger's training does with every model: checks for a process without cellglot (plain_sharing.py)."""

import copy
import sys
import tempfile
import traceback


sys.modules["cellglot"] = None  # an import of it fails

import numpy as np  # noqa: E402
import torch  # noqa: E402
from plain_models import CELLS, MODELS, SEQUENCES, TOKENS  # noqa: E402
from transformers import Trainer, TrainingArguments  # noqa: E402


ROOT, CHECKS, LOADED = sys.argv[1], {}, {}
WITH_LOSS = [plain for plain in MODELS if plain.labels]
HEADS = [plain for plain in MODELS if plain.auto_class in (SEQUENCES, TOKENS)]


def check(models):
    """Note a check, and the models that it is run on."""

    def note(function):
        CHECKS[function.__name__] = function, models
        return function

    return note


def options(plain, **more):
    """Three classes where there are classes; further options of loading."""
    return ({"num_labels": 3} if plain in HEADS else {}) | more


def load(plain, **given):
    """Load a model with the options of `options`; a copy where the same was loaded before, as random numbers go on."""
    key = plain, repr(sorted(given.items()))
    if key not in LOADED:
        LOADED[key] = plain.load(ROOT, **options(plain, **given)), torch.get_rng_state()
    model, state = LOADED[key]
    torch.set_rng_state(state)
    return copy.deepcopy(model)


def rows(batch):
    return [{name: values[i] for name, values in batch.items()} for i in range(len(batch["input_ids"]))]


def trainer(model, data, **arguments):
    chosen = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"} | arguments
    more = {name: chosen.pop(name) for name in ("compute_metrics",) if name in chosen}
    settings = TrainingArguments(tempfile.mkdtemp(), **chosen)
    return Trainer(model, settings, train_dataset=data, eval_dataset=data, **more)


def cut(batch, start, stop):
    return {name: values[start:stop] for name, values in batch.items()}


def close(a, b, what, tolerance=1e-4):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    assert a.shape == b.shape, f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
    assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), f"{what}: {a.flatten()[:3]} and {b.flatten()[:3]}"


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@check(WITH_LOSS)
def evaluates_with_its_own_loss_and_prediction(plain):
    model, batch, seen = load(plain).eval(), plain.batch(), {}
    with torch.no_grad():
        direct = model(**batch)

    def metrics(given):
        seen.update(predictions=given.predictions, labels=given.label_ids)
        return {"seen": 1.0}

    found = trainer(model, rows(batch), compute_metrics=metrics, per_device_eval_batch_size=CELLS).evaluate()
    assert found["eval_seen"] == 1.0
    drawn = "hard_negatives" in direct  # anew in every call
    close(found["eval_loss"], direct.loss, "evaluated loss", 1e-2 if drawn else 1e-4)
    assert isinstance(seen["predictions"], np.ndarray), [np.shape(part) for part in seen["predictions"]]
    close(seen["predictions"], direct[plain.prediction], "predictions")
    close(seen["labels"], batch["labels"], "labels")
    unlabelled = trainer(model, None).predict(rows(plain.batch(labelled=plain.labels == "expression")))
    assert len(unlabelled.predictions) == CELLS


@check(WITH_LOSS)
def logs_the_loss_and_gradients_of_one_large_batch(plain):
    """Whatever the steps are accumulated of; for a loss of several parts their mean by labels."""
    batch = plain.batch(8)
    several = plain.labels == "objectives"
    model = load(plain).train()
    parts = [cut(batch, 2 * i, 2 * i + 2) for i in range(4)] if several else [batch]
    items = (batch["labels"] != -100).sum()
    expected = 0.0
    torch.manual_seed(5)
    for part in parts:
        loss = model(**part).loss * ((part["labels"] != -100).sum() / items)
        loss.backward()
        expected += float(loss)
    wanted = gradients(model)
    for steps in (4,) if several else (1, 4):
        again = load(plain)
        arguments = {"max_steps": 1, "learning_rate": 0.0, "logging_steps": 1, "max_grad_norm": 0.0}
        run = trainer(
            again, rows(batch), **arguments, per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps, train_sampling_strategy="sequential", seed=5,
        )  # fmt: skip
        found = {}
        run.optimizer = run.create_optimizer()
        run.optimizer.step = lambda *_, found=found, again=again: found.update(gradients(again))
        run.train()
        close(run.state.log_history[0]["loss"], expected, f"logged loss of {steps} batches", 2e-4)
        if not several:  # hard negatives and dropout are drawn
            for name, gradient in wanted.items():
                close(found[name], gradient, f"gradient of {name} over {steps} batches")


@check(WITH_LOSS)
def gives_every_weight_a_gradient_in_ddp(plain):
    model = load(plain)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    batches = [plain.batch()]
    if plain.labels == "objectives":
        batches.append({name: values for name, values in plain.batch().items() if name != "cell_type_ids"})
    if plain.model == "exceiver" and plain.labels == "cells":
        ids = batches[0]["input_ids"][:, :3]
        batches.append(batches[0] | {"query_ids": ids, "expression_labels": torch.ones(ids.shape)})
    for batch in batches * 2:
        wrapped(**batch).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@check(MODELS)
def works_where_weights_are_offloaded(plain):
    from accelerate import cpu_offload

    modes = ({}, {"unexpressed_genes": "bias"}) if plain.model == "exceiver" else ({},)
    for mode in modes:
        model, batch = load(plain, **mode).eval(), plain.batch()
        with torch.no_grad():
            expected = model(**batch)[plain.prediction]
            offloaded = cpu_offload(load(plain, **mode).eval(), "cpu")
            close(offloaded(**batch)[plain.prediction], expected, f"offloaded {mode}", 1e-5)
        model.save_pretrained(folder := tempfile.mkdtemp())
        places = {"device_map": "auto", "max_memory": {"cpu": "6KB"}, "offload_folder": tempfile.mkdtemp()}
        on_disk = type(model).from_pretrained(folder, **places).eval()
        assert "disk" in on_disk.hf_device_map.values(), on_disk.hf_device_map
        with torch.no_grad():
            close(on_disk(**batch)[plain.prediction], expected, f"on disk {mode}", 1e-5)


@check(MODELS)
def works_in_inference_mode_between_steps(plain):
    modes = ({}, {"unexpressed_genes": "bias"}) if plain.model == "exceiver" else ({},)
    for mode in modes:
        model, batch = load(plain, **mode), plain.batch()
        for _ in range(2):
            output = model.train()(**batch)
            (output.loss if plain.labels else output.pooler_output.square().sum()).backward()
            with torch.no_grad():
                expected = model.eval()(**batch)[plain.prediction]
            with torch.inference_mode():
                close(model(**batch)[plain.prediction], expected, f"inference {mode}", 1e-5)
            with torch.no_grad():
                close(model(**batch)[plain.prediction], expected, f"afterwards {mode}", 1e-5)
        with torch.inference_mode():
            inside = plain.load(ROOT, **options(plain, **mode)).eval()
            assert inside(**batch)[plain.prediction].isfinite().all()


@check(MODELS)
def keeps_its_numbers_where_tokens_are_added(plain):
    model, batch = load(plain).eval(), plain.batch()
    size = model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        before = model(**batch)[plain.prediction]
        try:
            model.resize_token_embeddings(size + 3)
        except NotImplementedError as error:
            assert plain.model == "exceiver" and "vocab_size" in str(error)
            return
        after = model(**batch)[plain.prediction]
        if plain.labels == "tokens":
            assert after.shape[-1] == before.shape[-1] + 3
            after = after[..., :size]
        close(after, before, "resized", 1e-5)
        assert model.config.vocab_size == size + 3
        model.save_pretrained(folder := tempfile.mkdtemp())
        again = type(model).from_pretrained(folder).eval()
        close(again(**batch)[plain.prediction][..., : before.shape[-1]], before, "loaded again", 1e-5)
    try:
        model.resize_token_embeddings(size - 1)
    except NotImplementedError as error:
        assert "<cls>" in str(error)
    else:
        raise AssertionError("<cls> was cut off")


@check(HEADS)
def knows_kinds_of_problems_as_bert_does(plain):
    torch.manual_seed(1)
    batch, given = plain.batch(labelled=False), {}
    shape = batch["input_ids"].shape if plain.auto_class == TOKENS else (CELLS,)
    values = torch.randn(shape)
    one = plain.load(ROOT, num_labels=1).eval()
    output = one(**batch, labels=values)
    close(output.loss, torch.nn.functional.mse_loss(output.logits.squeeze(-1), values), "regression")
    assert one.config.problem_type == "regression"
    two = plain.load(ROOT, num_labels=2, problem_type="regression").eval()
    output = two(**batch, labels=torch.stack([values, -values], dim=-1))
    close(
        output.loss, torch.nn.functional.mse_loss(output.logits, torch.stack([values, -values], dim=-1)), "two values"
    )
    several = (torch.rand(*shape, 4) > 0.5).float()
    for given in ({"problem_type": "multi_label_classification"}, {}):
        many = plain.load(ROOT, num_labels=4, **given).eval()
        output = many(**batch, labels=several)
        expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, several)
        close(output.loss, expected, "several classes")
        assert many.config.problem_type == "multi_label_classification"
    classes = torch.randint(0, 4, shape)
    single = plain.load(ROOT, num_labels=4).eval()
    output = single(**batch, labels=classes)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, -2), classes.flatten())
    close(output.loss, expected, "one class")
    try:
        two(**batch, labels=values)
    except ValueError as error:
        assert "problem_type" in str(error)
    else:
        raise AssertionError("one value was taken for two")


@check(HEADS)
def drops_what_former_labels_meant(plain):
    former = plain.load(ROOT, id2label={0: "B cell", 1: "T cell", 2: "other"}, label2id={"B cell": 0})
    former.config.label_cl_ids = {"B cell": "CL:0000236"}
    former.config.problem_type = "single_label_classification"
    former.save_pretrained(folder := tempfile.mkdtemp())
    same = type(former).from_pretrained(folder, num_labels=3).config
    assert same.label_cl_ids == {"B cell": "CL:0000236"} and same.id2label[1] == "T cell"
    for number in (1, 5):
        other = type(former).from_pretrained(folder, num_labels=number, ignore_mismatched_sizes=True)
        assert other.config.label_cl_ids is None and set(other.config.id2label.values()) == {
            f"LABEL_{i}" for i in range(number)
        }
    labels = torch.zeros(CELLS) if plain.auto_class == SEQUENCES else torch.zeros(plain.batch()["input_ids"].shape)
    one = type(former).from_pretrained(folder, num_labels=1, ignore_mismatched_sizes=True).eval()
    output = one(**plain.batch(labelled=False), labels=labels)
    close(output.loss, output.logits.square().mean(), "regression of a former classifier")


@check(MODELS)
def runs_in_low_precision_and_by_other_attention(plain):
    batch = plain.batch(labelled=False) | (
        {"query_ids": plain.batch()["query_ids"]} if plain.labels == "expression" else {}
    )
    expected = load(plain).eval()(**batch)[plain.prediction]
    eager = load(plain, attn_implementation="eager").eval()
    close(eager(**batch)[plain.prediction], expected, "eager")
    for dtype in (torch.bfloat16, torch.float16):
        low = load(plain, dtype=dtype).eval()
        values = {n: v.to(dtype) if v.is_floating_point() else v for n, v in batch.items()}
        assert low(**values)[plain.prediction].isfinite().all(), dtype
    model = load(plain).train()
    model.gradient_checkpointing_enable()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**plain.batch())
    (output.loss if plain.labels else output.pooler_output.float().square().sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@check([plain for plain in WITH_LOSS if plain.prediction == "logits"])
def learns_with_smoothed_labels(plain):
    model, batch = load(plain), plain.batch()
    run = trainer(model, rows(batch), label_smoothing_factor=0.1, max_steps=1, logging_steps=1)
    run.train()
    assert np.isfinite(run.state.log_history[0]["loss"])
    assert np.isfinite(run.evaluate()["eval_loss"])


def main():
    """Run checks on every model; give what failed as {check: {model: error}}."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    failed = {}
    for name, (function, models) in CHECKS.items():
        failed[name] = {}
        for plain in models:
            try:
                function(plain)
            except Exception:  # noqa: BLE001, the table shows all that fail
                failed[name][f"{plain.model} {plain.auto_class}"] = traceback.format_exc(limit=-4)
    torch.distributed.destroy_process_group()
    return failed
