"""A table of either kind is gone on with, or refused with everything that differs."""

import pytest

from mpq.errors import RunError
from mpq.profiling.resuming import differing, start_table
from mpq.profiling.table import DamageTable
from mpq.profiling.values import ValueTable

FACTS = {"tokens": 64, "fingerprint": "f", "data_sha256": "d"}


def values(**changes):
    return ValueTable(**({"batch_size": 8} | FACTS | changes))


def damages(**changes):
    return DamageTable.empty(**({"method": "kl", "judge_every": 1, "seed": 0} | FACTS | changes))


@pytest.mark.parametrize("make", [values, damages])
def test_a_profile_starts_anew_goes_on_or_is_refused(make, tmp_path):
    path = tmp_path / "table"
    wanted = make()
    assert start_table(path, wanted) is wanted
    kept = wanted
    if make is damages:
        kept = wanted.with_damage({("a", "bfp4"): 1.0})
    kept.write(path)
    assert type(start_table(path, wanted)) is type(wanted)
    if make is damages:
        assert start_table(path, wanted).sites == ("a",)
    with pytest.raises(RunError, match=r"tokens \(64 and 65\), fingerprint \(f and g\)"):
        start_table(path, make(tokens=65, fingerprint="g"))


def test_differing_names_both_values():
    one, other = values(), values(tokens=1)
    assert differing(one, other, ("tokens", "fingerprint")) == ["tokens (64 and 1)"]
    assert differing(one, one, ("tokens",)) == []
