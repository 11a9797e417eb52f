import json

from mpq.formats.zoo import parse_format
from mpq.plans.move import UNTOUCHED, Move


def test_untouched_is_the_format_that_keeps_every_value():
    fmt = parse_format(UNTOUCHED)
    assert fmt.is_identity
    assert str(fmt) == UNTOUCHED


def test_a_move_can_be_kept_as_json():
    move = Move(slope=-0.25, apart=1.0)
    assert Move(*json.loads(json.dumps(move))) == move
