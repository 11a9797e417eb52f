import tomllib

import pytest
import toml

from mpq.errors import FormatError, PlanError
from mpq.formats.zoo import parse_format
from mpq.plans.plan import Plan
from mpq.plans.rules import (
    check_patterns,
    matches,
    plan_from_toml,
    plan_toml,
    read_plan,
    resolve,
)
from tests.plans.llama import llama_sites, outside_sites

SITES = llama_sites(blocks=2)
MANY = llama_sites(blocks=21)


def named(plan):
    return {name: str(given) for name, given in plan.formats.items()}


def test_the_first_rule_that_matches_wins():
    rules = {
        "model.layers.0.self_attn.q_proj.weight": "bfp8",
        "*.q_proj.weight": "bfp6",
        "*.weight": "bfp4",
    }
    formats = named(resolve(rules, SITES))
    assert formats["model.layers.0.self_attn.q_proj.weight"] == "bfp8"
    assert formats["model.layers.1.self_attn.q_proj.weight"] == "bfp6"
    assert formats["model.layers.1.mlp.up_proj.weight"] == "bfp4"
    assert not [name for name in formats if not name.endswith(".weight")]


def test_the_first_of_two_equal_patterns_wins():
    assert set(named(resolve([("*", "bfp4"), ("*", "bfp8")], SITES)).values()) == {"bfp4"}


def test_a_name_without_a_glob_is_a_whole_name():
    with pytest.raises(PlanError, match=r"'model\.layers\.2'"):
        resolve({"model.layers.2": "bfp4"}, MANY)
    formats = named(resolve({"model.layers.2.*": "bfp4"}, MANY))
    assert {name.split(".")[2] for name in formats} == {"2"}


def test_a_glob_covers_the_whole_name_and_minds_the_case():
    site = SITES[0]
    assert matches("model.layers.?.self_attn.q_proj.weight", site)
    assert not matches("q_proj.weight", site)
    assert not matches("*.q_proj", site)
    assert not matches("*.Q_PROJ.weight", site)


def test_a_tied_tensor_answers_to_all_its_names_and_is_stored_under_one():
    for pattern in ("lm_head.weight", "model.embed_tokens.weight", "*.embed_tokens.*"):
        assert named(resolve({pattern: "bfp8"}, outside_sites())) == {"lm_head.weight": "bfp8"}


def test_the_default_is_for_all_sites_that_no_rule_matches():
    plan = resolve({"*.weight": "bfp4"}, SITES, "bfp8", model="m", fingerprint="f")
    assert len(plan.formats) == len(SITES)
    assert plan.formats["model.layers.0.self_attn.k"] == parse_format("bfp8")
    assert (plan.model, plan.fingerprint) == ("m", "f")


def test_without_rules_the_default_rules_alone():
    assert set(named(resolve({}, SITES, parse_format("bfp6"))).values()) == {"bfp6"}
    assert not resolve({}, SITES).formats


def test_rules_that_match_nothing_are_listed_with_the_nearest_names():
    rules = {"*.q_porj.weight": "bfp4", "*.weight": "bfp4", "model.layers.0.mlp.up_proj": "bfp4"}
    with pytest.raises(PlanError, match=r"every rule must match a site") as caught:
        resolve(rules, SITES)
    text = str(caught.value)
    assert "'*.q_porj.weight' (nearest: *.q_proj.weight" in text
    assert "'model.layers.0.mlp.up_proj' (nearest: model.layers.0.mlp.up_proj.input, " in text
    assert "'*.weight'" not in text


def test_a_model_without_sites_says_so():
    with pytest.raises(PlanError, match=r"the model has no sites"):
        check_patterns(["*.weight"], ())


def test_texts_that_are_no_formats_are_listed_with_their_rules():
    with pytest.raises(FormatError, match=r"(?s)\*\.weight: .*bfq4.*default: .*bfpp"):
        resolve({"*.weight": "bfq4", "*.input": "bfp4"}, SITES, "bfpp")


def test_a_plan_survives_its_toml(tmp_path):
    plan = resolve({"*.weight": "int4-g128"}, SITES, "nvfp4-token", model="m/x", fingerprint="f")
    path = tmp_path / "plan.toml"
    path.write_text(toml.dumps(plan_toml(plan)))
    assert read_plan(path, SITES) == plan
    assert read_plan(path, SITES, fingerprint="f") == plan


def test_a_plan_by_hand_has_globs_and_a_default_in_order(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        'default = "bfp8"\n[formats]\n"*.k_proj.weight" = "bfp6"\n"*.weight" = "bfp4"\n'
    )
    formats = named(read_plan(path, SITES))
    assert formats["model.layers.0.self_attn.k_proj.weight"] == "bfp6"
    assert formats["model.layers.0.self_attn.o_proj.weight"] == "bfp4"
    assert formats["model.layers.0.self_attn.probs"] == "bfp8"


def test_a_plan_for_any_model_takes_the_fingerprint_of_the_one_it_is_read_for():
    plan = plan_from_toml({"formats": {"*": "bfp4"}}, SITES, fingerprint="here")
    assert plan.fingerprint == "here"


def test_a_plan_of_a_newer_schema_is_refused_with_both_numbers():
    with pytest.raises(PlanError, match=r"up to schema 1, the plan has schema 2"):
        plan_from_toml({"schema": 2, "from_the_future": 1}, SITES)


def test_another_models_plan_is_refused_with_both_fingerprints(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(toml.dumps(plan_toml(Plan.of({}, model="m", fingerprint="aaa"))))
    with pytest.raises(PlanError, match=r"plan\.toml: .*fingerprint aaa \(model 'm'\).* has bbb"):
        read_plan(path, SITES, fingerprint="bbb")


def test_another_models_plan_is_read_when_asked_for():
    table = plan_toml(Plan.of({"model.layers.0.self_attn.k": "bfp4"}, fingerprint="aaa"))
    plan = plan_from_toml(table, SITES, fingerprint="bbb", allow_other_model=True)
    assert plan.fingerprint == "bbb"


def test_everything_wrong_with_a_plan_is_said_at_once():
    table = {"schema": "one", "model": 3, "format": {}, "formats": {"a": 4}, "default": []}
    with pytest.raises(PlanError) as caught:
        plan_from_toml(table, SITES)
    for part in ("unknown key 'format'", "schema is a whole", "model is text, not 3"):
        assert part in str(caught.value)
    assert "default is text" in str(caught.value)
    assert "'a' the format 4" in str(caught.value)


@pytest.mark.parametrize("schema", [0, -1, True, 1.0])
def test_a_schema_is_a_whole_number(schema):
    with pytest.raises(PlanError, match="schema is a whole number"):
        plan_from_toml({"schema": schema}, SITES)


def test_formats_are_a_table():
    with pytest.raises(PlanError, match=r"\[formats\] is a table of site = format, not 'bfp4'"):
        plan_from_toml({"formats": "bfp4"}, SITES)


@pytest.mark.parametrize("text", ["formats = [", "\x00", None])
def test_a_file_that_is_no_plan_is_named(tmp_path, text):
    path = tmp_path / "broken.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PlanError, match=r"broken\.toml: a plan is a readable TOML file"):
        read_plan(path, SITES)


def test_site_names_are_kept_as_they_are_in_toml():
    table = plan_toml(resolve({"*": "bfp4"}, SITES))
    assert tomllib.loads(toml.dumps(table)) == table
