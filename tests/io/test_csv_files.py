"""CSV as spreadsheets, databases, Spark and people write it."""

import pandas as pd
import pytest

from recotransfer.io.readers import read_interactions, read_items
from recotransfer.io.tables import read_table


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


ROWS = {"user_id": ["u", "v"], "item_id": ["a", "b"], "weight": ["1,5", "2"]}


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\nuser_id;item_id;weight\r\nu;a;1,5\r\nv;b;2\r\n",
        '\ufeff"sep=;"\nuser_id;item_id;weight\nu;a;1,5\nv;b;2\n',
        "SEP=|\nuser_id|item_id|weight\nu|a|1,5\nv|b|2\n",
        "sep=\t\nuser_id\titem_id\tweight\nu\ta\t1,5\nv\tb\t2\n",
        "\ufeffuser_id;item_id;weight\r\nu;a;1,5\r\nv;b;2\r\n",
        '"user_id","item_id","weight"\n"u","a","1,5"\n"v","b","2"\n',
        "user_id\titem_id\tweight\nu\ta\t1,5\nv\tb\t2",
        "user_id|item_id|weight\n\nu|a|1,5\n\nv|b|2\n\n",
        "user_id;item_id;weight;;\nu;a;1,5;;\nv;b;2;;\n",
        "user_id;item_id;weight\nu;a;1,5\nuser_id;item_id;weight\nv;b;2\n",
    ],
)
def test_one_table_in_every_usual_form(tmp_path, text):
    path = write(tmp_path, "t.csv", text)
    assert read_table(path).to_dict("list") == ROWS
    assert read_interactions(path).data.weight.tolist() == [1.5, 2]


def test_formulas_that_keep_zeros_are_read_as_their_text(tmp_path):
    read = read_interactions(write(tmp_path, "t.csv", 'user_id,item_id\n="007",a\n="008",b\n'))
    assert read.data.users.ids.tolist() == ["007", "008"]
    assert any("formulas" in note for note in read.report.notes)


def test_marks_inside_quoted_names_do_not_separate_cells(tmp_path):
    path = write(tmp_path, "t.csv", 'item_id;"a, b, and c"\n1;x\n')
    assert list(read_table(path)) == ["item_id", "a, b, and c"]


def test_lines_are_counted_from_the_top_of_a_file_with_a_separator_line(tmp_path):
    path = write(tmp_path, "t.csv", "sep=;\nuser_id;item_id\nu;a\n;b\n")
    assert read_interactions(path).report.dropped[0].rows == (4,)
    path = write(tmp_path, "t.csv", "sep=;\nuser_id;item_id\nu;a\nv;b;c\n")
    with pytest.raises(ValueError, match="line 4: has 3 cells"):
        read_interactions(path)


def test_a_file_of_a_separator_line_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sep= line and nothing else"):
        read_table(write(tmp_path, "t.csv", "sep=;\n"))


def test_repeated_headers_are_left_out_and_noted(tmp_path):
    read = read_interactions(write(tmp_path, "t.csv", "user,item\nu,a\nuser,item\nv,b\n,c\n"))
    assert read.data.users.ids.tolist() == ["u", "v"]
    assert "repeated headers were ignored: 1 (line 3)" in read.report.notes
    assert read.report.dropped[0].rows == (5,)


@pytest.mark.parametrize(
    "text",
    [
        'item_id,title\n1,"Alien\n2,Heat\n3,Ronin\n4,Predator"\n5,Jaws\n',
        'item_id,title,year\n1,"Alien,1979\n2,Heat,1995\n3,Ronin",1998\n4,Jaws,1975\n',
        'item_id,title,brand\nA1,"Mug,Acme\nA2,Cup,Acme\nA3,Jar",Bolt\nA4,Pot,Acme\n',
    ],
)
def test_rows_that_a_stray_quote_swallowed_are_noticed(tmp_path, text):
    report = read_items(write(tmp_path, "t.csv", text)).report
    assert any("one cell contains" in note and "look like rows" in note and "line 2" in note for note in report.notes)


def test_texts_of_several_lines_are_no_swallowed_rows(tmp_path):
    text = 'item_id,blurb\n1,"Well made,\nlight, and warm\nfor winter, too"\n2,"one\ntwo"\n'
    report = read_items(write(tmp_path, "t.csv", text)).report
    assert not any("look like rows" in note for note in report.notes)


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ('item_id,title\n1,"the \\"big\\" mug"\n2,b\n', ['the "big" mug', "b"]),
        ('item_id,title\n1,"say \\"hi\\", he said"\n2,"\\"x\\" y"\n', ['say "hi", he said', '"x" y']),
        ('item_id,title\n1,"5\\""\n2,b\n', ['5"', "b"]),
        ('item_id,title\n1,"a \\"b\\" c:\\\\"\n2,b\n', ['a "b" c:\\', "b"]),
        ('item_id,title\n1,"C:\\new\\"\n2,b\n', ["C:\\new\\", "b"]),
        ('item_id,title\n1,"he said \\""hi\\"""\n2,b\n', ['he said \\"hi\\"', "b"]),
        ('item_id,title\n1,"the ""big"" mug"\n2,b\n', ['the "big" mug', "b"]),
    ],
)
def test_quotes_with_a_backslash_are_told_from_doubled_ones(tmp_path, text, titles):
    assert read_table(write(tmp_path, "t.csv", text))["title"].tolist() == titles


@pytest.mark.parametrize("name", ["Unnamed: 0", "Unnamed: 0.1", "index", "level_0"])
def test_a_column_that_numbers_the_rows_is_no_content(tmp_path, name):
    frame = pd.DataFrame({name: range(30), "item_id": range(30), "title": [f"t {i}" for i in range(30)]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for source in (frame, tmp_path / "t.csv"):
        read = read_items(source)
        assert list(read.data.columns) == ["title"]
        assert f"ignored as row numbers: {name!r}" in read.report.notes


def test_an_index_that_was_written_without_a_name_is_left_out(tmp_path):
    frame = pd.DataFrame({"item_id": ["a", "b"], "title": ["x", "y"]}, index=[3, 9])
    frame.to_csv(tmp_path / "t.csv")
    assert list(read_items(tmp_path / "t.csv").data.columns) == ["title"]
    frame.reset_index().rename(columns={"index": "Unnamed: 0"}).to_csv(tmp_path / "u.csv", index=False)
    assert list(read_items(tmp_path / "u.csv").data.columns) == ["title"]
    assert list(read_items(frame.assign(index=["n", "m"])).data.columns) == ["title", "index"]
