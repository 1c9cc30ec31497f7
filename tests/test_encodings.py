"""Text files that are not UTF-8: marks are read, the rest is refused with advice that is right for these bytes."""

import json
import re

import numpy as np
import pytest
from importing import karpathy_json, refused, run, save_numbers

from xmodal_jax.data.sources.text import looks_wrongly_decoded, read_lines, read_text
from xmodal_jax.errors import DataError, UsageError

TEXTS = {
    "cp1252": "a,Crème brûlée “large”\nb,naïve café\nc,plain\n",
    "gb18030": "a,一只狗在草地上\nb,两个男孩，在玩\nc,猫\n",
    "big5": "a,一隻狗在草地上\nb,兩個男孩在玩\nc,貓\n",
    "shift_jis": "a,犬が走っています\nb,二人の男の子\nc,猫です\n",
    "euc_jp": "a,犬が走っています\nb,二人の男の子\nc,猫です\n",
    "euc_kr": "a,개가 달리고 있다\nb,두 소년이 놀고 있다\nc,고양이\n",
    "cp1251": "a,Собака бежит по траве\nb,два мальчика играют\nc,кошка\n",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_the_advice_followed_gives_the_text(tmp_path, encoding):
    source, options = tmp_path / "t.csv", {"features": save_numbers(tmp_path / "f.npy", 3)}
    source.write_bytes(("image,caption\n" + TEXTS[encoding]).encode(encoding))
    with pytest.raises(DataError, match=r"t\.csv, line 2: byte 0x.. is not UTF-8; ") as refusal:
        run("csv", source, tmp_path, **options)
    first_line = TEXTS[encoding].partition("\n")[0]
    assert f'in {encoding} the line reads "{first_line}"' in str(refusal.value) and "latin" not in str(refusal.value)
    advice = re.search(r"give --encoding (\w+)", str(refusal.value))
    assert advice and advice[1] == encoding
    split = run("csv", source, tmp_path, encoding=encoding, **options).split("train")
    assert [captions[0] for captions in split.captions] == [line[2:] for line in TEXTS[encoding].split("\n")[:3]]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("given", [None, "cp1252"])
def test_byte_order_marks_are_read(tmp_path, encoding, given):
    (tmp_path / "t").write_bytes("é\n一\n".encode(encoding))
    assert read_lines(tmp_path / "t", given) == ["é", "一"]
    (tmp_path / "t").write_bytes(b"\xfe\xff" + "é\n".encode("utf-16-be"))
    assert read_lines(tmp_path / "t", given) == ["é"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["a,dog\nb,cat\n", "a,“dog” é\nb,cat\n"])
def test_utf16_without_a_mark_is_recognised(tmp_path, encoding, text):
    (tmp_path / "t").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=f"give --encoding {encoding}"):
        read_text(tmp_path / "t")
    assert read_text(tmp_path / "t", encoding) == text


def test_other_faults(tmp_path):
    path = tmp_path / "t"
    path.write_bytes("Crème brûlée, café, ein Käse für fünf\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"UTF-8; in cp1252 the line reads \"Crème[^\"]*\": if that is right"):
        read_text(path)
    path.write_bytes("ünd ärger öfter überall\n".encode() + b"\xff\n")
    with pytest.raises(DataError, match="line 2: byte 0xff is not UTF-8; all else in the file is UTF-8"):
        read_text(path)
    path.write_bytes(b"one\ntw\0o\n")
    with pytest.raises(DataError, match="line 2: a NUL character in a text; remove it"):
        read_text(path)
    path.write_bytes(b"one\n\xff\n")
    with pytest.raises(DataError, match="line 2: byte 0xff is not GB18030"):
        read_text(path, "gb18030")
    for name in ("klingon", "hex"):
        with pytest.raises(UsageError, match=f'--encoding "{name}"'):
            read_text(path, name)


