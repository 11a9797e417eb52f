from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from mpq.errors import DataError
from mpq.measures import cross_entropy, kl_divergence
from mpq.modeling.scoring import Scorer, make_batches


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.5,
        )
    ).eval()


@pytest.fixture(scope="module")
def windows():
    return torch.randint(50, (7, 12), generator=torch.Generator().manual_seed(1))


def noisy(model, size=0.3):
    """A context that moves one weight, as a plan would."""

    @contextmanager
    def context():
        weight = model.model.layers[0].mlp.down_proj.weight
        before = weight.data
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        weight.data = before + size * noise
        try:
            yield
        finally:
            weight.data = before

    return context


def direct_scores(model, windows, context):
    """Window by window, in float64, with torch's own functions."""
    rows = []
    for tokens in windows:
        with torch.no_grad():
            reference = model(tokens[None]).logits[0, :-1].double()
            with context():
                logits = model(tokens[None]).logits[0, :-1].double()
        kl = torch.nn.functional.kl_div(
            logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
        )
        loss = torch.nn.functional.cross_entropy(logits, tokens[1:])
        hits = (logits.argmax(-1) == tokens[1:]).double().mean()
        rows.append(torch.stack([kl.sum(-1).mean(), loss, hits]))
    return torch.stack(rows, dim=1)


