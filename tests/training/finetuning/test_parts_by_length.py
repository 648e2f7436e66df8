"""A step of fine-tuning in parts of cells of similar length: the same loss and gradients, without the padding."""

import numpy as np
import pytest
import torch

from cellglot.modeling.configuration_exceiver import ExceiverConfig
from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.modeling_exceiver import ExceiverForSequenceClassification
from cellglot.modeling.modeling_sccello import ScCelloForSequenceClassification
from cellglot.training.finetuning.trainer import parts_by_length


GENES, CLASSES, CELLS = 60, 5, 40


def cells_of(lengths, pad, values):
    """A batch of cells with these numbers of genes."""
    random = np.random.default_rng(3)
    ids = np.full((len(lengths), max(lengths)), pad, dtype=np.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = random.permutation(GENES)[:length]
    ids = torch.from_numpy(ids)
    batch = {"input_ids": ids, "attention_mask": (ids != pad).long()}
    if values:
        batch["expression_values"] = torch.from_numpy(random.random(ids.shape).astype(np.float32))
    return batch


@pytest.mark.parametrize("labels", ["classes", "sets"])
@pytest.mark.parametrize("kind", ["exceiver", "sccello"])
def test_parts_give_the_loss_and_the_gradients_of_the_batch(kind, labels):
    torch.manual_seed(0)
    lengths = [3 + i % 5 for i in range(CELLS - 4)] + [50, 41, 33, 48]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    head = {"num_labels": CLASSES, "problem_type": "single_label_classification"}
    if kind == "exceiver":
        config = ExceiverConfig(vocab_size=GENES + 2, gene_embedding_size=8, num_latents=3, **sizes, **head)
        model = ExceiverForSequenceClassification(config)
        model.exceiver.set_background_values(torch.zeros(GENES))
        batch = cells_of(lengths, GENES, True)
    else:
        config = ScCelloConfig(
            vocab_size=GENES + 3,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            pad_token_id=GENES,
            **sizes,
            **head,
        )  # fmt: skip
        model = ScCelloForSequenceClassification(config)
        batch = cells_of(lengths, GENES, False)
    model.eval()  # without dropout
    if labels == "classes":
        batch["labels"] = torch.arange(CELLS) % CLASSES
        batch["labels"][:7] = -100
        items = CELLS - 7
    else:
        batch["labels"] = torch.rand(CELLS, CLASSES) > 0.6
        batch["labels"][:, 0] = True
        items = CELLS * CLASSES
    parts = parts_by_length(batch)
    assert [len(p["labels"]) for p in parts] == [16, 16, 8] and parts[0]["input_ids"].shape[1] < 8
    assert sum(int(p["attention_mask"].sum()) for p in parts) == sum(lengths)
    found = []
    for given in ([batch], parts):
        model.zero_grad()
        loss = sum(model(**part, num_items_in_batch=torch.tensor(items)).loss for part in given)
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[1][0], found[0][0])
    for part, whole in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(part, whole, atol=1e-6, rtol=1e-4)


def test_batches_with_little_padding_stay_whole():
    even = cells_of([20 + i % 3 for i in range(CELLS)], GENES, False)
    few = cells_of([2] * 10 + [50], GENES, False)
    for batch in (even, few):
        (only,) = parts_by_length(batch)
        assert only["input_ids"].shape == batch["input_ids"].shape
