"""Every command: its module, its one line, and the extra that it needs. Nothing is imported until a command is used."""

from typing import NamedTuple


class Command(NamedTuple):
    module: str
    summary: str
    extra: str | None  # what `pip install 'mlops-build[EXTRA]'` brings; None: the base is enough


COMMANDS: dict[str, Command] = {
    "train": Command("mlops_build.cli.train", "run the pipeline, commit, push, register a version", "train"),
    "promote": Command("mlops_build.cli.promote", "point an environment's alias at a model version", "operate"),
    "rollback": Command("mlops_build.cli.rollback", "point it back at the version before", "operate"),
    "release": Command("mlops_build.cli.release", "write one environment's release record from its alias", "operate"),
    "bridge": Command("mlops_build.cli.bridge", "turn moved aliases into commits in many repositories", "operate"),
    "package": Command("mlops_build.cli.package", "write the build context of a model version", "operate"),
    "serve": Command("mlops_build.cli.serve", "answer /invocations from a build context or a model version", "serve"),
    "lineage": Command("mlops_build.cli.lineage", "show what a model version was made from", "operate"),
    "doctor": Command("mlops_build.cli.doctor", "check what is installed, reachable and configured", None),
    "ci": Command("mlops_build.cli.ci", "the steps that the Bamboo plans call; the same on a laptop", "train"),
    "completion": Command("mlops_build.cli.completion", "print a completion script for bash, zsh or fish", None),
}