def test_all_text_files_of_an_import_are_read_in_it(tmp_path):
    folder = tmp_path / "pre"
    folder.mkdir()
    np.save(folder / "train_ims.npy", np.eye(2, 4, dtype=np.float32))
    (folder / "train_caps.txt").write_bytes("café\nnaïf\n".encode("cp1252"))
    (folder / "train_ids.txt").write_bytes("é\nè\n".encode("cp1252"))
    split = run("precomp", folder, tmp_path / "a", encoding="cp1252").split("train")
    assert split.ids == ["é", "è"] and split.captions == [["café"], ["naïf"]]
    source = karpathy_json(tmp_path / "dataset_x.json", [{"filename": f"{name}.jpg"} for name in "éèà"])
    source.write_bytes(json.dumps(json.loads(source.read_text()), ensure_ascii=False).encode("cp1252"))
    (tmp_path / "ids.txt").write_bytes("à\né\nè\n".encode("cp1252"))
    options = {"features": save_numbers(tmp_path / "f.npy", 3), "ids": str(tmp_path / "ids.txt")}
    data = run("karpathy", source, tmp_path / "b", encoding="cp1252", **options)
    assert data.split("train").ids == ["é.jpg"] and data.split("train").read([0])[0].features["global"][0] == 2


@pytest.mark.parametrize("right", ["café", "Straße", "ÀÉ", "一只狗", "naïve “quote”", "Ærø", "\x85", "日本 – №5"])
def test_wrongly_decoded_text_is_noticed(right):
    assert not looks_wrongly_decoded(right)
    if re.search("[^\x00-\x85–№“”]", right):
        assert looks_wrongly_decoded(right.encode().decode("latin1"))


def test_a_file_converted_by_a_wrong_encoding_is_said(tmp_path, capsys):
    source, options = tmp_path / "t.csv", {"features": save_numbers(tmp_path / "f.npy", 3)}
    source.write_text("image,caption\n" + TEXTS["gb18030"].encode("gb18030").decode("latin1"))
    run("csv", source, tmp_path, **options)
    assert "x caption that looks like text read in a wrong encoding" in capsys.readouterr().out


def import_table(tmp_path, text, **options):
    (tmp_path / "t.csv").write_bytes(text.encode())
    options["features"] = save_numbers(tmp_path / "f.npy", 3)
    return run("csv", tmp_path / "t.csv", tmp_path, **options).split("train")


@pytest.mark.parametrize(
    "text",
    [
        "image,caption\ra,x\rb,y\rc,z\r",
        "sep=;\r\nimage;caption\r\na;x\r\nb;y\r\nc;z\r\n",
        "sep=,\nimage,caption\na,x\nb,y\nc,z",
    ],
)
def test_line_ends_and_separators_of_spreadsheets(tmp_path, text):
    assert import_table(tmp_path, text).captions == [["x"], ["y"], ["z"]]


def test_carriage_returns_alone_end_the_lines_of_a_text(tmp_path):
    (tmp_path / "t").write_bytes(b"one\rtwo\r")
    assert read_lines(tmp_path / "t") == ["one", "two"]


def test_quotes_that_are_plain_characters(tmp_path):
    text = 'image,caption\na,"big" dog\nb,6" nail\nc,"\n'
    (tmp_path / "t.csv").write_text(text)
    options = {"features": save_numbers(tmp_path / "f.npy", 3)}
    refused("line 2: .*give --quoting none", DataError, "csv", tmp_path / "t.csv", tmp_path, **options)
    assert import_table(tmp_path, text, quoting="none").captions == [['"big" dog'], ['6" nail'], ['"']]


def test_numbers_behind_image_names_are_captions(tmp_path, capsys):
    text = "image,caption\n" + "".join(f"{n}.jpg#{turn},{turn} of {n}\n" for turn in range(2) for n in range(3))
    split = import_table(tmp_path, text)
    assert split.ids == ["0.jpg", "1.jpg", "2.jpg"] and split.captions[2] == ["0 of 2", "1 of 2"]
    assert "captions of one picture" in capsys.readouterr().out


def test_missing_values_of_pandas_are_said(tmp_path, capsys):
    import_table(tmp_path, "image,caption\na,x\nb,NaN\nc,z\n")
    assert '1 x caption that reads "NaN"' in capsys.readouterr().out
