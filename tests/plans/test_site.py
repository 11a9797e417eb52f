import pickle
from dataclasses import FrozenInstanceError

import pytest

from mpq.plans.site import ROLES, STORED_ROLES, TOKENS, Site
from tests.plans.llama import llama_sites


def site(role="input", shape=(TOKENS, 64)):
    return Site(name=f"a.{role}", role=role, kind="a", block=0, shape=shape, group=f"a.{role}")


def test_an_activation_gets_its_shape_from_the_number_of_tokens():
    assert site().shape_at(17) == (17, 64)
    assert site("probs", (4, TOKENS, TOKENS)).shape_at(5) == (4, 5, 5)


def test_a_stored_tensor_has_one_shape():
    assert site("weight", (8, 16)).shape_at(5) == site("weight", (8, 16)).shape_at(9) == (8, 16)


@pytest.mark.parametrize("role", ROLES)
def test_weights_and_biases_lie_in_the_checkpoint_and_nothing_else_does(role):
    assert site(role).is_stored == (role in {"weight", "bias"}) == (role in STORED_ROLES)


def test_a_site_is_a_value():
    one = site()
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(site())
    with pytest.raises(FrozenInstanceError):
        one.name = "b"


def test_names_of_a_model_are_distinct():
    names = [one.name for one in llama_sites(outputs=True)]
    assert len(set(names)) == len(names)
