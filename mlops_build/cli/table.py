"""Every command: its module, its summary, and the extra that it needs. Nothing is imported until a command is used.

The extra is that of `pip install 'mlops-build[EXTRA]'`; None if the base is enough. Plain tuples, because a class here would cost every
start some milliseconds.
"""

Command = tuple[str, str, str | None]

COMMANDS: dict[str, Command] = {
    "scaffold": ("mlops_build.cli.scaffold", "generate a service from a training script, or around an adopted model", "train,template"),
    "train": ("mlops_build.cli.train", "run the pipeline, commit, push, register a version", "train"),
    "register": ("mlops_build.cli.register", "register a version with the weights of another one", "train"),
    "adopt": ("mlops_build.cli.adopt", "bring old model files into the registry", "train,swift"),
    "promote": ("mlops_build.cli.promote", "point an environment's alias at a model version", "operate"),
    "rollback": ("mlops_build.cli.rollback", "point an environment's alias back at the previous version", "operate"),
    "hold": ("mlops_build.cli.hold", "stop machines from changing an environment, or end that", "operate"),
    "release": ("mlops_build.cli.release", "write an environment's release record from its alias", "operate"),
    "history": ("mlops_build.cli.history", "list who released what, when and why", "operate"),
    "bridge": ("mlops_build.cli.bridge", "turn moved aliases into commits in many repositories", "operate"),
    "models": ("mlops_build.cli.models", "list the registered models and what each environment runs", "operate"),
    "audit": ("mlops_build.cli.audit", "find what does not fit together in registry, stores and repositories", "operate"),
    "backup": ("mlops_build.cli.backup", "copy the registry's database and files, incrementally; check and list the copies", "operate"),
    "restore": ("mlops_build.cli.restore", "restore such a copy into an empty database and an empty place", "operate"),
    "registry": ("mlops_build.cli.registry", "set aliases from MLflow's deprecated stages", "operate"),
    "package": ("mlops_build.cli.package", "write the build context of a model version", "operate"),
    "serve": ("mlops_build.cli.serve", "answer /invocations from a build context or a model version", "serve"),
    "compare": ("mlops_build.cli.compare", "send the same requests to two services, and compare the answers", None),
    "stub": ("mlops_build.cli.stub", "answer like a service, without its model: for tests of its callers", None),
    "gpu": ("mlops_build.cli.gpu", "list the cards, and reserve memory on one for a program", None),
    "lineage": ("mlops_build.cli.lineage", "show what a model version was made from", "operate"),
    "update": ("mlops_build.cli.update", "merge a newer version of the template into a service", "template"),
    "verify": ("mlops_build.cli.verify", "check Kubernetes manifests and CI specs", "operate"),
    "watch": ("mlops_build.cli.watch", "export metrics of a node's GPUs to Prometheus, Graphite and Zabbix", "watch"),
    "doctor": ("mlops_build.cli.doctor", "check what is installed, reachable and configured", None),
    "ci": ("mlops_build.cli.ci", "run a step of the CI plans, here or on an agent", "train"),
    "completion": ("mlops_build.cli.completion", "print a completion script for bash, zsh or fish", None),
}
