"""What the service says of a request that is wrong, and of itself, in words of its own: nothing of Python in them."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

FAULTS = {  # pydantic's kinds of errors, whose own words are for programmers
    "missing": "it is missing",
    "extra_forbidden": "there is no such key",
    "string_type": "it is a string",
    "literal_error": "it is {expected}",
    "int_type": "it is a whole number",
    "int_from_float": "it is a whole number",
    "int_parsing": "it is a whole number",
    "int_parsing_size": "it is a whole number of a usual size",
    "string_too_short": "it has at least {min_length} character",
    "string_too_long": "it has at most {max_length:,} characters",
    "greater_than_equal": "it is at least {ge:,}",
    "less_than_equal": "it is at most {le:,}",
    "less_than": "it is below {lt:,}",
    "string_unicode": "it has half a character (a lone surrogate)",
    "value_error": "it has half a character (a lone surrogate)",
}
OBJECTS = ("model_type", "model_attributes_type", "dict_type", "union_tag_invalid", "union_tag_not_found")


def fault_of(error: Mapping[str, Any]) -> str:
    """One sentence of an error of pydantic's; never the input itself, which may be anything."""
    kind, place = error["type"], error["loc"][-1] if error["loc"] else "body"
    if kind == "json_invalid":
        return "The body is no JSON."
    if kind in OBJECTS or place == "body":
        return "The body is no JSON object of the keys that this address takes."
    return f'"{place}": {FAULTS.get(kind, "it is not what this address takes").format(**error.get("ctx", {}))}.'


def page_of(title: str, body: str) -> str:
    """A page without a script."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/page.css">'
        f"</head><body><header><h1>xmodal</h1></header><main>{body}</main></body></html>"
    )


def results_of(text: str, answer: Mapping[str, Any] | None, trouble: str = "") -> str:
    """What the page shows of a sentence to browsers without JavaScript; ``trouble`` says why there is no answer."""
    shown = html.escape(text)
    form = (
        '<form action="/" method="get" role="search"><label for="text">Describe a picture</label><div class="row">'
        f'<input id="text" name="text" type="search" maxlength="2000" value="{shown}">'
        '<button type="submit">Search</button></div></form>'
    )
    if answer is None:
        return page_of("xmodal search", f'{form}<p id="error" role="alert">{html.escape(trouble)}</p>')
    strange = html.escape(", ".join(answer["unknown"]))
    note = f"<p>Not in the vocabulary: {strange}.</p>" if strange else ""
    if answer.get("cut"):
        note += f"<p>The sentence is too long: its last {answer['cut']:,} words were not read.</p>"
    if answer["scored"] < answer["of"]:
        note += f"<p>{answer['scored']:,} of {answer['of']:,} were scored in full.</p>"
    rows = []
    for rank, hit in enumerate(answer["hits"], 1):
        caption = html.escape(hit["captions"][0] if hit["captions"] else hit["id"])
        place = f"/items/{int(hit['row'])}"
        image = f'<img src="{place}/picture" alt="Picture: {caption}" loading="lazy" width="240">'
        rows.append(f"<li>{image if hit['picture'] else ''}<p>{rank}. {caption} ({hit['score']:.3f})</p></li>")
    return page_of("xmodal search", f'{form}{note}<ul id="hits" aria-label="Pictures">{"".join(rows)}</ul>')


def docs_of(schema: Mapping[str, Any]) -> str:
    """A page of the service's addresses, from its own schema; it needs no script and nothing of another host."""
    parts = []
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            title, summary = f"{method.upper()} {html.escape(path)}", html.escape(about["summary"])
            lines = [f"<h3><code>{title}</code></h3><p>{summary}.</p>"]
            for kind, content in about.get("requestBody", {}).get("content", {}).items():
                shape = html.escape(json.dumps(_shape(content["schema"], schema)))
                lines.append(f"<p>{html.escape(kind)}: <code>{shape}</code></p>")
            for given in about.get("parameters", ()):
                lines.append(f"<p><code>{html.escape(given['name'])}</code> in the {html.escape(given['in'])}</p>")
            answers = [f"{code} {html.escape(answer['description'])}" for code, answer in about["responses"].items()]
            parts.append("".join([*lines, f'<p class="faint">{" &middot; ".join(answers)}</p>']))
    head = '<p>The same as <a href="/openapi.json">openapi.json</a>.</p>'
    return page_of("xmodal: addresses", head + "".join(parts))


def _shape(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> Any:
    """A JSON schema as an example of its types."""
    if "$ref" in schema:
        schema = whole["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for many in ("oneOf", "anyOf"):
        if many in schema:
            return [_shape(option, whole) for option in schema[many]]
    if schema.get("type") == "object":
        return {name: _shape(value, whole) for name, value in schema.get("properties", {}).items()}
    return schema.get("type", "anything")
