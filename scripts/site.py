"""A hook of mkdocs: links that leave docs/ lead to the file on GitHub, where the same relative link works as it is."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parent.parent
SOURCE = "https://github.com/mlops-build/mlops-build/blob/main"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def absolute(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        if target.startswith("docs/"):
            return link[0]
        if not (ROOT / target).exists():
            raise PluginError(f"docs/{page.file.src_uri}: {link[1]} does not exist")
        return f"]({SOURCE}/{target}"

    return re.sub(r"\]\((\.\./[^)#\s]+)", absolute, markdown)
