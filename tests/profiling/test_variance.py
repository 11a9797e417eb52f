import numpy as np
import torch

from mpq.files import read_csv, write_csv
from mpq.modeling.sites import sites
from mpq.profiling.streaming import measure_values
from mpq.profiling.values import ValueTable
from mpq.profiling.variance import variance_rows
from tests.modeling.families import build
from tests.profiling.models import windows


def measured(chosen=None):
    model = build("opt", torch.float64)
    every = sites(model, lm_head=True, embeddings=True, bias=True, output=True)
    table = ValueTable(tokens=48, batch_size=2, fingerprint="f", data_sha256="d")
    return model, every, measure_values(model, windows(4), chosen or every, table)


def test_every_site_has_a_row_in_model_order_with_what_it_was_measured_on():
    _, every, table = measured()
    rows = variance_rows(table, every)
    assert [row["site"] for row in rows] == [site.name for site in every]
    assert {row["role"] for row in rows} == {
        *("weight", "bias", "input", "output", "q", "k", "v", "probs")
    }
    assert {row["block"] for row in rows} == {-1, 0, 1}
    assert {(row["tokens"], row["batch_size"]) for row in rows} == {(48, 2)}
    assert {row["nonfinite"] for row in rows} == {0}


def test_a_csv_holds_numpys_variance_to_the_last_digit_of_float64(tmp_path):
    model, every, table = measured()
    write_csv(tmp_path / "variance.csv", variance_rows(table, every))
    layer = model.model.decoder.layers[1].fc1
    (weight, bias) = (
        next(row for row in read_csv(tmp_path / "variance.csv") if row["site"].endswith(name))
        for name in ("layers.1.fc1.weight", "layers.1.fc1.bias")
    )
    for row, tensor in ((weight, layer.weight), (bias, layer.bias)):
        np.testing.assert_allclose(float(row["variance"]), np.var(tensor.detach().numpy()), 1e-13)
        assert int(row["count"]) == tensor.numel()
        assert row["kind"] == "fc1"


def test_sites_that_were_not_seen_have_no_row():
    _, every, table = measured([site for site in sites(build("opt")) if site.role == "v"])
    assert [row["role"] for row in variance_rows(table, every)] == ["v", "v"]
