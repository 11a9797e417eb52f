"""Losses and divergence of two models over batches of unequal size."""

import torch

from mpq.convert.judging import judge_heldout


def test_means_are_over_tokens_of_all_batches():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 11, (rows, 6), generator=generator) for rows in (3, 1)]
    given = [torch.randn(*b.shape, 11, generator=generator) for b in batches]
    converted = [torch.randn(*b.shape, 11, generator=generator) for b in batches]
    found = judge_heldout(batches, given.__getitem__, converted.__getitem__)

    def flat(parts):
        return torch.cat([part[:, :-1].flatten(0, 1) for part in parts]).double()

    labels = torch.cat([batch[:, 1:].flatten() for batch in batches])
    entropy = torch.nn.functional.cross_entropy
    assert found.num_tokens == 24
    assert abs(found.loss_before - float(entropy(flat(given), labels))) < 1e-6
    assert abs(found.loss_after - float(entropy(flat(converted), labels))) < 1e-6
    log_p, log_q = (torch.log_softmax(flat(x), dim=-1) for x in (given, converted))
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    assert abs(found.kl - float(kl)) < 1e-6
