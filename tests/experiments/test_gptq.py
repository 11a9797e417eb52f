"""The frame of experiment 002: all parts in a small setting, and one judge for all weights."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mpq.convert.options import SolverOptions
from mpq.kernels.fake_quant import quantize
from mpq.modeling.loading import load_model
from mpq.modeling.sites import places
from tests.data.tokenizers import byte_tokenizer
from tests.modeling.families import save_llama
from tests.scripts import importable

FOLDER = Path(__file__).parents[2] / "experiments" / "002_gptq"


@pytest.fixture
def run():
    """The module run.py."""
    with importable(FOLDER):
        yield importlib.import_module("run")


@pytest.fixture
def small(run, tmp_path):
    """A setting of a small random model, and the flags of its texts."""
    model = tmp_path / "model"
    save_llama(model, num_key_value_heads=4)
    for name in ("a", "b"):
        (tmp_path / name).write_text("The quick brown fox jumps over the lazy dog. " * 40)
    settings = importlib.import_module("settings")
    setting = settings.Setting(
        model=str(model),
        dtype="float32",
        calibration=(4, 16),
        heldout=(3, 16),
        formats=("int3-g16", "bfp4"),
        mixtures=(
            settings.Mixture(
                name="groups",
                formats=("int4-g16", "int3-g16", "int2-g16"),
                reference="int3-g16",
            ),
            settings.Mixture(
                name="unprofiled", formats=("int3",), reference="int3", weighings=("damage",)
            ),
        ),
        options=SolverOptions(act_order=True, grid="mse"),
        variants=(
            settings.Variant(
                name="absmax, one pass",
                formats=("int3-g16",),
                changes={"grid": "absmax"},
                true_sequential=False,
            ),
            settings.Variant(name="exact groups", formats=("bfp4",), changes={"groups": "exact"}),
        ),
    )
    texts = ["--calibration", str(tmp_path / "a"), "--heldout", str(tmp_path / "b")]
    out = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path)]

    def call(*parts):
        return run.main(["small", *parts, *texts, *out], {"small": setting})

    return call


def scores_of(tmp_path):
    return json.loads((tmp_path / "runs" / "small" / "scores.json").read_text())


def leave_rounded_weights(tmp_path, format):
    """What another tool would leave that rounds every weight to nearest."""
    loaded = load_model(str(tmp_path / "model"))
    folder = tmp_path / "runs" / "small" / "rivals" / "tool"
    folder.mkdir(parents=True)
    weights = {
        place.site.name: quantize(place.parameter.detach(), format)
        for place in places(loaded.model)
        if place.site.role == "weight" and place.site.block >= 0
    }
    save_file(weights, folder / "weights.safetensors")
    (folder / "record.json").write_text(json.dumps({"tool": "rounding"}))


def test_all_parts_in_a_small_setting(small, tmp_path, capsys):
    assert small("windows", "formats", "variants", "mixed") == 0
    leave_rounded_weights(tmp_path, "int3-g16")
    assert small("rivals", "report") == 0
    scores = scores_of(tmp_path)
    assert scores["full precision"]["kl"] == 0
    assert scores["rtn bfp4"]["bits"] == scores["gptq bfp4"]["bits"] == 4.5
    assert scores["gptq int3-g16"]["layer_loss"] < scores["gptq int3-g16"]["layer_loss_rounded"]
    for name in ("gptq absmax, one pass int3-g16", "gptq exact groups bfp4"):
        plain = scores[f"gptq {name.split()[-1]}"]
        assert scores[name]["bits"] >= plain["bits"]
        assert scores[name]["layer_loss"] != plain["layer_loss"]
    # One judge: the same weights have the same score, whoever made them.
    assert scores["rival tool"]["loss"] == pytest.approx(scores["rtn int3-g16"]["loss"], abs=1e-9)
    for name in ("absolute", "relative"):
        mixed = scores[f"mixed groups {name} at int3-g16"]
        assert mixed["bits"] <= scores["gptq int3-g16"]["bits"]
        assert sum(mixed["formats"].values()) == 14
    tables = (tmp_path / "tables.md").read_text()
    assert "| gptq bfp4 | 4.500 |" in tables
    firsts = [line.split(" | ")[0] for line in tables.splitlines() if line.startswith("| ")]
    assert firsts[1:3] == ["| full precision", "| rtn int3-g16"]
    assert firsts.index("| gptq bfp4") < firsts.index("| gptq exact groups bfp4")
    assert firsts[-1] == "| rival tool"
    assert json.loads((tmp_path / "results.json").read_text())["small"]["scores"] == scores


def test_what_was_done_is_not_done_again(small, tmp_path):
    assert small("windows", "formats") == 0
    before = scores_of(tmp_path)
    assert small("formats") == 0
    assert scores_of(tmp_path) == before


def test_windows_are_the_first_of_the_text(small, tmp_path):
    assert small("windows") == 0
    windows = importlib.import_module("windows")
    found = windows.read_windows(tmp_path / "runs" / "small", windows.CALIBRATION)
    tokenizer = byte_tokenizer()
    assert found.shape == (4, 16)
    ids = tokenizer((tmp_path / "a").read_text(), add_special_tokens=False)["input_ids"]
    body = found if tokenizer.bos_token_id is None else found[:, 1:]
    assert torch.equal(body.flatten(), torch.tensor(ids[: body.numel()]))


def test_a_text_that_is_too_short_is_refused(small, tmp_path):
    (tmp_path / "a").write_text("short")
    with pytest.raises(SystemExit, match="tokens, 6"):
        small("windows")
