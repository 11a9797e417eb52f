"""Options: what each changes, and how it is shown again."""

import pytest

from mpq.errors import FormatError
from mpq.formats.block import ROW, TENSOR, Block
from mpq.formats.options import OPTIONS, apply_options, options_text
from mpq.formats.zoo import parse_format


def test_an_option_changes_one_part():
    assert apply_options(parse_format("int4"), ["-g64"], []).block == Block(columns=64)
    assert apply_options(parse_format("int4"), ["-tensor"], []).block == TENSOR
    assert apply_options(parse_format("fp8-e4m3"), ["-token"], []).block == ROW
    assert apply_options(parse_format("int4"), ["-sf32"], []).scale.dtype == "fp32"
    assert apply_options(parse_format("bfp4"), [], ["exponent=5"]).scale.width == 5
    assert apply_options(parse_format("nvfp4"), [], ["absmax=2"]).scale.absmax == 2.0
    assert not apply_options(parse_format("log4"), [], ["zero=false"]).element.zero


def test_the_text_lists_suffixes_then_keys_in_one_order():
    plain = parse_format("bfp4")
    changed = apply_options(plain, ["-b32"], ["scale_rule=mse", "exponent=6"])
    assert options_text(changed, plain) == "-b32(exponent=6,scale_rule=mse)"
    assert options_text(plain, plain) == ""


def test_every_option_has_an_example_that_it_matches():
    heads = ("int4", "bfp4", "log4", "minifloat-e4m3", "nvfp4", "int4-tensor")
    for option in OPTIONS:
        suffixes, keys = ([], [option.example]) if option.is_key else ([option.example], [])
        taken = []
        for head in heads:
            try:
                taken.append(apply_options(parse_format(head), suffixes, keys))
            except FormatError:
                continue
        assert taken, option.example


@pytest.mark.parametrize(
    ("suffixes", "keys", "message"),
    [
        (["-g64", "-g32"], [], "'-g32' stands twice: leave it out"),
        (["-b64"], [], "'-b64' does not apply to int4"),
        (["-x"], [], r"'-x' is no suffix of a format: use one of -token"),
        ([], ["y=1"], r"'y=1' is no key of a format: use one of exponent=5"),
        ([], ["bias=3"], "does not apply to int4"),
    ],
)
def test_what_is_no_option(suffixes, keys, message):
    with pytest.raises(FormatError, match=message):
        apply_options(parse_format("int4"), suffixes, keys)
