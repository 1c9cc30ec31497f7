"""docs/library.ipynb: its cells run in order and say what they promise; it holds no outputs."""

import json
from pathlib import Path

import pytest

import xmodal_jax

pytestmark = pytest.mark.usefixtures("one_device")
NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "library.ipynb"


@pytest.mark.slow
def test_the_cells_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4 and NOTEBOOK.stat().st_size < 16_000
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["images"].shape == (len(names["split"]), names["texts"].shape[1])
    table = xmodal_jax.recall(names["images"], names["texts"], names["image_of_caption"])
    assert (table.i2t, table.t2i) == (names["table"].i2t, names["table"].t2i)
    assert [hit.rank for hit in names["hits"]] == [hit.rank for hit in names["captions"]] == [1, 2, 3]
    said = capsys.readouterr().out
    assert str(names["table"]) in said and "rsum" in said
    assert names["folder"].parent == tmp_path  # nothing is left elsewhere
