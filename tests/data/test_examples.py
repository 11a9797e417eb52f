"""Examples: heads and prompted causal models, disjoint splits, and what is refused."""

import pytest
import torch

from mpq.data.examples import load_examples
from mpq.errors import DataError
from tests.data.tokenizers import byte_tokenizer

COUNTS = {"calibration_examples": 2, "search_examples": 3, "heldout_examples": 4}
NAMES = ("calibration", "search", "heldout")
PROMPT = "{sentence} So {it} is"
CHOICES = ["bad", "good"]


def rows(first, count):
    return "".join(f"{number % 2}\tfilm {number}\n" for number in range(first, first + count))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "reviews.tsv"
    path.write_text("label\tsentence\n" + rows(10, 12))
    return path


def load(path, **changes):
    return load_examples(**{"tokenizer": byte_tokenizer(), "path": path, **COUNTS, **changes})


def sentences(examples, tokenizer=None):
    words = (tokenizer or byte_tokenizer()).batch_decode(examples.input_ids)
    return [text.replace("<pad>", "").replace("<s>", "") for text in words]


def test_a_head_gets_sentences_padded_on_the_right(table):
    table.write_text("label\tsentence\n0\tshort\n1\ta longer one\n")
    examples = load(
        table, calibration_examples=2, search_examples=0, heldout_examples=0
    ).calibration
    order = examples.labels.argsort()
    assert examples.choice_ids is None
    assert examples.input_ids.dtype == examples.labels.dtype == torch.int64
    assert byte_tokenizer().batch_decode(examples.input_ids[order]) == [
        "short" + "<pad>" * 7,
        "a longer one",
    ]
    assert examples.attention_mask[order].tolist() == [[1] * 5 + [0] * 7, [1] * 12]


def test_a_causal_model_is_prompted_and_padded_on_the_right_too(table):
    table.write_text("label\tsentence\n0\tshort\n1\ta longer one\n")
    examples = load(
        table, calibration_examples=2, search_examples=0, heldout_examples=0,
        prompt=PROMPT, choices=CHOICES,
    ).calibration  # fmt: skip
    order = examples.labels.argsort()
    assert byte_tokenizer().batch_decode(examples.input_ids[order]) == [
        "<s>short So {it} is" + "<pad>" * 7,
        "<s>a longer one So {it} is",
    ]
    assert examples.attention_mask[order].tolist() == [[1] * 17 + [0] * 7, [1] * 24]
    assert byte_tokenizer().batch_decode(examples.choice_ids[:, None]) == ["b", "g"]


def test_a_table_is_parted_by_position(table):
    splits = load(table)
    found = [sorted(sentences(getattr(splits, name))) for name in NAMES]
    assert found == [
        ["film 10", "film 11"],
        ["film 12", "film 13", "film 14"],
        ["film 15", "film 16", "film 17", "film 18"],
    ]
    for name in NAMES:
        examples = getattr(splits, name)
        numbers = [int(text.split()[-1]) for text in sentences(examples)]
        assert examples.labels.tolist() == [number % 2 for number in numbers]
        assert examples.source == f"sst2: {table}"


def test_of_a_folder_dev_is_held_out(tmp_path):
    (tmp_path / "train.tsv").write_text("label\tsentence\n" + rows(10, 30))
    (tmp_path / "dev.tsv").write_text("label\tsentence\n" + rows(50, 9))
    splits = load(tmp_path)
    numbers = [
        {int(text.split()[-1]) for text in sentences(getattr(splits, name))} for name in NAMES
    ]
    assert [len(found) for found in numbers] == [2, 3, 4]
    assert not numbers[0] & numbers[1]
    assert max(numbers[0] | numbers[1]) < 50 <= min(numbers[2])


def test_the_hub_gives_train_to_search_and_validation_to_the_proof(monkeypatch):
    def load_dataset(name, subset, split):
        assert (name, subset) == ("stanfordnlp/sst2", None)
        return [{"idx": 0, "label": 1, "sentence": split}] * 6

    monkeypatch.setattr("datasets.load.load_dataset", load_dataset)
    splits = load(None)
    assert sentences(splits.search) == ["train"] * 3
    assert sentences(splits.heldout) == ["validation"] * 4
    assert splits.heldout.source == "sst2"


