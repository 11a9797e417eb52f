import pytest
import torch

from mpq.errors import FormatError, ModelError
from mpq.formats.zoo import parse_format
from mpq.modeling.scoring import make_batches
from mpq.modeling.sites import places
from mpq.profiling.gradients import (
    gradients_to,
    rounding_error,
    run_backward,
    sampled_loss,
    true_loss,
)
from tests.profiling.models import classifier_and_examples, sharp, windows


def test_the_true_loss_is_the_models_own_times_its_positions():
    model, data = sharp("llama"), windows(3)
    (batch,) = make_batches(data, 3)
    with torch.no_grad():
        own = model(data, labels=data).loss
        assert true_loss(model, batch).item() == pytest.approx(float(own) * 3 * 11, rel=1e-5)


def test_the_true_loss_of_a_classifier_is_that_of_its_labels():
    model, examples = classifier_and_examples()
    (batch,) = make_batches(examples, 48)
    with torch.no_grad():
        logits = model(examples.input_ids, examples.attention_mask).logits.log_softmax(-1)
        chosen = logits[torch.arange(48), examples.labels]
        assert true_loss(model, batch).item() == pytest.approx(-float(chosen.sum()), rel=1e-4)


def test_a_sampled_loss_is_that_of_labels_the_model_believes_in():
    model = sharp("llama")
    (batch,) = make_batches(windows(64), 64)
    with torch.no_grad():
        logits = model(windows(64)).logits[:, :-1].log_softmax(-1)
        entropy = -float((logits.exp() * logits).sum())
        sampled = float(sampled_loss(model, batch, torch.Generator().manual_seed(0)))
        assert sampled == pytest.approx(entropy, rel=0.1)
        assert float(true_loss(model, batch)) > 1.3 * entropy


@pytest.mark.parametrize("loss", ["sampled", "true"])
def test_a_model_without_probabilities_is_refused(loss):
    model = sharp("llama")
    (batch,) = make_batches(windows(2), 2)

    def run():
        if loss == "true":
            return true_loss(model, batch)
        return sampled_loss(model, batch, torch.Generator().manual_seed(0))

    weight = model.model.layers[1].mlp.up_proj.weight
    weight.data[0, 0], kept = torch.nan, weight.data[0, 0].item()
    with pytest.raises(ModelError, match=r"not finite: model\.layers\.1\.mlp\.up_proj\.weight;"):
        run()
    weight.data[0, 0] = kept
    model.lm_head.weight.data.mul_(1e38)
    with pytest.raises(ModelError, match=r'an activation overflows; load it with dtype = "float'):
        run()


def test_each_gradient_is_shown_once_a_pass_and_freed():
    model, data = sharp("llama"), windows(2)
    batches = make_batches(data, 1)
    asked = [model.model.layers[0].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight]
    seen = []
    with gradients_to(model, asked, lambda w, g: seen.append((w, g.clone()))):
        run_backward(batches, lambda batch: true_loss(model, batch), lambda *_: None)
        assert all(parameter.grad is None for parameter in model.parameters())
    assert [w is asked[1 - index % 2] for index, (w, _) in enumerate(seen)] == [True] * 4
    for index, batch in enumerate(batches):
        expected = torch.autograd.grad(true_loss(model, batch), asked)
        torch.testing.assert_close(seen[2 * index][1], expected[1])
        torch.testing.assert_close(seen[2 * index + 1][1], expected[0])


def test_passes_are_counted_from_where_they_began():
    model, told = sharp("llama"), []
    with gradients_to(model, [model.lm_head.weight], lambda *_: None):
        run_backward(
            make_batches(windows(2), 1),
            lambda batch: true_loss(model, batch),
            lambda *step: told.append(step),
            done=3,
            total=9,
        )
    assert told == [("backward passes", done, 9) for done in (3, 4, 5)]


def test_a_rounding_error_is_what_the_format_does():
    model = sharp("llama")
    (place,) = [p for p in places(model) if p.site.name == "model.layers.0.mlp.up_proj.weight"]
    weight = place.parameter.detach()
    error = rounding_error(weight, parse_format("int4a"), place.site)
    step = (weight.amax(1) - weight.amin(1)) / 15
    assert (error.abs().amax(1) <= 0.6 * step).all()
    assert error.abs().max() > 0
    assert not rounding_error(weight, parse_format("fp32"), place.site).any()
    bad = weight.clone()
    bad[0, 0] = torch.inf
    with pytest.raises(FormatError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        rounding_error(bad, parse_format("bfp4"), place.site)