def teacher_bytes(positions, *, dtype_bytes):
    """Probabilities of 50 classes, and two float32 numbers."""
    return positions * (50 * dtype_bytes + 8)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-3)], ids=["exact", "rounded"]
)
@pytest.mark.parametrize("num_cached", [3, 2, 0])
def test_scores_are_torchs_whatever_is_cached(llama, windows, num_cached, dtype, rtol):
    cap = num_cached * teacher_bytes(3 * 11, dtype_bytes=dtype.itemsize)
    scorer = Scorer(llama, windows, batch_size=3, teacher_dtype=dtype, max_cache_bytes=cap)
    for _ in range(2):  # the second score meets a full cache
        scores = scorer.score(noisy(llama))
        expected = direct_scores(llama, windows, noisy(llama))
        assert expected[0].min() > 1e-3
        torch.testing.assert_close(scores.kl, expected[0], rtol=rtol, atol=1e-6)
        torch.testing.assert_close(scores.loss, expected[1], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(scores.accuracy, expected[2])


def test_the_cache_saves_forwards_and_keeps_its_cap(llama, windows):
    batch_bytes = teacher_bytes(3 * 11, dtype_bytes=2)
    forwards = {}
    for name, cap in (("all", 1 << 30), ("first", batch_bytes), ("none", 0)):
        scorer = Scorer(llama, windows, batch_size=3, max_cache_bytes=cap)
        scorer.score(nullcontext)
        before = scorer.num_forwards
        scorer.score(nullcontext)
        forwards[name] = scorer.num_forwards - before
    assert forwards == {"all": 3, "first": 5, "none": 6}
    assert scorer.forward_seconds > 0


def test_the_model_itself_has_no_divergence(llama, windows):
    scores = Scorer(llama, windows, batch_size=4).score(nullcontext)
    assert torch.equal(scores.kl, torch.zeros(7, dtype=torch.float64))


class _Deaf(torch.nn.Module):
    """A model that cannot be told which logits are wanted."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids)


@pytest.mark.parametrize("wrap", [lambda model: model, _Deaf], ids=["told", "not told"])
@pytest.mark.parametrize("judge_every", [2, 4, 11])
def test_every_nth_position_is_judged(llama, windows, judge_every, wrap):
    model = wrap(llama)
    scorer = Scorer(
        model, windows, batch_size=3, judge_every=judge_every, teacher_dtype=torch.float32
    )
    scores = scorer.score(noisy(llama))
    with torch.no_grad():
        reference = llama(windows).logits[:, judge_every - 1 : -1 : judge_every]
        with noisy(llama)():
            logits = llama(windows).logits[:, judge_every - 1 : -1 : judge_every]
    labels = windows[:, judge_every::judge_every]
    assert labels.shape[1] == 11 // judge_every
    torch.testing.assert_close(
        scores.kl, kl_divergence(logits, reference).double().mean(1), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        scores.loss, cross_entropy(logits, labels).double().mean(1), rtol=1e-4, atol=1e-6
    )


def test_unwanted_logits_are_not_computed(llama, windows):
    shapes = []
    hook = llama.lm_head.register_forward_hook(lambda *args: shapes.append(args[2].shape))
    Scorer(llama, windows, batch_size=7, judge_every=4).score(nullcontext)
    hook.remove()
    assert set(shapes) == {(7, 2, 50)}


@pytest.mark.parametrize(("first", "last"), [(0, 3), (3, 6), (2, 5), (6, None), (0, 7)])
def test_a_range_is_a_part_of_the_whole_to_the_bit(llama, windows, first, last):
    scorer = Scorer(llama, windows, batch_size=3)
    whole = scorer.score(noisy(llama))
    part = Scorer(llama, windows, batch_size=3).score(noisy(llama), first=first, last=last)
    assert torch.equal(part.kl, whole.kl[first:last])
    assert torch.equal(part.loss, whole.loss[first:last])
    assert torch.equal(part.accuracy, whole.accuracy[first:last])


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (0, 8), (3, 3), (7, None)])
def test_a_range_that_is_not_there_is_refused(llama, windows, first, last):
    scorer = Scorer(llama, windows, batch_size=3)
    with pytest.raises(DataError, match="there are 7, numbered from 0"):
        scorer.score(nullcontext, first=first, last=last)


def test_windows_without_a_next_token_are_refused():
    with pytest.raises(DataError, match=r"windows have the shape \(3, 1\)"):
        make_batches(torch.zeros(3, 1, dtype=torch.long), 2)
    for judge_every in (0, 4):
        with pytest.raises(DataError, match=rf"every {judge_every}\. position is judged"):
            make_batches(torch.zeros(3, 4, dtype=torch.long), 2, judge_every=judge_every)
    with pytest.raises(DataError, match="an example has one"):
        make_batches(examples(None), 2, judge_every=2)
    with pytest.raises(DataError, match="batch_size is 0"):
        make_batches(torch.zeros(3, 4, dtype=torch.long), 0)
    with pytest.raises(DataError, match="no example"):
        make_batches(SimpleNamespace(input_ids=torch.zeros(0, 4)), 2)


def examples(choice_ids, *, left=False):
    """Five examples of lengths 3 to 7, padded to 8 (`mpq.data.Examples`, as far as it is used)."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 50, (5, 8), generator=generator)
    mask = (torch.arange(8)[None] < torch.arange(3, 8)[:, None]).long()
    if left:
        mask = mask.flip(1)
    labels = torch.tensor([0, 1, 2, 1, 0])
    return SimpleNamespace(
        input_ids=ids * mask, attention_mask=mask, labels=labels, choice_ids=choice_ids
    )


def test_classification_counts_class_logits():
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            num_labels=3,
            initializer_range=0.5,
        )
    ).eval()
    data = examples(None)

    @contextmanager
    def context():
        before = model.classifier.weight.data
        model.classifier.weight.data = before + 0.5
        yield
        model.classifier.weight.data = before

    scores = Scorer(model, data, batch_size=2).score(context)
    with torch.no_grad():
        reference = model(data.input_ids, attention_mask=data.attention_mask).logits
        with context():
            logits = model(data.input_ids, attention_mask=data.attention_mask).logits
    expected_loss = torch.nn.functional.cross_entropy(logits, data.labels, reduction="none")
    torch.testing.assert_close(scores.loss, expected_loss.double(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        scores.kl, kl_divergence(logits, reference).double(), rtol=1e-3, atol=1e-6
    )
    assert scores.accuracy.tolist() == (logits.argmax(-1) == data.labels).double().tolist()


@pytest.mark.parametrize("left", [False, True])
def test_choices_are_read_off_the_last_real_token(llama, left):
    choices = torch.tensor([7, 3, 21])
    data = examples(choices, left=left)
    scores = Scorer(llama, data, batch_size=2).score(nullcontext)
    for row in range(5):
        with torch.no_grad():
            logits = llama(
                data.input_ids[row : row + 1], attention_mask=data.attention_mask[row : row + 1]
            ).logits[0]
        final = int(data.attention_mask[row].nonzero().max())
        probability = logits[final, choices].softmax(-1)[data.labels[row]]
        assert scores.loss[row] == pytest.approx(float(-probability.log()), rel=1e-4)


def test_half_precision_logits_are_judged_in_float32(windows):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).to(torch.bfloat16)
    scores = Scorer(model.eval(), windows, batch_size=4).score(nullcontext)
    assert scores.loss.dtype == torch.float64
    with torch.no_grad():
        logits = model(windows).logits[:, :-1].float()
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none"
    ).reshape(7, 11)
    torch.testing.assert_close(scores.loss, expected.double().mean(1), rtol=2e-2, atol=0)
