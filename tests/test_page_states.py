"""The page before a question and beside its answers: examples, the way back, missing files, an honest scale."""

import json
import re

import pytest

pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")

from playwright.sync_api import expect
from test_page import address, browser, page, pytestmark, search  # noqa: F401  (fixtures)


def test_an_empty_page_offers_sentences_and_pictures_of_the_gallery(page):  # noqa: F811
    page.wait_for_selector(".hit")
    examples = page.locator(".example")
    assert 1 <= examples.count() <= 3
    sentence = examples.first.inner_text()
    assert page.get_attribute("#text", "placeholder") == sentence
    examples.first.click()
    expect(page.locator("#message")).to_contain_text(" ms.")
    assert page.input_value("#text") == sentence
    assert page.locator("#examples").is_hidden()
    assert page.complaints == []


def test_the_way_back_leads_to_the_question_before(page):  # noqa: F811
    search(page, "a red square")
    search(page, "two circles")
    page.go_back()
    expect(page.locator("#text")).to_have_value("a red square")
    expect(page.locator("#message")).to_contain_text(" ms.")
    page.go_back()
    expect(page.locator("#text")).to_have_value("")
    page.wait_for_selector(".example")
    page.go_forward()
    expect(page.locator("#text")).to_have_value("a red square")


def test_a_missing_file_is_said_in_words(page):  # noqa: F811
    page.route("**/items/*/picture", lambda route: route.fulfill(status=404, body="{}"))
    search(page, "a red square")
    expect(page.locator(".hit .frame").first).to_have_text("the picture’s file is missing")
    page.click(".hit")
    expect(page.locator("#gone")).to_be_visible()
    assert page.locator("#picture").is_hidden()


def attention(weights):
    boxes = [[0.1 * i, 0.1, 0.1 * i + 0.1, 0.3] for i in range(len(weights[0]))]
    body = {"words": ["a", "square"], "boxes": boxes, "weights": weights, "uniform": 1 / len(boxes)}
    return json.dumps({**body, "score": 0.5, "unknown": []})


def test_attention_is_drawn_on_one_scale_for_all_words(page):  # noqa: F811
    even, sharp = [0.25] * 4, [0.97, 0.01, 0.01, 0.01]
    answer = attention([even, sharp])
    page.route("**/attend", lambda route: route.fulfill(body=answer, content_type="application/json"))
    search(page, "a square")
    page.click(".hit")
    page.hover(".word:nth-child(1)")
    expect(page.locator("#look-note")).to_contain_text("25 % of its attention")
    expect(page.locator("#look-note")).to_contain_text("each of the 4 would get 25 %")
    assert page.locator("#boxes .outline").count() == 0  # nothing stands out, and nothing is drawn as if it did
    page.hover(".word:nth-child(2)")
    expect(page.locator("#boxes .outline")).to_have_count(1)
    assert float(page.get_attribute("#boxes .outline", "stroke-opacity")) > 0.95


def test_the_words_of_steps_are_shaded_by_their_shares(page):  # noqa: F811
    body = json.loads(attention([[0.25] * 4, [0.97, 0.01, 0.01, 0.01]]))
    body["steps"] = [[0.25, 0.25], [0.05, 0.9]]
    page.route("**/attend", lambda route: route.fulfill(json=body))
    search(page, "a square")
    page.click(".hit")
    page.wait_for_selector(".step")
    shares = (
        "[...document.querySelectorAll('.step span')].map((word) => Number(word.style.getPropertyValue('--share')))"
    )
    assert page.evaluate(shares) == [0, 0, 0, pytest.approx(0.924, abs=1e-3)]  # on the scale of the regions
    colours = "[...document.querySelectorAll('.step span')].map((word) => getComputedStyle(word).backgroundColor)"
    first, *others, last = page.evaluate(colours)
    assert others == [first] * 2 and last != first
    page.hover(".step:nth-child(1) button")
    expect(page.locator("#look-note")).to_contain_text("25 % of its attention")
    assert page.locator("#boxes .outline").count() == 0
    page.hover(".step:nth-child(2) button")
    expect(page.locator("#look-note")).to_contain_text("“square” gets the most, 90 %")
    expect(page.locator("#boxes .outline")).to_have_count(1)


def test_cut_candidates_are_told(page):  # noqa: F811
    page.route(
        "**/search",
        lambda route: route.fulfill(json={"kind": "images", "unknown": [], "scored": 100, "of": 12000, "hits": []}),
    )
    page.fill("#text", "a")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("no pictures")
    hit = {"row": 0, "id": "x", "captions": ["a"], "picture": False, "size": [0, 0], "said": None, "score": 0.1}
    answer = {"kind": "images", "unknown": [], "scored": 100, "of": 12000, "hits": [hit]}
    page.unroute("**/search")
    page.route("**/search", lambda route: route.fulfill(json=answer))
    page.fill("#text", "b")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text(re.compile("100 of 12,000 were scored in full"))
