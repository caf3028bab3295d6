"""The published numbers against the papers' own text, and the data files against themselves."""

import json
import re
from pathlib import Path

import pytest

from tune_fusion.errors import InputError
from tune_fusion.reporting import published_tables
from tune_fusion.reporting.published_tables import load_table, table_names

ROOT = Path(__file__).resolve().parents[2]
PAPERS = ROOT.parent / "shared" / "papers"
FOLDER = Path(published_tables.__file__).parent / "published"
NAMES = ("hn_adam_cifar10", "hn_adam_mnist", "remark1", "remark3", "table2", "table3")
NUMBER = re.compile(r"\d+\.?\d*(?:E-?\d+)?")


def text_of(beginning):
    """The paper in whose first lines this stands, its white space made single."""
    if not PAPERS.is_dir():
        pytest.skip(f"the papers' text is not there: {PAPERS}")
    (text,) = (t for path in PAPERS.glob("*.txt") if beginning in (t := path.read_text(encoding="utf-8")))
    return text


def kim_and_moon():
    return text_of("Using a Fusion Optimizer")


def reyad():
    return text_of("modified algorithm, HN_Adam")


def between(text, start, end):
    return text[text.index(start) :].partition(end)[0]


def test_every_table_is_known_by_name():
    assert tuple(table_names()) == NAMES


def test_an_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(InputError) as caught:
        load_table("table4")
    assert str(caught.value).startswith("--paper table4: unknown table; did you mean 'table")
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_orderings_name_rows_that_exist_and_values_name_columns(name):
    table = load_table(name)
    columns = {column.key for column in table.columns}
    for block in table.blocks:
        ids = [row.id for row in block.rows]
        assert len(set(ids)) == len(ids)
        for ordering in block.orderings:
            assert {*ordering.better, *ordering.worse} <= set(ids)
            assert not set(ordering.better) & set(ordering.worse)
        for row in block.rows:
            unknown = {key.removesuffix("_sd") for key in row.values} - columns
            assert unknown <= {"train_accuracy"}  # published, and nothing that a search measures


def test_table_2_has_every_number_of_the_paper_s_in_its_place():
    body = between(kim_and_moon(), "Table 2. Comparison", "Values in bold")
    lines = [line.split("\t") for line in body.splitlines() if re.search(r"\d\.\d{4}\t", line)]
    rows = [row for block in load_table("table2").blocks for row in block.rows]
    assert len(lines) == len(rows) == 44
    low = high = None
    for line, row in zip(lines, rows, strict=True):
        low = line[2].lower() or low
        high = line[4].lower() if line[4].isalpha() else high
        assert [float(cell) for cell in line[5:]] == [row.values[k] for k in ("accuracy", "loss", "macro_f1")]
        last = re.search(r"(\d+)$", line[3])
        assert row.low == low
        if last is None:
            assert line[3].startswith("All")
            assert (row.high, row.switch) == (None, "all")
        else:
            assert (row.high, row.switch) == (high, int(last.group(1)))
        assert row.label.startswith({"sgd": "SGD", "adam": "Adam"}[low] + " " + line[3])
    assert [len(block.rows) for block in load_table("table2").blocks] == [14, 14, 8, 8]


def test_table_3_has_every_number_of_the_paper_s_in_order():
    body = between(kim_and_moon(), "Table 3. Comparison", "Values in bold")
    printed = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ?± ?([\d.]+)", body)]
    rows = [row for block in load_table("table3").blocks for row in block.rows]
    kept = [
        (row.values[key], row.values[f"{key}_sd"])
        for row in rows
        for key in ("accuracy", "loss", "macro_f1")
        if f"{key}_sd" in row.values
    ]
    assert kept == printed
    # The one accuracy that the table's text lacks stands in the prose.
    assert rows[0].values["accuracy"] == 97.89
    assert "accuracy_sd" not in rows[0].values
    assert [row.low for row in rows] == ["adam", "adamw", "radam", "nadam"] * 4


@pytest.mark.parametrize("name", NAMES)
def test_quotations_are_in_the_paper_and_hold_their_numbers(name):
    text = " ".join((kim_and_moon() if name.startswith("table") else reyad()).split())
    quoted = [q for remark in load_table(name).remarks for q in remark.values]
    assert quoted
    for quotation in quoted:
        assert quotation.quote in text
        numbers = {float(number) for number in NUMBER.findall(quotation.quote.replace(",", ""))}
        assert set(quotation.values.values()) <= numbers


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("table")])
def test_values_of_the_paper_without_tables_are_quoted_from_its_prose(name):
    table = load_table(name)
    numbers = {
        float(number)
        for remark in table.remarks
        for quotation in remark.values
        for number in NUMBER.findall(quotation.quote.replace(",", ""))
    }
    published = {value for block in table.blocks for row in block.rows for value in row.values.values()}
    assert published
    assert published <= numbers


def test_where_the_papers_disagree_with_themselves_all_values_are_kept():
    remarks = {remark.what: remark for remark in load_table("table2").remarks}
    ours = remarks["EfficientNetV2, the paper's photographs, Adam Block 0-6 | SGD"]
    assert [quoted.values["accuracy"] for quoted in ours.values] == [97.84, 97.89]
    transformer = remarks["ViT, the paper's photographs, Adam Encoder 0-10 | SGD"]
    assert [quoted.values["accuracy"] for quoted in transformer.values] == [98.54, 97.84, 97.74]


def test_the_files_are_plain_json_without_spare_keys():
    for path in FOLDER.iterdir():
        assert path.suffix == ".json"
        assert json.loads(path.read_text(encoding="utf-8")).keys() == {
            "title",
            "paper",
            "source",
            "settings",
            "columns",
            "disagreements",
            "blocks",
        }
