"""New rows by hand: means of pieces, moved tokens, unknown ones, padding, positions."""

from pathlib import Path

import pytest
import torch

from bert_pretrain.data.tokenizer_files import read_ids, same_ids
from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.new_embeddings import extended_positions, map_rows, old_pieces

OLD = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "car", "port", "##port", "##s", "-", "##a"]
ROWS = torch.arange(11.0)[:, None] * torch.tensor([1.0, 10.0])  # row i is (i, 10 i)
BIAS = torch.arange(11.0) - 3
MEAN = 5.0  # of 0 to 10


def folder_with(path: Path, tokens: list[str]) -> Path:
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return path


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    return folder_with(tmp_path / "old", OLD)


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def test_tokens_of_another_vocabulary(old_folder: Path) -> None:
    new = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "port", "car", "carport", "##ports", "car-port", "Cars", "xyz"]
    rows = map_rows(numbered(new), numbered(OLD), old_folder, 11, 16)
    first = rows.means(ROWS)[:, 0].tolist()
    assert first[:7] == [0, 1, 2, 3, 4, 6, 5]  # both have them; two have changed places
    assert first[7] == (5 + 7) / 2  # car ##port
    assert first[8] == (7 + 8) / 2  # ##port ##s, within a word
    assert first[9] == pytest.approx((5 + 9 + 6) / 3)  # car - port
    assert first[10] == (5 + 8) / 2  # the old tokenizer has no upper case
    assert first[11] == MEAN  # unknown
    assert first[12:] == [MEAN] * 4  # no token
    assert rows.means(ROWS)[:, 1].tolist() == pytest.approx([10 * value for value in first])
    bias = rows.means(BIAS, padding="lowest").tolist()
    assert bias[5:12] == pytest.approx([value - 3 for value in first[5:12]])
    assert bias[12:] == [-3.0] * 4
    (line,) = rows.description("old", 11, 16)
    assert "7 tokens keep their embedding, 4 new ones" in line
    assert "1 with unknown pieces" in line
    assert "4 entries have no token" in line


def test_padding_of_the_old_model_stays(old_folder: Path) -> None:
    rows = map_rows(numbered(OLD), numbered(OLD), old_folder, 16, 16)
    assert rows.is_identity(16, 16)
    added = map_rows(numbered([*OLD, "cars"]), numbered(OLD), old_folder, 16, 16)
    padded = torch.arange(16.0)[:, None]
    assert added.means(padded)[:, 0].tolist() == [*range(11), 6.5, *range(12, 16)]


def test_a_token_that_the_old_model_has_no_row_for_is_new(old_folder: Path) -> None:
    rows = map_rows(numbered(OLD), numbered(OLD), old_folder, 10, 11)  # ##a is in the tokenizer only
    assert rows.rows[10] == ()


def test_pieces_with_one_unknown_part(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "t", OLD)
    pieces = old_pieces(folder, numbered(OLD))
    assert pieces("car qq") == [5]
    assert pieces("##portq") == []


def test_tokens_from_files(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "t", ["a", "b"])
    assert read_ids(folder) == {"a": 0, "b": 1}
    (folder / "added_tokens.json").write_text('{"c": 2}')
    assert read_ids(folder) == {"a": 0, "b": 1, "c": 2}
    (folder / "tokenizer.json").write_text(
        '{"model": {"vocab": {"x": 0}}, "added_tokens": [{"content": "y", "id": 1}]}'
    )
    assert read_ids(folder) == {"x": 0, "y": 1, "c": 2}
    assert read_ids(tmp_path) is None
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read"):
        read_ids(folder)
    assert same_ids({"a": 0, "n": 9}, {"a": 0, "b": 1})
    assert not same_ids({"a": 0, "b": 2}, {"a": 0, "b": 1})


def test_positions() -> None:
    learned = torch.tensor([[0.0, 1.0], [2.0, 1.0], [6.0, 1.0]])
    assert extended_positions(learned, 5, "interpolate").tolist() == [[0, 1], [1, 1], [2, 1], [4, 1], [6, 1]]
    assert extended_positions(learned, 5, "repeat")[:, 0].tolist() == [0, 2, 6, 0, 2]
    assert extended_positions(learned, 2, None)[:, 0].tolist() == [0, 2]
    with pytest.raises(ConfigError, match="give init_positions=interpolate or repeat"):
        extended_positions(learned, 4, None)
