"""Which importer a source is for, told by its content, so that the wrong one can say so."""

from __future__ import annotations

import json
import re
from pathlib import Path

from xmodal_jax.data.sources import flickr
from xmodal_jax.data.sources.tsv import HEADERS

KINDS = {
    "precomp": "a folder of the precomp layout (*_caps.txt)",
    "karpathy": "a file like Karpathy's dataset_*.json",
    "coco": "captions in COCO's own form (captions_*.json)",
    "flickr": "captions in Flickr's form",
    "csv": "a table with a header",
    "jsonl": "JSON lines",
    "reid": "a JSON list of images with captions, as reid_raw.json",
    "butd": "a TSV of regions",
}
FEATURES = (b"\x93NUMPY", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"MATLAB ")
PEEK = 1 << 16  # bytes


def recognise(path: Path) -> str | None:
    """The kind of ``path``, "features" where it holds no captions, None where it is not clear or not there."""
    if path.is_dir():
        for kind, pattern in (("precomp", "*_caps.txt"), ("coco", "captions_*.json"), ("butd", "*.tsv*")):
            if any(path.glob(pattern)):
                return kind
        return None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(PEEK)
    if start.startswith(FEATURES):
        return "features"
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = start.decode(encoding, "replace").lstrip()
    line = re.split("[\r\n]", text, maxsplit=1)[0]
    if text[:1] in ("{", "["):
        return _json(path, text, line)
    if flickr.TOKEN.fullmatch(line) or flickr.HEADER.fullmatch(line):
        return "flickr"
    fields = line.split("\t")
    if fields[0] in HEADERS or (len(fields) in (6, 10) and re.fullmatch(r"[A-Za-z0-9+/]{16,}={0,2}", fields[-1])):
        return "butd"
    return None


def _json(path: Path, text: str, line: str) -> str | None:
    try:
        if isinstance(json.loads(line), dict) and "\n" in text.strip():
            return "jsonl"
    except (ValueError, RecursionError):
        pass
    data = path.read_bytes()
    if b'"sentences"' in data and b'"images"' in data:
        return "karpathy"
    if b'"annotations"' in data and b'"images"' in data:
        return "coco"
    return "reid" if text[0] == "[" and b'"caption' in data else None
