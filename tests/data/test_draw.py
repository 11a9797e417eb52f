"""The draw: disjoint, seeded, and exact about what is missing."""

import pytest
import torch

from mpq.data.draw import draw, refuse_negative, sha256, token_ids
from mpq.errors import DataError
from tests.data.tokenizers import byte_tokenizer


@pytest.mark.parametrize("seed", range(5))
def test_of_two_pools_the_second_is_held_out_and_nothing_is_drawn_twice(seed):
    places = draw([20, 9], (5, 15, 9), seed, "tokens")
    assert [pool for pool, _ in places] == [0, 0, 1]
    calibration, search, heldout = (rows for _, rows in places)
    assert sorted([*calibration.tolist(), *search.tolist()]) == list(range(20))
    assert sorted(heldout.tolist()) == list(range(9))


def test_one_pool_is_parted_by_position():
    places = draw([30], (5, 10, 8), 3, "tokens")
    assert [sorted(rows.tolist()) for _, rows in places] == [
        list(range(5)), list(range(5, 15)), list(range(15, 23)),
    ]  # fmt: skip


def test_a_drawn_order_is_no_order():
    ((_, rows), *_) = draw([100, 0], (50, 0, 0), 0, "tokens")
    assert rows.tolist() != sorted(rows.tolist())
    assert max(rows.tolist()) >= 50, "drawn from all over the pool"


def test_a_pool_that_is_too_small():
    with pytest.raises(
        DataError, match=r"asked for 40 \+ 80 tokens \(calibration part\), and there are 110; ask"
    ):
        draw([11, 9], (4, 8, 9), 0, "tokens", 10)


def test_less_than_nothing():
    refuse_negative((0, 0, 0))
    with pytest.raises(
        DataError, match=r"numbers from 0 up, given \[0, -1, 0\]; 0 leaves one out"
    ):
        refuse_negative((0, -1, 0))


def test_the_hash_sees_values_and_shapes():
    flat = torch.arange(6)
    hashes = {sha256(flat), sha256(flat.view(2, 3)), sha256(flat + 1), sha256(flat, flat)}
    assert len(hashes) == 4
    assert sha256(flat.view(2, 3).t().contiguous()) == sha256(flat.view(2, 3).t())


def test_tokens_of_a_text_and_nothing_beside():
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(token_ids(tokenizer, "a b")) == "a b"
    assert token_ids(tokenizer, "") == []
