"""/docs: a page that shows the contract and can send requests. It loads nothing from other hosts."""

import html
import json
from collections.abc import Mapping
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
textarea, pre { font: 14px/1.4 monospace; width: 100%; box-sizing: border-box; padding: .5rem; border: 1px solid #bbb; border-radius: 4px }
textarea { height: 12rem } pre { background: #f6f6f6; overflow: auto; min-height: 3rem }
button { font: inherit; padding: .3rem 1rem; margin: .5rem 0 }
"""
# Paths are relative to the page, so that it works behind an ingress that adds a prefix.
SCRIPT = """
for (const form of document.querySelectorAll("form")) form.addEventListener("submit", async event => {
  event.preventDefault();
  const out = form.querySelector("pre"), began = performance.now();
  out.textContent = "…";
  try {
    const headers = {"Content-Type": "application/json"}, token = document.querySelector("#token").value;
    if (token) headers["Authorization"] = "Bearer " + token;
    const answer = await fetch(form.dataset.path, {method: "POST", headers, body: form.querySelector("textarea").value});
    const text = await answer.text();
    out.textContent = answer.status + " in " + Math.round(performance.now() - began) + " ms\\n" + text;
  } catch (error) { out.textContent = String(error) }
});
"""


def page(document: Mapping[str, Any]) -> bytes:
    """The page for an OpenAPI document (model/openapi.py), with all texts escaped."""
    parts = []
    for path, methods in document["paths"].items():
        if "post" not in methods:
            continue
        content = methods["post"]["requestBody"]["content"]["application/json"]
        example = content.get("example", {"inputs": []})
        name = content["schema"]["$ref"].rpartition("/")[2]
        schema = json.dumps(document["components"]["schemas"][name], indent=1, ensure_ascii=False)
        parts.append(
            f"<h2><code>POST {html.escape(path)}</code></h2><p>{html.escape(methods['post']['summary'])}</p>"
            f'<form data-path=".{html.escape(path)}"><textarea aria-label="body" spellcheck="false">'
            f"{html.escape(json.dumps(example, indent=1, ensure_ascii=False))}</textarea><button>Send</button><pre></pre></form>"
            f"<details><summary>Request schema</summary><pre>{html.escape(schema)}</pre></details>"
        )
    title = html.escape(str(document["info"]["title"]))
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{html.escape(str(document['info']['description']))} "
        '<a href="./openapi.json">openapi.json</a> for client generators.</p>'
        f'<p><label>Token, if the service requires one: <input id="token" type="password" autocomplete="off"></label></p>{"".join(parts)}'
        f"<script>{SCRIPT}</script></body></html>"
    ).encode("utf-8", "backslashreplace")  # a lone surrogate, as JSON escapes it