def test_the_draw_is_the_seeds(table):
    first, again, other = (load(table, seed=seed) for seed in (0, 0, 1))
    assert [getattr(first, name).sha256 for name in NAMES] == [
        getattr(again, name).sha256 for name in NAMES
    ]
    assert any(getattr(first, name).sha256 != getattr(other, name).sha256 for name in NAMES)


def test_the_hash_sees_labels_too(table):
    before = load(table).calibration.sha256
    table.write_text(table.read_text().replace("0\t", "1\t"))
    assert load(table).calibration.sha256 != before


def test_quotes_in_a_sentence_are_letters(table):
    table.write_text('label\tsentence\n0\t"open\n1\tend"\n')
    splits = load(table, calibration_examples=1, search_examples=1, heldout_examples=0)
    assert sentences(splits.calibration) == ['"open']


def test_a_head_reads_the_first_tokens_of_a_long_sentence(table):
    splits = load(table, max_length=4)
    assert set(sentences(splits.heldout)) == {"film"}


# --- what is refused --------------------------------------------------------------------------


def test_a_prompt_is_never_cut(table):
    with pytest.raises(
        DataError, match=r"longest has 19 tokens where max_length is 12; set .* 19"
    ):
        load(table, prompt=PROMPT, choices=CHOICES, max_length=12)


def test_another_source(table):
    with pytest.raises(DataError, match="come from 'sst2', not from 'cola'"):
        load(table, source="cola")


def test_fewer_examples_than_asked_for(table):
    with pytest.raises(DataError, match=r"asked for 2 \+ 3 \+ 40 examples .* there are 12"):
        load(table, heldout_examples=40)


def test_a_negative_number_of_examples(table):
    with pytest.raises(DataError, match=r"numbers from 0 up, given \[2, 3, -1\]"):
        load(table, heldout_examples=-1)


@pytest.mark.parametrize(
    ("given", "missing"), [({"prompt": PROMPT}, "choices"), ({"choices": CHOICES}, "prompt")]
)
def test_a_prompt_without_choices_or_choices_without_a_prompt(table, given, missing):
    with pytest.raises(DataError, match=f"{missing} is not given"):
        load(table, **given)


def test_a_prompt_without_the_sentence(table):
    with pytest.raises(DataError, match=r"has {sentence} in it, given 'So it is'"):
        load(table, prompt="So it is", choices=CHOICES)


@pytest.mark.parametrize("choices", [["bad", "boring"], ["good"], ["", "good"]])
def test_choices_that_one_token_cannot_tell_apart(table, choices):
    with pytest.raises(DataError, match="told apart by their first tokens"):
        load(table, prompt=PROMPT, choices=choices)


def test_more_labels_than_choices(table):
    table.write_text("label\tsentence\n" + "2\tfilm\n" * 9)
    with pytest.raises(DataError, match="2 choices for labels up to 2"):
        load(table, prompt=PROMPT, choices=CHOICES)


def test_a_head_needs_a_pad_token_and_a_prompt_does_not(table):
    tokenizer = byte_tokenizer(pad=False)
    with pytest.raises(DataError, match=r"has no pad token; set tokenizer.pad_token"):
        load(table, tokenizer=tokenizer)
    splits = load(table, tokenizer=tokenizer, prompt=PROMPT, choices=CHOICES)
    assert splits.calibration.attention_mask.all()


def test_a_missing_table(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "none.tsv")


def test_a_folder_without_its_tables(tmp_path):
    with pytest.raises(DataError, match=r"train.tsv, which does not exist"):
        load(tmp_path)


def test_other_columns(table):
    table.write_text("sentence\tscore\nfine\t1\n")
    with pytest.raises(DataError, match="columns label and sentence, given sentence, score"):
        load(table)


@pytest.mark.parametrize("line", ["good\tfilm", "1", "-1\tfilm"])
def test_a_line_without_label_or_sentence_is_named(table, line):
    table.write_text(f"label\tsentence\n0\tfine\n{line}\n")
    with pytest.raises(DataError, match=r"reviews.tsv:3: expected a label 0, 1, … and a sentence"):
        load(table)
