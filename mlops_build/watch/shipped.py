"""Configuration files for monitoring: `mlops-build watch files DIR` writes them."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from mlops_build import __version__
from mlops_build.errors import Failed, NotFound, Refused

# Same order as docs/how-to/watch-your-cards.md.
FILES = {
    "daemonset.yaml": "Kubernetes: runs the exporter on each GPU node and creates the lease directory",
    "Dockerfile": "the exporter's image, used by the DaemonSet",
    "prometheus-scrape.yaml": "Prometheus: an entry for scrape_configs",
    "prometheus-rules.yaml": "Prometheus: alerts",
    "grafana-dashboard.json": "Grafana: a dashboard to import",
    "zabbix-template.yaml": "Zabbix 6.0 or newer: a template to import",
    "zabbix-userparameters.conf": "Zabbix's agent: copy it to zabbix_agentd.d (Debian: /etc/zabbix/zabbix_agentd.conf.d)",
}


def read(name: str) -> str:
    """One of FILES, for this version of the package. Raises NotFound."""
    if name not in FILES:
        raise NotFound(f"the package has no file {name!r}", remedy=f"its files are {', '.join(FILES)}")
    return (files("mlops_build.watch") / "files" / name).read_text(encoding="utf-8").replace("MLOPS_BUILD_VERSION", __version__)


def write(folder: Path, *, force: bool = False) -> list[Path]:
    """Write all files, as `write_files` does."""
    return write_files(folder, {name: read(name) for name in FILES}, force=force)


def write_files(folder: Path, texts: Mapping[str, str], *, force: bool = False) -> list[Path]:
    """Write files by their names. Raises Refused if one exists with other content (unless force), Failed if one cannot be written."""
    contents = {folder / name: text for name, text in texts.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        changed = [path for path, content in contents.items() if path.exists() and path.read_text(encoding="utf-8") != content]
        if changed and not force:
            names = ", ".join(path.name for path in changed)
            raise Refused(f"{folder} has files with other content: {names}", remedy="name another folder, or use --force to replace them")
        for path, content in contents.items():
            path.write_text(content, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{folder} cannot be written: {error}", remedy="name a folder that this user can write to") from None
    return list(contents)
