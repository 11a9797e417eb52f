"""The printed tables of a conversion."""

from mpq.cli.convert_report import format_rows, print_report, reasons


def row(site, format, method="gptq", loss=1.0, rtn=4.0, reason=""):
    return {
        "site": site,
        "format": format,
        "method": method,
        "loss": loss,
        "rtn_loss": rtn,
        "reason": reason,
        "num_bits": 272,
        "num_values": 64,
    }


def test_formats_are_summed_by_method():
    rows = [row("a", "int4"), row("b", "int4", loss=2.0), row("c", "int4", "rtn", 3.0, 3.0)]
    assert format_rows(rows) == [
        ["int4", "gptq", "2", "4.250", "3", "8", "0.375"],
        ["int4", "rtn", "1", "4.250", "3", "3", "1.000"],
    ]
    assert format_rows([row("a", "fp8-e4m3", loss=0.0, rtn=0.0)])[0][-1] == "-"


def test_reasons_name_the_first_of_their_tensors():
    rows = [row("a", "int4", reason="x"), row("b", "int4", reason="x"), row("c", "int4")]
    assert reasons(rows) == ["a and 1 more: x"]
    assert reasons([row("a", "int4", reason="y")]) == ["a: y"]


def test_the_report_names_size_perplexity_and_places(tmp_path, capsys):
    report = {
        "tensors": [row("a", "int4")],
        "tool_plans": {"gptqmodel": 3, "llama.cpp": 0},
        "size": {"before": 2**21, "after": 2**20, "bits_per_value": 4.25},
        "heldout": {
            "perplexity_before": 1.0,
            "perplexity_after": None,
            "num_tokens": 64,
            "kl": 0.5,
        },
    }
    print_report(tmp_path, report, ["gptq"])
    said = capsys.readouterr().out
    assert "2.0 -> 1.0 MiB, 4.250 bits a converted value" in said
    assert "1 -> not finite on 64 held-out tokens, KL 0.5 nats a token" in said
    assert "(sites that each can make: gptqmodel 3)" in said
    assert f"{tmp_path / 'gptq'} (read back, the same values)" in said
