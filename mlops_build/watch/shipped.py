"""Files that the package brings for those who watch: `mlops-build watch files DIR` writes them."""

from importlib.resources import files
from pathlib import Path

from mlops_build import __version__
from mlops_build.errors import Failed, NotFound, Refused

# What each is for; the order is that of the how-to (docs/how-to/watch-your-cards.md).
FILES = {
    "daemonset.yaml": "Kubernetes: the exporter on each GPU node; it also makes the lease directory",
    "Dockerfile": "the exporter's image, which the DaemonSet names",
    "prometheus-scrape.yaml": "Prometheus: which pods to scrape; an entry for scrape_configs",
    "prometheus-rules.yaml": "Prometheus: alerts",
    "grafana-dashboard.json": "Grafana: a dashboard to import",
    "zabbix-template.yaml": "Zabbix 6.0 or newer: a template to import",
    "zabbix-userparameters.conf": "Zabbix's agent: goes to zabbix_agentd.d (Debian: /etc/zabbix/zabbix_agentd.conf.d)",
}


def read(name: str) -> str:
    """One of FILES, for this version of the package. Raises NotFound."""
    if name not in FILES:
        raise NotFound(f"the package brings no {name!r}", remedy=f"it brings {', '.join(FILES)}")
    return (files("mlops_build.watch") / "files" / name).read_text(encoding="utf-8").replace("MLOPS_BUILD_VERSION", __version__)


def write(folder: Path, *, force: bool = False) -> list[Path]:
    """Write all of them. Raises Refused where a file with another content is there (unless force), Failed where one cannot be written."""
    contents = {folder / name: read(name) for name in FILES}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        changed = [path for path, content in contents.items() if path.exists() and path.read_text(encoding="utf-8") != content]
        if changed and not force:
            names = ", ".join(path.name for path in changed)
            raise Refused(f"{folder} has these with other content: {names}", remedy="name another folder, or --force to replace them")
        for path, content in contents.items():
            path.write_text(content, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{folder} cannot be written: {error}", remedy="name a folder that this user may write to") from None
    return list(contents)
