"""Files to run and to watch the bridge: `mlops-build bridge files` writes them."""

from importlib.resources import files

from mlops_build import __version__

FILES = ("bridge.yaml", "Dockerfile", "prometheus-rules.yaml", "grafana-dashboard.json", "zabbix-template.yaml")


def texts() -> dict[str, str]:
    """The files by their names, for this version of the package."""
    folder = files("mlops_build.bridge") / "files"
    return {name: (folder / name).read_text(encoding="utf-8").replace("MLOPS_BUILD_VERSION", __version__) for name in FILES}
