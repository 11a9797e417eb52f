"""Windows: the protocol, disjoint splits, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpq.data.windows import SEPARATOR, load_splits
from mpq.errors import DataError
from tests.data.tokenizers import CHAT, byte_tokenizer

SMALL = {"window": 8, "calibration_tokens": 16, "search_tokens": 24, "heldout_tokens": 32}
NAMES = ("calibration", "search", "heldout")


def letters(count):
    """`count` characters, every window of 7 of them different."""
    return "".join(f"{number:06d}," for number in range(count // 7 + 1))[:count]


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text(letters(200))
    return path


def load_file(path, **changes):
    return load_splits(
        **{"tokenizer": byte_tokenizer(), "source": "file", "path": path, **SMALL, **changes}
    )


def rows(windows):
    return {tuple(row) for row in windows.tokens.tolist()}


# --- the protocol -----------------------------------------------------------------------------


def test_windows_are_consecutive_pieces_each_beginning_with_bos(text_file):
    tokenizer = byte_tokenizer()
    splits = load_file(text_file)
    expected = [f"<s>{letters(200)[start : start + 7]}" for start in range(0, 9 * 7, 7)]
    position = 0
    for name, count in zip(NAMES, (2, 3, 4), strict=True):
        tokens = getattr(splits, name).tokens
        assert tokens.shape == (count, 8)
        assert tokens.dtype == torch.int64
        # By position in the file; the order within a split is drawn.
        assert sorted(tokenizer.batch_decode(tokens)) == sorted(expected[position:][:count])
        position += count


def test_heldout_text_may_have_a_file_of_its_own(text_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(letters(200).replace(",", ";"))
    splits = load_file(text_file, heldout_path=other)
    decode = byte_tokenizer().batch_decode
    assert all("," in text for text in decode(splits.calibration.tokens))
    assert all("," in text for text in decode(splits.search.tokens))
    assert all(";" in text for text in decode(splits.heldout.tokens))
    assert not rows(splits.calibration) & rows(splits.search)
    with pytest.raises(DataError, match="heldout_path are both"):
        load_file(text_file, heldout_path=text_file)
    with pytest.raises(DataError, match="no use for heldout_path"):
        load_splits(tokenizer=byte_tokenizer(), source="messages", path=text_file,
                    heldout_path=other, **SMALL)  # fmt: skip


def test_without_a_bos_token_a_window_is_text_only(text_file):
    splits = load_file(text_file, tokenizer=byte_tokenizer(bos=False))
    words = byte_tokenizer(bos=False).batch_decode(splits.calibration.tokens)
    assert sorted(words) == [letters(200)[:8], letters(200)[8:16]]


def test_documents_are_strung_together(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = ["abc", "", "de", letters(100)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n\n")
    splits = load_file(path, window=50, calibration_tokens=50, search_tokens=0, heldout_tokens=0)
    whole = byte_tokenizer().decode(splits.calibration.tokens[0])
    assert whole == f"<s>{SEPARATOR.join(texts)[:49]}"
    assert splits.search.tokens.shape == (0, 50)


def test_the_hash_is_of_the_tokens(text_file):
    windows = load_file(text_file).calibration
    state = hashlib.sha256(b"[2, 8]")
    for token in windows.tokens.flatten().tolist():
        state.update(token.to_bytes(8, "little"))
    assert windows.sha256 == state.hexdigest()
    assert windows.source == f"file: {text_file}"


def test_the_same_words_give_the_same_windows_and_another_seed_another_order(text_file):
    first, again, other = (load_file(text_file, seed=seed) for seed in (0, 0, 5))
    for name in NAMES:
        assert torch.equal(getattr(first, name).tokens, getattr(again, name).tokens)
        assert rows(getattr(first, name)) == rows(getattr(other, name))
    assert any(getattr(first, name).sha256 != getattr(other, name).sha256 for name in NAMES)


def test_chats_are_written_by_the_template_with_one_bos_a_window(tmp_path):
    chat = [{"role": "user", "content": "hi"}, {"role": "model", "content": letters(40)}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n" + json.dumps(chat) + "\n")
    tokenizer = byte_tokenizer(chat_template=CHAT)
    splits = load_splits(
        tokenizer=tokenizer, source="messages", path=path,
        window=111, calibration_tokens=111, search_tokens=0, heldout_tokens=0,
    )  # fmt: skip
    text = f"[user]hi\n[model]{letters(40)}\n"
    assert tokenizer.decode(splits.calibration.tokens[0]) == f"<s>{(text + text)[:110]}"


# --- sources with a part of their own for held-out text ----------------------------------------


@pytest.fixture(scope="module")
def builtin():
    return load_splits(tokenizer=byte_tokenizer(), window=64)


def test_builtin_splits_share_no_window(builtin):
    sets = [rows(getattr(builtin, name)) for name in NAMES]
    assert [len(found) for found in sets] == [64, 128, 256]
    assert not sets[0] & sets[1]
    assert not (sets[0] | sets[1]) & sets[2]


def test_the_first_windows_stay_when_more_are_asked_for(builtin):
    more = load_splits(tokenizer=byte_tokenizer(), window=64, heldout_tokens=2 * 16384)
    assert torch.equal(more.heldout.tokens[:256], builtin.heldout.tokens)


def test_windows_do_not_depend_on_the_process_or_its_cores(builtin):
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from mpq.data.windows import load_splits\n"
        "from tests.data.tokenizers import byte_tokenizer\n"
        "splits = load_splits(tokenizer=byte_tokenizer(), window=64)\n"
        "print(splits.calibration.sha256, splits.search.sha256, splits.heldout.sha256)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert done.stdout.split() == [getattr(builtin, name).sha256 for name in NAMES]


def test_wikitext_searches_on_validation_and_proves_on_test(monkeypatch):
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        letter = {"validation": "v", "test": "t"}[split]
        return {"text": ["", f" {letter * 300}\n"]}

    monkeypatch.setattr("datasets.load.load_dataset", load_dataset)
    tokenizer = byte_tokenizer()
    splits = load_splits(tokenizer=tokenizer, source="wikitext2", **SMALL)
    wikitext = ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert sorted(asked) == [(*wikitext, "test"), (*wikitext, "validation")]
    assert "v" in tokenizer.decode(splits.calibration.tokens[1])
    assert "v" not in "".join(tokenizer.batch_decode(splits.heldout.tokens))


def test_a_data_set_is_read_from_a_local_directory(tmp_path):
    (tmp_path / "train.jsonl").write_text(
        "\n".join(json.dumps({"body": letters(50), "id": number}) for number in range(4))
    )
    splits = load_splits(
        tokenizer=byte_tokenizer(), source="dataset", dataset=str(tmp_path), column="body", **SMALL
    )
    assert len(splits.heldout.tokens) == 4
    with pytest.raises(DataError, match=r"has the columns body, id, not 'text'; set"):
        load_splits(tokenizer=byte_tokenizer(), source="dataset", dataset=str(tmp_path), **SMALL)
    with pytest.raises(DataError, match="row 0: column 'id' holds text, given 0"):
        load_splits(
            tokenizer=byte_tokenizer(), source="dataset", dataset=str(tmp_path), column="id",
            **SMALL,
        )  # fmt: skip


def test_a_data_set_that_cannot_be_had_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"(?s)split 'train' of the data set .* cannot be loaded"):
        load_splits(
            tokenizer=byte_tokenizer(), source="dataset", dataset=str(tmp_path / "none"), **SMALL
        )


def test_real_text_in_a_folder_named_by_the_environment(tmp_path):
    folder = os.environ.get("MPQ_TEST_DATA")
    if not folder:
        pytest.skip("MPQ_TEST_DATA names no folder")
    found = [path for kind in ("*.txt", "*.raw") for path in Path(folder).rglob(kind)]
    if not found:
        pytest.skip("no text in the folder")
    copy = tmp_path / "copy.txt"
    copy.write_bytes(found[0].read_bytes())
    splits = load_file(
        copy, window=128, calibration_tokens=1280, search_tokens=128, heldout_tokens=0
    )
    text = copy.read_text(encoding="utf-8")
    for words in byte_tokenizer().batch_decode(splits.calibration.tokens):
        assert words.removeprefix("<s>").strip("\ufffd") in text


# --- what is refused --------------------------------------------------------------------------


def test_an_unknown_source_names_the_nearest():
    with pytest.raises(DataError, match=r"not from 'wikitext'; nearest: wikitext2"):
        load_splits(tokenizer=byte_tokenizer(), source="wikitext")


@pytest.mark.parametrize("source", ["file", "messages", "dataset"])
def test_a_source_without_what_it_needs(source):
    with pytest.raises(DataError, match=rf"source '{source}' needs '(path|dataset)'"):
        load_splits(tokenizer=byte_tokenizer(), source=source)


def test_settings_that_the_source_has_no_use_for_are_listed(text_file):
    with pytest.raises(DataError, match="'builtin' has no use for column, path; it takes none"):
        load_splits(tokenizer=byte_tokenizer(), path=text_file, column="body")
    with pytest.raises(DataError, match="'file' has no use for dataset; it takes heldout_path"):
        load_file(text_file, dataset="x")


def test_less_text_than_asked_for_says_how_much_there_is(text_file):
    with pytest.raises(
        DataError, match=r"asked for 800 \+ 24 \+ 32 tokens of file: .* there are 224; ask for"
    ):
        load_file(text_file, calibration_tokens=800)


@pytest.mark.parametrize(
    ("name", "part"), [("search_tokens", "calibration part"), ("heldout_tokens", "held-out part")]
)
def test_less_builtin_text_than_asked_for_names_the_part(name, part):
    with pytest.raises(DataError, match=rf"\({part}\), and there are \d{{6}}; ask for fewer"):
        load_splits(tokenizer=byte_tokenizer(), **{name: 128 * 10**6})


def test_numbers_of_tokens_that_are_no_whole_windows(text_file):
    with pytest.raises(
        DataError, match="multiples of the window, 8; given 17, 25, nearest: 16, 24"
    ):
        load_file(text_file, calibration_tokens=17, search_tokens=25)


def test_a_window_too_short_to_judge_anything(text_file):
    with pytest.raises(DataError, match=r"at least 2 tokens, .* given 1"):
        load_file(text_file, window=1)


def test_a_negative_number_of_tokens(text_file):
    with pytest.raises(DataError, match=r"numbers from 0 up, given \[16, -8, 32\]"):
        load_file(text_file, search_tokens=-8)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"does not exist; correct data\.path"):
        load_file(tmp_path / "none.txt")


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b")
    with pytest.raises(DataError, match=r"reads .txt and .jsonl, not '.csv'"):
        load_file(path)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "noise.txt"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="readable file in UTF-8"):
        load_file(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", r"rows.jsonl:2: every line of a .jsonl is one JSON value"),
     ('{"txt": "a"}', r'rows.jsonl:2: expected {"text": "…"}, given'),
     ('["a"]', r'rows.jsonl:2: expected {"text": "…"}, given')],
)  # fmt: skip
def test_a_line_that_holds_no_text_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(DataError, match=message):
        load_file(path)


def load_chats(path, tokenizer):
    return load_splits(tokenizer=tokenizer, source="messages", path=path, **SMALL)


def test_chats_need_a_chat_template(text_file):
    with pytest.raises(DataError, match=r"has none; take an instruction-tuned model, or source"):
        load_chats(text_file, byte_tokenizer())


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"messages": []}', "expected {\"messages\""),
     ('{"messages": [{"role": "user"}]}', "expected {\"messages\""),
     ('{"chat": 1}', "expected {\"messages\""),
     ('[{"role": "nobody", "content": "x"}]', "the chat template refuses .* nobody speaks")],
)  # fmt: skip
def test_a_line_that_holds_no_chat_is_named(tmp_path, line, message):
    path = tmp_path / "chats.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=rf"chats.jsonl:1: {message}"):
        load_chats(path, byte_tokenizer(chat_template=CHAT))
