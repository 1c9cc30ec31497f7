"""Text files of any encoding: UTF-8 is taken for granted, byte order marks are read, the rest must be said.

Nearly any bytes can be read as nearly any encoding, and most readings are nonsense. So nothing but UTF-8 is ever
guessed at silently; a file that is not UTF-8 is refused with what its line would read like in the encodings that fit.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from xmodal_jax.errors import DataError, UsageError

MARKS = (  # UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LIKELY = {  # encodings people have, each with the characters that its texts consist of, apart from ASCII
    "euc_kr": "[\uac00-\ud7a3]",  # before Chinese, whose common characters include all bytes of Hangul
    "gb18030": "[\u4e00-\u9fff]",
    "big5": "[\u4e00-\u9fff]",
    "shift_jis": "[\u3041-\u30ff\u4e00-\u9fff]",
    "euc_jp": "[\u3041-\u30ff\u4e00-\u9fff]",
    "cp1251": "[\u0401\u0410-\u044f\u0451]",
    "cp1252": "[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u0192\u2013-\u201e\u2026\u20ac\u00b0\u00ab\u00bb\u00df]",
}
COMMON = {"gb18030": ("gb2312", 0xB0, 0xD7), "big5": ("big5", 0xA4, 0xC6)}  # first bytes of the common characters
FITTING = 0.8  # of the characters that are not ASCII
PUNCTUATION = re.compile("[\u3000-\u303f\uff01-\uff5e\u2018-\u201d\u2026]")
SHOWN = 60  # characters of a line in a message


def read_text(path: Path, encoding: str | None = None) -> str:
    """A whole file, UTF-8 or in ``encoding`` where it has no byte order mark of another.

    Raises:
      DataError: it is not in that encoding; names the line and, for UTF-8, the encodings that would fit.
      UsageError: there is no such encoding.
    """
    data = path.read_bytes()
    found = next((name for mark, name in MARKS if data.startswith(mark)), encoding or "utf-8")
    try:
        text = data.decode(found)
    except (UnicodeDecodeError, UnicodeError) as error:
        start = getattr(error, "start", 0)
        line = data.count(b"\n", 0, start) + 1
        where = f"{path}, line {line}: byte 0x{data[start]:02x} is not {found.removesuffix('-sig').upper()}"
        advice = f"; {_advice(data, start)}" if found == "utf-8" else "; find out its encoding and give --encoding."
        raise DataError(where + advice) from None
    except (LookupError, ValueError):
        raise UsageError(f'--encoding "{encoding}": there is no such encoding of text.') from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        wide = _wide(data)
        advice = f"it looks like {wide}: give --encoding {wide}." if wide else "remove it, or get the file again."
        raise DataError(f"{path}, line {line}: a NUL character in a text; {advice}")
    return text


def read_lines(path: Path, encoding: str | None = None) -> list[str]:
    """Lines of a text file. Only line feeds end one: captions may hold any of Unicode's other separators.

    A file without any line feed, as old Macintosh programs write it, has carriage returns in their place.
    """
    text = read_text(path, encoding)
    lines = text.split("\n" if "\n" in text else "\r")
    if lines[-1] == "":
        lines.pop()
    return [line.rstrip("\r") for line in lines]


def _advice(data: bytes, start: int) -> str:
    """What to do about bytes that are not UTF-8."""
    wide = _wide(data)
    if wide:
        return f"it looks like {wide}: give --encoding {wide}."
    if re.search(rb"[\xc3-\xf4][\x80-\xbf]", data) and _mostly_utf8(data):
        return "all else in the file is UTF-8, so this place is damaged: correct it."
    line = data[data.rfind(b"\n", 0, start) + 1 :].partition(b"\n")[0].rstrip(b"\r")
    scores = {name: _fit(data, name) for name in LIKELY}
    fitting = sorted((name for name, score in scores.items() if score >= FITTING), key=lambda name: -scores[name])[:2]
    if not fitting:
        return "find out its encoding and give --encoding."
    readings = [f'in {name} the line reads "{_shown(line.decode(name, "replace"))}"' for name in fitting]
    return f"{', '.join(readings)}: if that is right, give --encoding {' or '.join(fitting)}."


def _shown(line: str) -> str:
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def _wide(data: bytes) -> str | None:
    """UTF-16 without a byte order mark: nearly every second byte is zero, if the text has ASCII in it."""
    even, odd = data[::2].count(0), data[1::2].count(0)
    if max(even, odd) < 0.2 * len(data) or min(even, odd) > 0.1 * max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _mostly_utf8(data: bytes) -> bool:
    """Whether far more characters beyond ASCII are UTF-8 than are not."""
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    return sum(character > "\x7f" for character in text) - bad > 3 * bad


def _fit(data: bytes, encoding: str) -> float:
    """Share of the characters beyond ASCII that a text in ``encoding`` would have; 0 if it cannot be one."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return 0.0
    beyond = [character for character in text if character > "\x7f"]
    signs = PUNCTUATION.findall("".join(beyond)) if encoding not in ("cp1251", "cp1252") else []
    usual = re.findall(LIKELY[encoding], "".join(beyond))
    if encoding in COMMON:
        codec, first, last = COMMON[encoding]
        usual = [character for character in usual if first <= character.encode(codec, "replace")[0] <= last]
    if encoding in ("shift_jis", "euc_jp") and not re.search("[\u3041-\u30ff]", text):
        return 0.0  # without any kana it is Chinese, if anything
    if encoding == "cp1252" and re.search("[\u00a1-\u00ff]{4}", text):
        return 0.0  # no language has four accented letters in a row
    if encoding == "cp1251" and not re.search("[\u0430-\u044f]{2}", text):
        return 0.0  # single letters between others are accented ones of another alphabet
    return (len(usual) + len(signs)) / max(1, len(beyond))


WRONG = re.compile("[\u0080-\u0084\u0086-\u009f]|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|[\u00a1-\u00ff]{4}|\ufffd")


def looks_wrongly_decoded(text: str) -> bool:
    """Whether a text has signs of bytes read in a wrong encoding, such as UTF-8 or GBK taken for Latin-1."""
    return bool(WRONG.search(text))
