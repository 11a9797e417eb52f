import csv
import subprocess
import sys

import numpy as np
import pytest

from mpq.cli import profile
from mpq.profiling import sensitivity
from mpq.profiling.table import DamageTable


@pytest.fixture
def run(model_dir, tmp_path):
    """The exit code of `mpq-profile sensitivity` on the small model."""

    def call(*flags):
        window = ["--window", "32", "--tokens", "256", "--text", str(model_dir / "text.txt")]
        base = ["sensitivity", "--model", str(model_dir), *window, "--out", str(tmp_path)]
        return profile.main([*base, "--device", "cpu", *flags])

    return call


def test_both_methods_end_to_end(run, tmp_path, capsys):
    assert run("--formats", "bfp3", "bfp5") == 0
    said = capsys.readouterr().out
    assert "damage by kl, nats per token, 256 tokens: all 14 sites" in said
    assert "model.layers.0.self_attn.q_proj.weight" in said
    assert "rank correlation" not in said
    assert run("--formats", "bfp3", "bfp5", "--method", "fisher") == 0
    said = capsys.readouterr().out
    assert "fisher and kl agree on 28 pairs with a rank correlation of 0." in said
    for method in ("fisher", "kl"):
        table = DamageTable.read(tmp_path / f"sensitivity_{method}.csv")
        assert (len(table.sites), table.formats) == (14, ("bfp3", "bfp5"))
        assert (table.damage > 0).all()
        assert (tmp_path / "plots" / f"sensitivity_{method}.png").stat().st_size > 1000


def test_every_method_end_to_end_is_compared_with_the_direct_kl(run, tmp_path, capsys):
    for method in profile.METHODS:
        assert run("--formats", "bfp3", "bfp5", "--method", method) == 0
    said = capsys.readouterr().out
    assert "damage by mse, squared error, 0 tokens: all 14 sites" in said
    assert "damage by first-order, nats per token, 256 tokens: all 14 sites" in said
    last = said.rpartition("damage by mse")[2]
    for method in profile.METHODS:
        table = DamageTable.read(tmp_path / f"sensitivity_{method}.csv")
        assert (len(table.sites), table.formats) == (14, ("bfp3", "bfp5"))
        assert (f"{method} and kl agree on 28 pairs" in last) == (method != "kl")


def test_a_site_that_the_method_cannot_measure_is_refused(run, capsys):
    assert run("--formats", "bfp3", "--sites", "*", "--method", "mse") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "mse measures stored tensors" in said
    assert "model.layers.0.self_attn.q_proj.input" in said


def test_sites_are_ranked_by_their_damage(run, tmp_path, capsys):
    assert run("--formats", "bfp3", "--sites", "*") == 0
    said = capsys.readouterr().out
    with (tmp_path / "sensitivity_kl.csv").open() as file:
        damage = {row["site"]: float(row["damage"]) for row in csv.DictReader(file)}
    order = sorted(damage, key=lambda name: -damage[name])
    shown = [line.split()[0] for line in said.splitlines() if line.startswith("model.")]
    assert shown == [*order[: profile.NUM_SHOWN], *order[-profile.NUM_SHOWN :]]


def test_a_profile_that_was_stopped_goes_on(run, tmp_path, capsys, monkeypatch):
    original = sensitivity.kl_damage

    def stopped(*args, **keys):
        for done, step in enumerate(original(*args, **keys)):
            if done == 5:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(sensitivity, "kl_damage", stopped)
    flags = ("--formats", "bfp3", "--method", "kl")
    assert run(*flags) == 130
    assert "the same command goes on" in capsys.readouterr().err
    before = DamageTable.read(tmp_path / "sensitivity_kl.csv")
    assert len(before.sites) == 5
    monkeypatch.setattr(sensitivity, "kl_damage", original)
    assert run(*flags) == 0
    after = DamageTable.read(tmp_path / "sensitivity_kl.csv")
    assert len(after.sites) == 14
    np.testing.assert_array_equal(after.select(before.sites, ["bfp3"]), before.damage)


def test_errors_go_to_stderr_without_a_traceback(run, capsys):
    assert run("--formats", "bfp4", "--method", "fisher") == 0
    capsys.readouterr()
    assert run("--formats", "bfp4", "--method", "fisher", "--seed", "1") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("error: two damage tables can only be put")
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--formats", "bpf4"), "bpf4"),
        (("--sites", "*.wieght"), "these match none: *.wieght"),
        (("--tokens", "100"), "whole windows of 32 tokens"),
        (("--formats", "nvfp4", "--sites", "*.input"), "shares one scale"),
    ],
)
def test_impossible_wishes_are_refused(run, flags, message, capsys):
    assert run(*flags) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [["--method", "hessian"], ["--text", "a", "--source", "builtin"], ["--tokens", "many"]],
)
def test_wrong_usage_exits_with_2(flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        profile.main(["sensitivity", *flags])
    assert exit_.value.code == 2
    assert "usage: mpq-profile sensitivity" in capsys.readouterr().err


def test_a_config_says_what_to_profile_and_flags_override_it(model_dir, tmp_path, capsys):
    config = tmp_path / "small.toml"
    config.write_text(
        f"""
[model]
id = {str(model_dir)!r}
device = "cpu"
[data]
source = "file"
path = {str(model_dir / "text.txt")!r}
window = 32
calibration_tokens = 128
search_tokens = 32
heldout_tokens = 32
[space]
sites = ["*.o_proj.weight", "*.k"]
formats = ["bfp3", "bfp4"]
[space.formats_for]
"*.k" = ["bfp6"]
[space.fixed]
"model.layers.0.self_attn.o_proj.weight" = "bfp8"
[profile]
method = "kl"
"""
    )
    assert profile.main(["sensitivity", str(config), "--out", str(tmp_path / "run")]) == 0
    table = DamageTable.read(tmp_path / "run" / "sensitivity_kl.csv")
    assert {(row["site"], row["format"]) for row in table.rows()} == {
        ("model.layers.0.self_attn.k", "bfp6"),
        ("model.layers.1.self_attn.k", "bfp6"),
        ("model.layers.1.self_attn.o_proj.weight", "bfp3"),
        ("model.layers.1.self_attn.o_proj.weight", "bfp4"),
    }
    flags = ["--method", "fisher", "--sites", "*.v", "--formats", "bfp5"]
    assert profile.main(["sensitivity", str(config), "--out", str(tmp_path / "run"), *flags]) == 0
    table = DamageTable.read(tmp_path / "run" / "sensitivity_fisher.csv")
    assert table.formats == ("bfp5",)
    assert table.sites == ("model.layers.0.self_attn.v", "model.layers.1.self_attn.v")


def test_help_shows_an_example_and_loads_nothing_heavy():
    code = (
        "import sys\nfrom mpq.cli.profile import main\n"
        "try:\n    main(['sensitivity', '--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'scipy', 'pandas', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mpq-profile sensitivity search_configs/tiny_llama.toml" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
