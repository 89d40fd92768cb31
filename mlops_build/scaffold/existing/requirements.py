"""Add the packages of third-party imports to pyproject.toml."""

import re
from collections.abc import Mapping
from pathlib import Path

from mlops_build.scaffold.existing.imports import distribution, installed_packages

# Imports that mlops-build[train] provides.
BROUGHT = {"mlflow", "dvc", "mlops_build"}


def add(root: Path, section_of: Mapping[str, str]) -> list[str]:
    """Add to the lists `dependencies` and `train`; returns the imports whose package is not known. section_of: import → list."""
    path = root / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    lists = {section: re.search(rf"(?ms)^{section} = \[\n(.*?)^\]", text) for section in ("dependencies", "train")}
    names = {section: re.findall(r'(?m)^    "([A-Za-z0-9-]+)', match[1]) if match else [] for section, match in lists.items()}
    installed, unknown = installed_packages(), []
    for name in sorted(section_of.keys() - BROUGHT, reverse=True):
        known, section = distribution(name, installed), section_of[name]
        if known is None:
            unknown.append(name)
        elif known[0] not in names["dependencies"] + names[section]:
            requirement = known[0] + (f">={known[1]}" if known[1] else "")
            text = re.sub(rf"(?m)^({section} = \[\n)", rf'\g<1>    "{requirement}",\n', text, count=1)
    path.write_text(text, encoding="utf-8")
    return unknown
