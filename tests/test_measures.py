import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from mpq import measures


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_mse_is_torchs(generator):
    x = torch.randn(7, 5, generator=generator)
    y = torch.randn(7, 5, generator=generator)
    assert measures.mse(x, y) == pytest.approx(float(torch.nn.functional.mse_loss(x, y)))


def test_sqnr_of_known_noise(generator):
    x = torch.randn(100, generator=generator)
    assert measures.sqnr_db(x, 0.9 * x) == pytest.approx(20.0, abs=1e-4)  # noise is x / 10
    assert measures.sqnr_db(x, x) == math.inf
    assert measures.sqnr_db(torch.zeros(3), torch.ones(3)) == -math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kl_is_scipys(generator, dtype):
    logits = (3 * torch.randn(2, 5, 11, generator=generator, dtype=torch.float64)).to(dtype)
    reference = (3 * torch.randn(2, 5, 11, generator=generator, dtype=torch.float64)).to(dtype)
    expected = rel_entr(
        softmax(reference.double().numpy(), axis=-1), softmax(logits.double().numpy(), axis=-1)
    ).sum(axis=-1)
    found = measures.kl_divergence(logits, reference)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_kl_of_small_differences_is_not_lost_in_float32(generator):
    reference = 4 * torch.randn(64, 2048, generator=generator)
    logits = reference + 0.01 * torch.randn(64, 2048, generator=generator)
    expected = measures.kl_divergence(logits.double(), reference.double()).mean()
    assert 1e-6 < expected < 1e-3
    assert measures.kl_divergence(logits, reference).mean() == pytest.approx(
        float(expected), rel=0.01
    )


def test_kl_in_chunks_equals_kl_at_once(generator, monkeypatch):
    logits = torch.randn(3, 7, 10, generator=generator)
    reference = torch.randn(3, 7, 10, generator=generator)
    labels = torch.randint(10, (3, 7), generator=generator)
    kl = measures.kl_divergence(logits, reference)
    entropy = measures.cross_entropy(logits, labels)
    monkeypatch.setattr(measures, "_CHUNK_VALUES", 25)
    assert torch.equal(measures.kl_divergence(logits, reference), kl)
    assert torch.equal(measures.cross_entropy(logits, labels), entropy)


@pytest.mark.parametrize("chunk", [None, 25])
def test_a_teacher_judges_as_the_single_measures_do(generator, monkeypatch, chunk):
    if chunk is not None:
        monkeypatch.setattr(measures, "_CHUNK_VALUES", chunk)
    reference = 3 * torch.randn(3, 7, 10, generator=generator)
    # Ties for the largest logit are what bfloat16 makes of close ones.
    logits = (reference + torch.randn(3, 7, 10, generator=generator)).round()
    labels = torch.randint(10, (3, 7), generator=generator)
    labels[:2] = logits[:2].argmax(-1)
    exact = measures.judge(logits, measures.teacher_of(reference, torch.float32), labels)
    torch.testing.assert_close(exact[0], measures.kl_divergence(logits, reference))
    torch.testing.assert_close(exact[1], measures.cross_entropy(logits, labels))
    assert torch.equal(exact[2], measures.accuracy(logits, labels))
    rounded = measures.judge(logits, measures.teacher_of(reference, torch.bfloat16), labels)
    torch.testing.assert_close(rounded[0], exact[0], rtol=0.02, atol=1e-3)
    assert torch.equal(rounded[1], exact[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_rounded_teacher_takes_its_dtype_and_does_not_diverge_from_itself(generator, dtype):
    logits = 4 * torch.randn(5, 2048, generator=generator)
    teacher = measures.teacher_of(logits, dtype)
    assert teacher.num_bytes == 5 * (2048 * dtype.itemsize + 4 + 4)
    labels = torch.zeros(5, dtype=torch.long)
    assert torch.equal(measures.judge(logits, teacher, labels)[0], torch.zeros(5))


def test_a_teacher_may_rule_classes_out():
    teacher = measures.teacher_of(torch.tensor([[0.0, 0.0, -math.inf]]), torch.float32)
    label = torch.tensor([0])
    same = torch.tensor([[0.0, 0.0, -math.inf]])
    assert measures.judge(same, teacher, label)[0] == 0
    assert measures.judge(torch.tensor([[0.0, -math.inf, 0.0]]), teacher, label)[0] == math.inf
    assert math.isnan(measures.judge(torch.tensor([[0.0, math.nan, 0.0]]), teacher, label)[0])


def test_kl_of_a_class_that_is_ruled_out_counts_nothing_and_nan_stays():
    reference = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, -math.inf]])
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, math.nan, 0.0]])
    found = measures.kl_divergence(logits, reference)
    assert found[0] == 0
    assert math.isnan(found[1])
    assert measures.kl_divergence(reference[0], torch.zeros(3)) == math.inf


def test_cross_entropy_is_torchs(generator):
    logits = torch.randn(2, 5, 11, generator=generator)
    labels = torch.randint(11, (2, 5), generator=generator)
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 11), labels.reshape(-1), reduction="none"
    ).reshape(2, 5)
    torch.testing.assert_close(measures.cross_entropy(logits, labels), expected)


def test_accuracy_counts_the_largest_logit():
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]])
    assert measures.accuracy(logits, torch.tensor([1, 1])).tolist() == [1.0, 0.0]
