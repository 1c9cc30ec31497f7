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
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>xmodal: addresses</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/page.css">'
        f'</head><body><header><h1>xmodal</h1></header><main><p>The same as <a href="/openapi.json">openapi.json</a>.'
        f"</p>{''.join(parts)}</main></body></html>"
    )


def _shape(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> Any:
    """A JSON schema as an example of its types."""
    if "$ref" in schema:
        schema = whole["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for many in ("oneOf", "anyOf"):
        if many in schema:
            return [_shape(one, whole) for one in schema[many]]
    if schema.get("type") == "object":
        return {name: _shape(value, whole) for name, value in schema.get("properties", {}).items()}
    return schema.get("type", "anything")
