import json

import pytest
import torch

from mpq.errors import RunError
from mpq.profiling.resuming import start_table
from mpq.profiling.values import Values, ValueTable, facts_of

EMPTY = ValueTable(tokens=64, batch_size=8, fingerprint="f", data_sha256="d")
generator = torch.Generator().manual_seed(0)


def some(*shape, scale=1.0):
    return Values.of(scale * torch.randn(*shape, generator=generator))


def same(first, second):
    return first.moments == second.moments and (
        (first.histogram.counts == second.histogram.counts).all()
    )


@pytest.fixture
def table():
    first = EMPTY.with_values({"b.weight": some(7, 3, scale=1e-20)})
    return first.with_batch({"a.input": some(50)}, ["a.input", "a.k"]).with_batch(
        {"a.input": some(50)}, ["a.input"]
    )


def test_batches_are_merged_and_counted(table):
    assert table.values["a.input"].moments.count == 100
    assert table.values["a.input"].histogram.counts.sum() == 100
    assert table.batches == {"a.input": 2, "a.k": 1}
    assert "a.k" not in table.values
    assert (EMPTY.values, EMPTY.batches) == ({}, {}), "tables are values"


def test_a_table_reads_back_to_the_bit_and_writes_the_same_bytes(table, tmp_path):
    path = tmp_path / "run" / "values.json"
    table.write(path)
    back = ValueTable.read(path)
    assert facts_of(back) == facts_of(table)
    assert back.values.keys() == table.values.keys()
    assert all(same(back.values[name], table.values[name]) for name in table.values)
    assert back.batches["a.input"] == 2
    back.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_order_in_which_sites_came_leaves_no_trace(tmp_path):
    values = {name: some(4) for name in "abc"}
    EMPTY.with_values(values).write(tmp_path / "one.json")
    EMPTY.with_values(dict(reversed(values.items()))).write(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_profile_starts_anew_or_goes_on(table, tmp_path):
    path = tmp_path / "values.json"
    assert start_table(path, EMPTY) is EMPTY
    table.write(path)
    assert start_table(path, EMPTY).values.keys() == table.values.keys()


def test_a_table_of_something_else_is_refused_with_all_differences(table, tmp_path):
    path = tmp_path / "values.json"
    table.write(path)
    other = ValueTable(tokens=65, batch_size=8, fingerprint="g", data_sha256="d")
    message = (
        r"differ in tokens \(64 and 65\), fingerprint \(f and g\). Profile into another directory"
    )
    with pytest.raises(RunError, match=message):
        start_table(path, other)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.pop("tokens"),
        lambda table: table.pop("sites"),
        lambda table: table["sites"]["b.weight"].pop("m2"),
        lambda table: table["sites"]["b.weight"].update(histogram="1-2"),
        lambda table: table["sites"]["b.weight"].update(histogram="99999:1"),
        lambda table: table["sites"].update(c="text"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(table, tmp_path, spoil):
    path = tmp_path / "values.json"
    table.write(path)
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"values\.json is not a table of values"):
        ValueTable.read(path)
