"""The OpenAPI document as one page of HTML: no script, nothing loaded from elsewhere."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

Schema = dict[str, Any]

_METHODS = ("get", "post")
_SAYS = {
    "format": "{}",
    "pattern": "matches {}",
    "minimum": "{} or more",
    "maximum": "{} at most",
    "minLength": "{} characters or more",
    "maxLength": "{} characters at most",
}


def page(document: Schema) -> str:
    """Render the document. Every text of it is escaped."""
    info, schemas = document["info"], document["components"]["schemas"]
    operations = list(_operations(document))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])} API</title>",
            '<link rel="stylesheet" href="/docs/style.css">\n</head>\n<body>',
            f"<header><h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
            f"<p>{_prose(info['description'])}</p>",
            '<p><a href="/openapi.json">openapi.json</a> · <a href="/dashboard">dashboard</a></p></header>',
            '<nav aria-label="Contents"><ul>',
            *(f'<li><a href="#{escape(o["operationId"])}">{_name(m, p)}</a></li>' for m, p, o in operations),
            *(f'<li><a href="#{escape(name)}">{escape(name)}</a></li>' for name in schemas),
            "</ul></nav>\n<main>\n<h2>Operations</h2>",
            *(_operation(method, path, operation) for method, path, operation in operations),
            "<h2>Schemas</h2>",
            *(_schema(name, schema) for name, schema in schemas.items()),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _operations(document: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield method, path, item[method]


def _name(method: str, path: str) -> str:
    return f'<span class="method {method}">{method.upper()}</span> <code>{escape(path)}</code>'


def _operation(method: str, path: str, operation: Schema) -> str:
    parts = [
        f'<section id="{escape(operation["operationId"])}">',
        f"<h3>{_name(method, path)}</h3>",
        f"<p><strong>{_prose(operation.get('summary', ''))}</strong></p>",
        f"<p>{_prose(operation.get('description', ''))}</p>",
    ]
    if parameters := operation.get("parameters"):
        named = [
            (f"<code>{escape(p['name'])}</code> <small>{p['in']}</small>", _type(p["schema"]), _about(p, p["schema"]))
            for p in parameters
        ]
        parts.append(_table("Parameters", ("name", "type", "about"), named))
    if body := operation.get("requestBody"):
        forms = [(f"<code>{escape(t)}</code>", _type(c.get("schema", {}))) for t, c in body["content"].items()]
        parts.append(_table("Body", ("media type", "content"), forms))
    rows = [
        (f"<code>{status}</code>", _prose(response.get("description", "")), _contents(response))
        for status, response in sorted(operation["responses"].items())
    ]
    parts.append(_table("Answers", ("status", "when", "content"), rows))
    return "\n".join([*parts, "</section>"])


def _contents(response: Schema) -> str:
    contents = response.get("content", {})
    return "<br>".join(f"{_type(c.get('schema', {}))} <small>{escape(t)}</small>" for t, c in contents.items())


def _schema(name: str, schema: Schema) -> str:
    fields, required = schema.get("properties", {}), schema.get("required", ())
    rows = [
        (
            f"<code>{escape(field)}</code>" + ("" if field in required else " <small>optional</small>"),
            _type(described),
            _about(described, described),
        )
        for field, described in fields.items()
    ]
    parts = [
        f'<section id="{escape(name)}">',
        f"<h3>{escape(name)}</h3>",
        f"<p>{_prose(schema.get('description', ''))}</p>",
        _table("Fields", ("name", "type", "about"), rows),
        "</section>",
    ]
    return "\n".join(parts)


def _type(schema: Schema) -> str:
    if reference := schema.get("$ref"):
        name = escape(reference.rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for choice, joint in (("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")):
        if choice in schema:
            return joint.join(map(_type, schema[choice]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    types = schema.get("type", "anything")
    return escape(types if isinstance(types, str) else " or ".join(types))


def _about(said: Schema, schema: Schema) -> str:
    facts = [text.format(f"<code>{escape(str(schema[key]))}</code>") for key, text in _SAYS.items() if key in schema]
    if "enum" in schema:
        facts.append("one of " + ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"]))
    return "; ".join(filter(None, [_prose(said.get("description", "")), *facts]))


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    cells = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    parts = [
        '<div class="wide" tabindex="0">',
        f"<table><caption>{caption}</caption>",
        f"<thead><tr>{titles}</tr></thead>",
        f"<tbody>{cells}</tbody>",
        "</table></div>",
    ]
    return "\n".join(parts)
