"""Writing packed checkpoints: shards, what is refused, and what a stop leaves behind."""

import errno
import json

import pytest
import torch
from safetensors import SafetensorError, safe_open

from mpq import Plan, encode
from mpq.errors import CheckpointError
from mpq.modeling import checkpoint_writing
from mpq.modeling.checkpoint import open_checkpoint, write_checkpoint
from mpq.modeling.packed import PackedWeight
from tests.modeling.checkpoints import same

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32"}


def weight(seed=0, rows=8, columns=64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def packed(seed=0, text="int4-g32"):
    return PackedWeight(encoded=encode(weight(seed), text))


def write(path, tensors, plan=None, **options):
    plan = plan or {name: str(t.encoded.format) for name, t in tensors.items() if is_packed(t)}
    options = {"model_config": CONFIG} | options
    write_checkpoint(path, tensors=tensors.items(), plan=Plan.of(plan), **options)


def is_packed(tensor):
    return isinstance(tensor, PackedWeight)


SOME = {f"layer{i}.weight": packed(i) for i in range(5)} | {"norm.weight": weight(9)}


def test_what_was_written_reads_back(tmp_path):
    write(tmp_path, SOME)
    found = open_checkpoint(tmp_path)
    assert set(found.sites) == {name for name in SOME if name != "norm.weight"}
    assert found.dense_names == ("norm.weight",)
    assert all(same(found.packed(name), SOME[name]) for name in found.sites)
    assert torch.equal(found.dense("norm.weight"), SOME["norm.weight"])
    assert found.config["dtype"] == "float32"
    assert "quantization_config" not in found.config


def test_three_bits_take_three_bits(tmp_path):
    write(tmp_path, {"a.weight": packed(text="int3")})
    with safe_open(tmp_path / "model-00001-of-00001.safetensors", framework="pt") as file:
        assert file.get_tensor("a.weight.codes").nbytes == 8 * 64 * 3 / 8
        assert file.get_tensor("a.weight.scales").nbytes == 8 * 2


def test_shards_end_before_they_pass_the_limit_and_are_numbered(tmp_path):
    write(tmp_path, SOME, max_shard_bytes=700)  # a packed weight has 256 + 32 bytes
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 288 + 8 * 64 * 4
    assert index["weight_map"]["norm.weight"] == shards[3]
    assert index["weight_map"]["layer2.weight.codes"] == shards[1]
    assert set(index["weight_map"].values()) == set(shards)


def test_no_more_than_a_shard_is_held(tmp_path):
    alive = []

    def tensors():
        for i in range(6):
            made = weight(i)
            alive.append(torch._C._WeakTensorRef(made))
            yield f"norm{i}.weight", made
            del made
            assert sum(not one.expired() for one in alive) <= 2

    write_checkpoint(
        tmp_path, model_config=CONFIG, tensors=tensors(), plan=Plan.of({}), max_shard_bytes=2048
    )
    assert len(open_checkpoint(tmp_path).dense_names) == 6


def test_a_shard_tells_of_its_own_weights_and_the_config_of_all(tmp_path):
    write(tmp_path, SOME, max_shard_bytes=700, biases_added=["layer0.bias"])
    with safe_open(tmp_path / "model-00002-of-00004.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["mpq"])
    assert header["sites"]["layer2.weight"] == {
        "format": "int4-g32", "shape": [8, 64], "axis": -1, "dtype": "float32", "ordered": False,
    }  # fmt: skip
    assert set(header["sites"]) == {"layer2.weight", "layer3.weight"}
    facts = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert facts["quant_method"] == "mpq"
    assert facts["version"] == 1
    assert facts["plan"]["layer4.weight"] == "int4-g32"
    assert facts["biases_added"] == ["layer0.bias"]
    assert facts["packages"]["torch"] == torch.__version__
    assert len(facts["files"]) == 5
    assert len(facts["files"]["model-00001-of-00004.safetensors"]["sha256"]) == 64


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, SOME, max_shard_bytes=700)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_files_that_are_named_belong_to_the_checkpoint(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    write(tmp_path, SOME, files=["tokenizer.json"])
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: its content was changed"):
        open_checkpoint(tmp_path)


def test_a_slice_is_stored_without_its_whole(tmp_path):
    whole = torch.randn(4, 8, 8)
    write(tmp_path, {f"part{i}": whole[i] for i in range(4)})
    assert torch.equal(open_checkpoint(tmp_path).dense("part2"), whole[2])


def test_a_finished_checkpoint_is_not_written_over(tmp_path):
    write(tmp_path, SOME)
    with pytest.raises(CheckpointError, match=r"holds a finished checkpoint .* none is written"):
        write(tmp_path, SOME)
    assert open_checkpoint(tmp_path).sites


@pytest.mark.parametrize(
    ("tensors", "plan", "match"),
    [
        ({"a.weight": packed()}, {"a.weight": "int3"}, r"int4-g32, and the plan says int3"),
        ({"a.weight": packed()}, {"b.input": "int8"}, r"int4-g32, and the plan says nothing"),
        ({"a.weight": weight()}, {"a.weight": "int4", "b.weight": "fp32"}, r"to a\.weight, and"),
        ({"a.weight": packed(), "a.weight.codes": weight()}, None, r"a\.weight\.codes came twice"),
    ],
)  # fmt: skip
def test_plan_and_tensors_must_fit_each_other(tmp_path, tensors, plan, match):
    with pytest.raises(CheckpointError, match=match):
        write(tmp_path, tensors, plan)
    assert not list(tmp_path.iterdir())


def test_one_memory_under_two_names_is_refused(tmp_path):
    tied = weight()
    with pytest.raises(CheckpointError, match=r"embed and head are one tensor"):
        write(tmp_path, {"embed": tied, "head": tied})
    assert not list(tmp_path.iterdir())


def test_a_config_without_its_class_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="lacks architectures and dtype: take"):
        write(tmp_path, SOME, model_config={"model_type": "llama"})


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_in_rust(*arguments, **options):
    raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")


@pytest.mark.parametrize("fails", [full_disk, full_disk_in_rust])
def test_a_full_disk_leaves_nothing_that_can_be_loaded(tmp_path, monkeypatch, fails):
    save, calls = checkpoint_writing.save_file, []

    def second_fails(tensors, path, **options):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            fails()
        save(tensors, path, **options)

    monkeypatch.setattr(checkpoint_writing, "save_file", second_fails)
    wanted = rf"{tmp_path} must take 576 bytes more, and the disk is full"
    with pytest.raises(CheckpointError, match=wanted):
        write(tmp_path, SOME, max_shard_bytes=700)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="was not finished"):
        open_checkpoint(tmp_path)


def test_a_disk_that_is_full_for_the_last_file_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writing, "write_json", full_disk)
    with pytest.raises(CheckpointError, match="the disk is full"):
        write(tmp_path, SOME)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_file_says_why(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint_writing, "save_file", fails)
    with pytest.raises(CheckpointError, match=r"takes no file: .*Permission denied"):
        write(tmp_path, SOME)


def test_a_stop_in_the_middle_leaves_it_unfinished_and_writing_again_works(tmp_path):
    def stopped():
        yield from list(SOME.items())[:3]
        raise KeyboardInterrupt

    plan = Plan.of({name: "int4-g32" for name in SOME if name != "norm.weight"})
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(
            tmp_path, model_config=CONFIG, tensors=stopped(), plan=plan, max_shard_bytes=300
        )
    # A kill leaves more than an exception does: shards of another count, and temporary files.
    (tmp_path / "model-00001-of-00009.safetensors").write_bytes(b"old")
    (tmp_path / ".model-00002.safetensors.tmp").write_bytes(b"half")
    write(tmp_path, SOME)
    assert len(list(tmp_path.iterdir())) == 3
    assert open_checkpoint(tmp_path).sites
