import re

import pytest

from mpq.config import load_search_config, search_config
from mpq.errors import ConfigError

LEAST = {"model": {"id": "mpq/tiny-llama"}, "space": {"formats": ["bfp4", "bfp6"]}}
SST2 = {"source": "sst2", "prompt": "{sentence} is", "choices": [" bad", " good"]}


def table(**sections):
    """The least config, with some keys of some sections."""
    return {name: LEAST.get(name, {}) | sections.get(name, {}) for name in (*LEAST, *sections)}


def faults(config):
    with pytest.raises(ConfigError) as caught:
        search_config(config, where="here.toml")
    return str(caught.value)


def fault(config):
    """The only fault of a config, as `key: message`."""
    text = faults(config)
    assert text.startswith("here.toml: 1 fault\n  "), text
    return text.split("\n  ", 1)[1]


# --- what is read ---------------------------------------------------------------------------


def test_a_model_and_formats_are_enough():
    config = search_config(LEAST)
    assert config.model.id == "mpq/tiny-llama"
    assert config.space.formats == ("bfp4", "bfp6")
    assert config.search.objectives == ("kl", "weight_bits")


def test_a_file_is_read_with_what_a_command_line_overrides(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('model.id = "m"\n[space]\nformats = ["bfp4", "bfp5"]\n[search]\nseed = 1\n')
    assert load_search_config(path).search.seed == 1
    changed = load_search_config(path, {"search.seed": 3, "model.device": "cpu", "cost.tokens": 9})
    assert (changed.search.seed, changed.model.device, changed.cost.tokens) == (3, "cpu", 9)


def test_an_override_is_checked_like_the_file(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('search = 5\nmodel.id = "m"\nspace.formats = ["bfp4", "bfp5"]\n')
    with pytest.raises(
        ConfigError, match=r"a\.toml: 2 faults\n  model\.sed: unknown.*\n  search:"
    ):
        load_search_config(path, {"search.seed": 3, "model.sed": 4})


# --- what is refused: the file --------------------------------------------------------------


def test_a_file_that_is_no_toml_is_named_with_its_line(tmp_path):
    (tmp_path / "a.toml").write_text('[model]\nid = "m\n')
    with pytest.raises(ConfigError, match=r"a\.toml: not a TOML file: .*line 2"):
        load_search_config(tmp_path / "a.toml")


def test_a_key_that_is_there_twice_is_no_toml(tmp_path):
    (tmp_path / "a.toml").write_text('[model]\nid = "m"\nid = "n"\n')
    with pytest.raises(ConfigError, match=r"a\.toml: not a TOML file: .*line 3"):
        load_search_config(tmp_path / "a.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.toml: a config is a readable TOML file"):
        load_search_config(tmp_path / "gone.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xff")
    with pytest.raises(ConfigError, match=r"b\.toml: a config is a readable TOML file"):
        load_search_config(tmp_path / "b.toml")


# --- what is refused: single keys -----------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LEAST | {"modle": {}}, r"modle: unknown section, expected one of model.*nearest: model$"),
        (
            table(model={"dtyp": "x"}),
            r"model\.dtyp: unknown key, expected one of .*nearest: dtype$",
        ),
        (table(model={"window": 8}), r"model\.window: unknown key; it belongs in \[data\]$"),
        (table(search={"zzz": 8}), r"search\.zzz: unknown key, .*, budget$"),
        ({"space": LEAST["space"]}, r"model\.id: this key must be there: The shipped model"),
        (table(space={"formats": []}), r"space\.formats: expected at least one entry, given \[\]"),
        (
            table(search={"sampler": "tp"}),
            r"expected 'random', .*given 'tp'; nearest: tpe",
        ),
        (table(search={"trials": "60"}), r"search\.trials: expected a whole number, given '60'"),
        (table(search={"trials": True}), r"search\.trials: expected a whole number, given True"),
        (table(search={"trials": 0}), r"search\.trials: expected greater than .* 1, given 0"),
        (table(search={"seed": -1}), r"search\.seed: expected .* equal to 0, given -1"),
        (table(search={"refine": 1.5}), r"search\.refine: expected a whole number, given 1\.5"),
        (table(model={"id": 7}), r"model\.id: expected text, given 7"),
        (table(model={"id": ""}), r"model\.id: expected text that is not empty, given ''"),
        (LEAST | {"model": "m"}, r"model: expected a table \[model\], given 'm'"),
        (table(space={"sites": "*.weight"}), r"space\.sites: expected a list, given '\*"),
        (
            table(space={"formats": ["bfp4", "bfq5"]}),
            r"space\.formats\[1\]: 'bfq5' is no format: the nearest are bfp5.*given 'bfq5'",
        ),
        (
            table(space={"formats": ["bfp4", "bfp6", "bfp4-b16"]}),
            r"space\.formats: expected each entry once; more than once: bfp4; given",
        ),
        (
            table(space={"formats_for": {"*.input": ["bfp4", "zz"]}}),
            r"space\.formats_for\.\"\*\.input\"\[1\]: 'zz' is no format",
        ),
        (
            table(space={"fixed": {"*.probs": 8}}),
            r"space\.fixed\.\"\*\.probs\": expected text, given 8",
        ),
        (
            table(space={"include": ["lm-head"]}),
            r"space\.include\[0\]: .*given 'lm-head'; nearest: lm_head",
        ),
        (
            table(search={"budget": {"weigth_bits": 4.0}}),
            r"search\.budget\.weigth_bits: expected 'weight_bits',.*nearest: weight_bits",
        ),
        (
            table(search={"budget": {"kv_bytes": float("inf")}}),
            r"search\.budget\.kv_bytes: expected a finite number, given inf",
        ),
        (
            table(search={"budget": {"kv_bytes": 0}}),
            r"search\.budget\.kv_bytes: expected greater than 0, given 0",
        ),
        (
            table(search={"objectives": ["kl", "acuracy"]}),
            r"search\.objectives\[1\]: expected one of kl, .*given 'acuracy'",
        ),
        (
            table(search={"objectives": ["my module:f"]}),
            r"search\.objectives\[0\]: .*'module:function'.*given 'my module:f'",
        ),
        (
            table(search={"objectives": ["kl", "kl"]}),
            r"search\.objectives: expected each entry once; more than once: kl",
        ),
        (
            table(search={"objectives": []}),
            r"search\.objectives: expected at least one entry, given \[\]",
        ),
        (
            table(search={"storage": "study.db"}),
            r"search\.storage: expected an Optuna storage URL, such as sqlite:///study\.db",
        ),
        (
            table(search={"timeout_minutes": 0}),
            r"search\.timeout_minutes: expected greater than 0, given 0",
        ),
        (table(prove={"confidence": 95}), r"prove\.confidence: expected less than 1, given 95"),
        (
            table(profile={"method": "hessian"}),
            r"profile\.method: expected 'shares', 'fisher', 'kl', .* or 'mse'",
        ),
        (table(cost={"tokens": 0}), r"cost\.tokens: expected greater than or equal to 1, given 0"),
    ],
)
def test_a_wrong_key_is_named_with_what_was_expected(config, expected):
    assert re.search(expected, fault(config))


def test_everything_wrong_is_said_at_once():
    config = table(
        modle={},
        model={"dtyp": "float32"},
        data={"source": "file", "calibration_tokens": 100},
        space={"formats": ["bfq4", "bfp6"]},
        search={"sampler": "tp", "trials": 0, "pruner": "median"},
    )
    text = faults(config)
    assert text.startswith("here.toml: 6 faults\n")
    for key in ("modle", "model.dtyp", "space.formats[0]", "search.sampler", "search.trials"):
        assert f"\n  {key}: " in text
    # Rules between keys are asked too, of the sections that are right in themselves: [model] is
    # not, so nothing is said about the path that source = "file" needs.
    assert "\n  data.calibration_tokens: expected whole windows of 128" in text
