import json
import re

import pytest
import torch

from mpq.convert.export_gptq import dynamic_rules, export_gptq
from mpq.errors import ExportError
from tests.convert.exports import CONFIG, packed

SITES = {
    "model.layers.0.q.weight": packed("int4-g32"),
    "model.layers.0.k.weight": packed("int4-g32"),
    "model.layers.1.q.weight": packed("int8"),
}


def told(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def test_most_layers_scheme_is_the_base_and_others_stand_in_dynamic(tmp_path):
    dense = [("norm.weight", torch.ones(4)), ("model.layers.1.k.weight", torch.ones(4, 4))]
    export_gptq(tmp_path / "out", SITES.items(), dense, CONFIG)
    found = told(tmp_path / "out")
    assert (found["bits"], found["group_size"], found["sym"]) == (4, 32, True)
    assert found["checkpoint_format"] == "gptq_v2"
    assert found["lm_head"] is False
    assert found["dynamic"] == {
        r"+:^model\.layers\.1\.q$": {
            "bits": 8,
            "group_size": -1,
            "sym": True,
            "desc_act": False,
        },
        r"-:^model\.layers\.1\.k$": {},
    }


def test_version_1_is_named_in_the_config(tmp_path):
    export_gptq(tmp_path / "out", SITES.items(), [], CONFIG, version="gptq")
    assert told(tmp_path / "out")["checkpoint_format"] == "gptq"


def test_a_tied_head_is_untied(tmp_path):
    tables = {"embed.weight": "lm_head.weight"}
    sites = {"embed.weight": packed("int8")}
    export_gptq(tmp_path / "out", sites.items(), [], CONFIG, tables=tables)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False
    assert written["quantization_config"]["lm_head"] is True


def test_an_unquantised_format_is_stored_as_values(tmp_path):
    export_gptq(tmp_path / "out", [("a.weight", packed("bf16"))], [], CONFIG)
    assert told(tmp_path / "out")["dynamic"] == {"-:^a$": {}}
    wide = packed("fp32", dtype=torch.float32)
    with pytest.raises(ExportError, match=r"torch.bfloat16, which does not hold all of them"):
        export_gptq(tmp_path / "other", [("a.weight", wide)], [], CONFIG)


def test_every_weight_that_does_not_fit_is_listed(tmp_path):
    sites = {"a.weight": packed("mxfp4"), "b.weight": packed("int5"), "c.weight": packed("int4")}
    with pytest.raises(ExportError, match="cannot hold 2 of the plan's tensors") as caught:
        export_gptq(tmp_path / "out", sites.items(), [], CONFIG)
    assert "b.weight in int5: it packs 2, 3, 4, 8 bits only; nearest: int8" in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_table_without_a_head_is_refused(tmp_path):
    with pytest.raises(ExportError, match="no quantised lookup table"):
        export_gptq(
            tmp_path / "out", [("e.weight", packed("int8"))], [], CONFIG, tables={"e.weight": ""}
        )


def test_each_rule_matches_one_module_only():
    rules = dynamic_rules({"layers.1.q": {"bits": 8}}, ["layers.1.k"], {"bits": 4})
    names = ["layers.1.q", "layers.1.k", "layers.11.q", "layers.1.qq", "layersx1.q"]
    matched = [[name for name in names if re.match(rule[2:], name)] for rule in rules]
    assert matched == [["layers.1.q"], ["layers.1.k"]]
