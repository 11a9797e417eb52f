"""Contract: a text is a format whose own text is canonical, or an error that says the way out."""

import copy
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpq.errors import FormatError
from mpq.formats.format import Format
from mpq.formats.zoo import parse_format
from tests.contracts.zoo import ALL

TEXTS = [*ALL, "fp32", "bfp6(exponent=5,block=4x16)", "mxfp4(block=2x8)", "int4-token-sf32"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_forms_are_canonical(text):
    named = parse_format(text)
    assert parse_format(str(named)) == named
    assert str(parse_format(str(named))) == str(named)
    assert copy.deepcopy(named) == pickle.loads(pickle.dumps(named)) == named
    assert hash(named) == hash(parse_format(str(named)))


def test_a_canonical_text_is_itself():
    renamed = {text: str(parse_format(text)) for text in TEXTS if str(parse_format(text)) != text}
    # A row along the axis is a token of an activation and a channel of a weight alike.
    same = {"int8-token": "int8", "int8f-token": "int8f", "int4-token-sf32": "int4-sf32"}
    assert renamed == same


def test_different_formats_have_different_texts():
    named = {parse_format(text) for text in TEXTS}
    assert len({str(one) for one in named}) == len(named)


HEADS = [
    "int", "bfp", "bmf", "bl", "log", "fixed", "minifloat", "dmf", "mxfp", "mxint", "nvfp", "nf",
    "fp", "bf", "e", "-e", "m", "-g", "-b", "-sf", "-token", "-tensor", "a", ".",
]  # fmt: skip
KEYS = [
    "(exponent=", "(block=", "(scale_rule=", "(absmax=", "(bias=", "(zero=", "ceil", "mse",
    "true", "false", "x", ",", ")", "-", "inf", "nan", "1e400",
]  # fmt: skip
PIECES = st.one_of(st.sampled_from(HEADS), st.sampled_from(KEYS), st.integers(-1, 40).map(str))
VALUES = ["0", "1", "4", "5", "8", "9", "-3", "4x16", "0x4", "mse", "true", "1e-9", "nan"]
KEYED = st.builds(
    "({}={})".format,
    st.sampled_from(["exponent", "block", "scale_rule", "absmax", "bias", "zero"]),
    st.sampled_from(VALUES),
)
TAILS = st.one_of(st.just(""), KEYED)


@given(
    text=st.one_of(
        st.text(max_size=12),
        st.lists(PIECES, max_size=8).map("".join),
        st.builds("{}{}".format, st.sampled_from(TEXTS), TAILS),
        st.builds("{}{}{}".format, st.sampled_from(HEADS), st.integers(0, 40), TAILS),
    )
)
@example("")
@example("bfp1")
@example("int4-g0")
@example("int4(absmax=inf)")
@example("bmf8-e4m4")
@example("bfp4 ")
@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
def test_any_text_is_a_format_or_a_format_error(text):
    named = parsed(text)
    if named is not None:
        assert parse_format(str(named)) == named
        assert named.bits((3, 40)) >= 120 * named.element.width


def parsed(text: str) -> Format | None:
    """The format, or None where a FormatError that quotes the text says why not."""
    try:
        return parse_format(text)
    except FormatError as error:
        if repr(text) not in str(error):
            raise
        return None


@pytest.mark.parametrize(
    ("text", "near"),
    [("bfp44x", "bfp4"), ("int4-g128x", "int4-g128"), ("mxpf4", "mxfp4"), ("nv4", "nvfp4")],
)
def test_an_unknown_text_is_told_its_nearest(text, near):
    with pytest.raises(FormatError, match=rf"nearest.*\b{near}\b"):
        parse_format(text)


@pytest.mark.parametrize("text", ["bfp1", "int1", "log1", "bfp99", "int4-g0", "bmf8-e4m4"])
def test_an_impossible_number_is_told_the_rule(text):
    with pytest.raises(FormatError, match=rf"{text}.*(must|at least|says)"):
        parse_format(text)
