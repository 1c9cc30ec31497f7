"""The page, in a headless Chromium: search, keyboard, attention, pictures of one's own, hostile captions, states."""

import contextlib
import os
import shutil
import socket
import threading
import time

import galleries
import pytest
from helpers import resealed

pytest.importorskip("fastapi", reason="the service needs the extra serve")
pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from xmodal_jax.serve import guard
from xmodal_jax.serve.app import make_app
from xmodal_jax.serve.batcher import Batcher
from xmodal_jax.serve.live import Live

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path (Debian's package chromium, or set CHROMIUM)"),
]


@contextlib.contextmanager
def serving(gallery):
    """The address of a running service."""
    import uvicorn

    live, batcher, metrics = Live(gallery), Batcher(), guard.Metrics()
    guarded = guard.Guard(make_app(live, batcher, metrics), metrics=metrics, log=None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(guarded, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()
    batcher.close()
    live.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with serving(galleries.gallery(tmp_path_factory.mktemp("page"))) as url:
        yield url


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A service of a system that speaks, and says hostile things."""

    def spoil(_, lines):
        for line, hostile in zip(lines, galleries.HOSTILE, strict=True):
            line["said"] = hostile

    folder = tmp_path_factory.mktemp("speaking")
    with serving(resealed(galleries.gallery(folder, system="stt.py:stt"), folder / "hostile", spoil)) as url:
        yield url


@pytest.fixture(scope="module")
def likening(tmp_path_factory):
    """A service of a system that compares pictures with pictures."""
    with serving(galleries.gallery(tmp_path_factory.mktemp("likening"), system="vse.py:vsepp")) as url:
        yield url


@pytest.fixture(scope="module")
def stepping(tmp_path_factory):
    """A service of a system whose steps look."""
    with serving(galleries.gallery(tmp_path_factory.mktemp("stepping"), system="smlstm.py:smlstm")) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@contextlib.contextmanager
def opened(browser, address):
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.complaints = []
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("console", lambda line: tab.complaints.append(line.text) if line.type == "error" else None)
    tab.goto(address)
    expect(tab.locator("#facts")).to_contain_text("pictures")
    yield tab
    assert tab.evaluate("window.hurt") is None
    tab.close()


@pytest.fixture
def page(browser, address):
    with opened(browser, address) as tab:
        yield tab


@pytest.fixture
def speaking_page(browser, speaking):
    with opened(browser, speaking) as tab:
        yield tab


def search(page, text):
    page.fill("#text", text)
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text(" ms.")


def test_hostile_captions_stay_text(page):
    search(page, "a red square")
    shown = page.locator(".hit .caption").all_text_contents()
    assert sorted(shown) == sorted(galleries.HOSTILE)
    assert page.locator("#hits script, #hits iframe, #hits style, #hits math, #hits a").count() == 0
    for row in range(galleries.COUNT):
        page.locator(".hit").nth(row).click()
        page.wait_for_selector("#captions button")
        page.keyboard.press("Escape")
        page.wait_for_selector("#detail", state="hidden")
    assert page.complaints == []


def test_a_word_is_drawn_over_the_picture(page):
    search(page, "a red square")
    page.click(".hit")
    page.wait_for_selector(".word")
    assert page.locator(".word").all_text_contents() == ["a", "red", "square"]
    page.hover(".word:nth-child(2)")
    page.wait_for_selector("#boxes .outline")
    assert page.get_attribute(".word:nth-child(2)", "aria-pressed") == "true"
    assert "of its attention" in page.inner_text("#look-note")
    page.click("#captions li:nth-child(2) button")
    expect(page.locator("#look-note")).to_contain_text("Score")
    assert page.locator("#captions .own").count() >= 1
    assert page.complaints == []


def test_steps_are_drawn_over_the_picture_and_the_words(browser, stepping):
    with opened(browser, stepping) as page:
        search(page, "a red zyzzyva")
        page.click(".hit")
        page.wait_for_selector(".step")
        buttons = page.locator(".step button")
        assert buttons.all_text_contents() == ["Step 1", "Step 2", "Step 3"]
        assert page.inner_text("#look-title") == "What each step looks at"
        for step in range(3):
            assert page.locator(".step").nth(step).locator("span").all_text_contents() == ["a", "red", "zyzzyva"]
            buttons.nth(step).hover()
            assert buttons.nth(step).get_attribute("aria-pressed") == "true"
            assert page.locator("#words [aria-pressed=true]").count() == 1
            page.wait_for_selector("#boxes .fog", state="attached")
            expect(page.locator("#look-note")).to_contain_text(f"Step {step + 1} gives")
            expect(page.locator("#look-note")).to_contain_text("Of its attention to the sentence")
        assert page.locator(".step .strange").all_text_contents() == ["zyzzyva"] * 3
        expect(page.locator("#captions-note")).to_contain_text("Choose one to see what each step looks at.")
        page.click("#captions li:nth-child(2) button")
        expect(page.locator("#look-note")).to_contain_text("Point at a step")
        assert page.locator(".step").count() == 3
        assert page.complaints == []


def test_what_the_model_says_stays_text(speaking_page):
    page = speaking_page
    search(page, "a red square")
    said = []
    for row in range(galleries.COUNT):
        page.locator(".hit").nth(row).click()
        page.wait_for_selector("#captions button")
        said.append(page.inner_text("#said"))
        page.keyboard.press("Escape")
        page.wait_for_selector("#detail", state="hidden")
    assert sorted(said) == sorted(f"The model says: {hostile}" for hostile in galleries.HOSTILE)
    assert page.locator("#said > *").count() == 1  # the words before it
    assert page.complaints == []


@pytest.mark.parametrize("token", ["", "sesame"])  # with one, the page fetches pictures itself
def test_the_sentence_is_there_at_once_and_does_not_move(speaking_page, token):
    page, held = speaking_page, []
    page.evaluate(f"sessionStorage.setItem('token', '{token}')")
    page.reload()
    page.route("**/items/*/picture", lambda route: held.append(route))
    search(page, "a red square")
    page.locator(".hit").nth(1).click()
    page.wait_for_selector("#captions button")
    assert page.locator("#said").is_visible()
    assert page.evaluate("document.querySelector('#picture').naturalWidth") == 0
    where = "document.querySelector('#said').getBoundingClientRect().top"
    before = page.evaluate(where)
    for route in held:
        route.continue_()
    expect(page.locator("#picture")).not_to_have_js_property("naturalWidth", 0)
    assert page.evaluate(where) == before


def test_of_a_picture_of_ones_own_the_model_speaks_too(speaking_page, tmp_path):
    page, picture = speaking_page, tmp_path / "own.png"
    Image.new("RGB", (200, 150), (200, 30, 30)).save(picture)
    page.set_input_files("#file", picture)
    page.wait_for_selector("#asked-captions button")
    said = page.inner_text("#asked-said")
    assert said.startswith("The model says: ")
    assert len(said) > len("The model says: ")
    assert page.complaints == []


def test_a_system_that_is_silent_is_not_quoted(page):
    search(page, "a red square")
    page.click(".hit")
    page.wait_for_selector("#captions button")
    assert page.locator("#said").is_hidden()


def test_the_keyboard_is_enough(page):
    page.locator("h1").click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("two circles")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    page.locator(".hit").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("[...document.querySelectorAll('.hit')].indexOf(document.activeElement)") == 1
    page.keyboard.press("Enter")
    page.wait_for_selector("#captions button")
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    assert page.evaluate("location.hash") == "#q=two%20circles"
    page.reload()
    page.wait_for_selector(".hit")


def test_a_picture_of_ones_own_ranks_captions(page, address, tmp_path):
    picture = tmp_path / "own.png"
    Image.new("RGB", (200, 150), (200, 30, 30)).save(picture)
    page.set_input_files("#file", picture)
    page.wait_for_selector("#asked-captions button")
    assert page.locator("#asked-captions li").count() == 20
    page.click("#asked-captions li:first-child button")
    page.wait_for_selector(".hit")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("#file", broken)
    page.wait_for_selector("#error:not([hidden])")
    assert "not a readable" in page.inner_text("#error")


def test_pictures_like_a_picture(browser, likening, tmp_path):
    with opened(browser, likening) as page:
        search(page, "a red square")
        page.click(".hit")
        title = page.inner_text("#detail-title")
        page.click("#similar")
        page.wait_for_selector("#detail", state="hidden")
        expect(page.locator("#message")).to_have_text(f"11 pictures like {title}, the most alike first.")
        assert page.locator(".hit").count() == 11 and page.input_value("#text") == ""
        scores = [float(score) for score in page.locator(".hit .rank span:last-child").all_text_contents()]
        assert scores == sorted(scores, reverse=True)
        first = page.locator(".hit").first.get_attribute("aria-label")
        page.reload()
        expect(page.locator("#message")).to_contain_text(f"like {title}")
        assert page.locator(".hit").first.get_attribute("aria-label") == first
        page.go_back()
        expect(page.locator("#message")).to_contain_text(" ms.")
        assert page.input_value("#text") == "a red square" and page.locator(".hit").count() == galleries.COUNT
        picture = tmp_path / "own.png"
        Image.new("RGB", (200, 150), (200, 30, 30)).save(picture)
        assert page.locator("#alike").is_visible()
        page.set_input_files("#file", picture)
        page.wait_for_selector("#asked-captions button")
        assert page.locator(".hit").count() == galleries.COUNT
        expect(page.locator("#message")).to_contain_text("Below: the pictures most like it.")
        assert page.complaints == []


def test_what_compares_no_pictures_does_not_offer_it(page):
    assert page.locator("#drop").is_visible() and page.locator("#alike").is_hidden()
    search(page, "a red square")
    page.click(".hit")
    page.wait_for_selector("#captions button")
    assert page.locator("#similar").is_hidden()


def test_states_are_told(page):
    page.fill("#text", "   ")
    page.keyboard.press("Enter")
    assert "Write what" in page.inner_text("#message")
    search(page, "zyzzyva square")
    expect(page.locator("#message")).to_contain_text("zyzzyva")
    page.route("**/search", lambda route: route.fulfill(status=429, body='{"detail": "x"}'))
    page.fill("#text", "one")
    page.keyboard.press("Enter")
    page.wait_for_selector("#error:not([hidden])")
    assert "busy" in page.inner_text("#error")
    page.unroute("**/search")
    page.route("**/search", lambda route: route.abort())
    page.fill("#text", "two")
    page.keyboard.press("Enter")
    expect(page.locator("#error")).to_contain_text("does not answer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser, address, scheme):
    phone = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    phone.goto(address + "#q=a%20red%20square")
    phone.wait_for_selector(".hit")
    assert phone.evaluate("document.documentElement.scrollWidth") == 360
    phone.click(".hit")
    phone.wait_for_selector(".word")
    assert phone.evaluate("document.querySelector('#detail').scrollWidth") <= 360
    ink, paper = phone.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    bright = [sum(map(int, value[4:-1].split(",")[:3])) for value in (ink, paper)]
    assert (bright[0] < bright[1]) == (scheme == "light")
    phone.close()
