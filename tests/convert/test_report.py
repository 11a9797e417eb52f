"""Rows and sizes of a conversion."""

from mpq.convert.report import TensorReport, size_of
from mpq.plans.site import Site


def report(site, num_values, num_bits):
    return TensorReport(
        site=site,
        format="int4",
        method="gptq",
        loss=1.0,
        rtn_loss=2.0,
        damping=0.01,
        reason="",
        num_tokens=8,
        num_values=num_values,
        num_bits=num_bits,
    )


def test_a_row_reads_back_as_its_report():
    made = report("a.weight", 64, 272)
    assert made.row["bits_per_value"] == 4.25
    assert TensorReport.of_row(made.row) == made


def test_bytes_that_are_left_alone_stay_and_packed_bits_are_rounded_up_once():
    sites = {
        name: Site(
            name=name, role="weight", kind="k", block=0, shape=(8, 8), group=name, stored_bits=16
        )
        for name in ("a", "b")
    }
    size = size_of([report("a", 64, 193), report("b", 64, 194)], sites, 1000)
    assert size.after == 1000 - 2 * 64 * 2 + 49  # 387 bits
    assert size.bits_per_value == 387 / 128
    assert size_of([], sites, 1000).bits_per_value == 0.0
