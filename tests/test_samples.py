"""Samples of a system that speaks: the page, its sentences and ranks against the verbs', and how a browser shows it."""

import html
import re

import pytest
from helpers import planted

from xmodal_jax import cli
from xmodal_jax.evaluation.run import Run
from xmodal_jax.text.generation import Decoding
from xmodal_jax.verbs import samples

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of STT with attention on pictures, and one of VSE++."""
    folder = tmp_path_factory.mktemp("samples")
    data = planted(folder / "data", train=24, other=6, pictures=True)
    options = ["--data", str(data), "--config.data.minimum_count=1", "--config.data.batch_size=8"]
    for spec, steps in (("stt_att.py:stt_att", 30), ("vse.py:vsepp", 1)):
        argv = ["train", "--config", f"{spec},scenes,tiny", "--workdir", str(folder / spec[:3]), *options]
        assert cli.run([*argv, f"--config.steps={steps}"]) == 0
    return folder


def run(capsys, *argv):
    code = cli.run([str(arg) for arg in argv])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_samples_are_what_the_verbs_say(folder, capsys):
    workdir = folder / "stt"
    best = Run(workdir).checkpoints.best()  # which the verbs take
    found = samples.collect(Run(workdir), best, "test", Decoding(), count=4, seed=1)
    assert len(found) == 4 and len({one.id for one in found}) == 4
    rows = Run(workdir).dataset.split("test")
    for one in found:
        row = rows.ids.index(one.id)
        assert one.truth == rows.captions[row] and one.picture == rows.pictures[row]
        assert len(one.retrieved) == 3 and len(one.paraphrases) == 2
        own = [text for text, right in one.retrieved if right]
        assert set(own) <= set(one.truth)
        assert all(text in one.truth for text, right in one.retrieved if right)
    names = [one.id for one in found]
    _, out, _ = run(capsys, "caption", "--workdir", workdir, "--image", *names)
    assert out.splitlines() == [f"{one.id}\t{one.said}" for one in found]
    asked = [text for one in found for text, _ in one.paraphrases]
    assert asked == [text for one in found for text in one.truth[:2]]
    _, out, _ = run(capsys, "paraphrase", "--workdir", workdir, *asked)
    assert out.splitlines() == [f"{text}\t{said}" for one in found for text, said in one.paraphrases]


def test_show_writes_the_page(folder, capsys, tmp_path):
    page = tmp_path / "samples.html"
    code, out, _ = run(capsys, "show", folder / "stt", "--samples", page, "--count", 3, "--beams", 2)
    assert code == 0
    lines = out.partition(f"# samples: {page}")[0].splitlines()[-3:]
    text = page.read_text(encoding="utf-8")
    assert text.count("<article>") == text.count("data:image/jpeg;base64,") == 3
    for line in lines:
        name, said = line.split("\t")
        assert f"<h2>{name}</h2>" in text and f"<dd class=said>{html.escape(said)}</dd>" in text
    assert not re.search(r"https?://|<script|url\(", text)


def test_what_cannot_be_sampled_is_one_sentence(folder, capsys, tmp_path):
    page = tmp_path / "samples.html"
    for argv, words in (
        ((folder / "vse", "--samples", page), "does not speak"),
        ((folder / "stt", folder / "vse", "--samples", page), "--samples draws one run"),
        ((folder / "stt", "--samples", tmp_path / "samples.png"), "ends in .html or .htm"),
        ((folder / "stt", "--samples", page, "--count", "0"), "--count"),
    ):
        code, _, err = run(capsys, "show", *argv)
        assert code == 2 and words in err and len(err.splitlines()) == 1, err
        assert not page.exists()


HOSTILE = samples.Sample(
    "<b>id</b>",
    None,
    "<img src=x onerror='window.hurt=1'>",
    [("a | b", "<script>window.hurt=1</script>")],
    [("& so", True), ("other", False)],
    ["& so"],
)


def test_text_stays_text(tmp_path):
    page = samples.to_html("title & co", [HOSTILE])
    assert "<script" not in page and "<img" not in page and "<b>" not in page
    assert "<li class=own>&amp; so</li>" in page
    (row,) = samples.to_markdown([HOSTILE], tmp_path).splitlines()[2:]
    assert row.count("|") - row.count("\\|") == 6 and "<" not in row.replace("&lt;", "")


@pytest.mark.slow
def test_a_browser_shows_the_page(folder, tmp_path):
    pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    from test_page import CHROMIUM, FLAGS, sync_playwright

    if not CHROMIUM:
        pytest.skip("no Chromium on the path")
    made = Run(folder / "stt")
    samples.make(made, 30, "test", tmp_path / "samples.html", Decoding(), count=3, seed=0)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        complaints, asked = [], []
        for width in (1200, 375):
            tab = chromium.new_page(viewport={"width": width, "height": 900})
            tab.on("console", lambda line: complaints.append(line.text))
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto((tmp_path / "samples.html").as_uri())
            assert tab.locator("article").count() == 3
            widths = tab.eval_on_selector_all("article img", "images => images.map(image => image.naturalWidth)")
            assert len(widths) == 3 and min(widths) > 0
            assert tab.locator("dd.said").all_inner_texts() != []
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        chromium.close()
    assert complaints == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
