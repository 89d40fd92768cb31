"""The checklist: every line, in the order in which it is worked off."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mlops_build import doctor
from mlops_build.checklist import agent, cluster, host, image_registry, storage
from mlops_build.checklist.look import Seen, no, ok, unseen
from mlops_build.checklist.names import Names
from mlops_build.errors import MlopsBuildError

# Looks go on at once, since each mostly waits for somebody to answer.
AT_ONCE = 8
# Of the printed list.
WIDTH = 120
BAMBOO, GIT, AGENTS, IMAGES, CLUSTER, DATA = "Bamboo", "Bitbucket", "Agents", "Image registry", "Cluster", "MLflow and data"


@dataclass(frozen=True)
class Item:
    """One line. where: a heading. what: what must be so. how: what to do, in Markdown. look: None where an agent cannot see it; then
    `ask` says who can."""

    id: str
    where: str
    what: str
    how: str
    look: Callable[[], Seen] | None = None
    ask: str = ""


@dataclass(frozen=True)
class Looked:
    """An item with what was seen of it."""

    item: Item
    seen: Seen

    def as_json(self) -> dict[str, Any]:
        return {"id": self.item.id, "where": self.item.where, "what": self.item.what, "state": self.seen.state, "seen": self.seen.what}


def examine(names: Names) -> list[Looked]:
    """Look at every line, several at once; a look that fails as such is one that could not be made."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(_looked, items(names)))


def markdown(names: Names) -> str:
    """The list for people, as Markdown."""
    lines = [f"# By hand, before the plans of {names.service.name} run", "", *section(names, "##")]
    return "\n".join(lines) + "\n"


def section(names: Names, heading: str) -> Iterator[str]:
    """Its lines, under headings of this depth."""
    where = None
    for item in items(names):
        if item.where != where:
            where = item.where
            yield from (f"{heading} {where}", "")
        seen = "" if item.look else f" *An agent cannot see this: ask {item.ask}.*"
        yield f"- [ ] **`{item.id}`** {item.what}{seen}"
        yield textwrap.fill(item.how, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        yield ""


def items(names: Names) -> list[Item]:
    """The lines that this service needs."""
    return [*_bamboo(names), *_agents(names), *_git(names), *_images(names), *_cluster(names), *_gpu(names), *_data(names)]


def _bamboo(names: Names) -> Iterator[Item]:
    plans = " and ".join(f"`{key}`" for key in names.plans)
    here = names.origin or "this repository"
    yield Item(
        "bamboo-project",
        BAMBOO,
        f"The project `{names.project}` exists.",
        f"Specs cannot make a project. *Create → Create project*, key `{names.project}`.",
        lambda: agent.plan(names),
    )
    yield Item(
        "bamboo-repository",
        BAMBOO,
        f"A linked repository leads to <{here}>, and may write specs for `{names.project}`.",
        "*Linked repositories → Add repository → Bitbucket Data Center*, with the branch `main`. In its settings for Bamboo Specs "
        f"switch the scan on, and allow it to make plans in the project `{names.project}`, and deployment projects. Then {plans} and the "
        f"deployment project `{names.deployment}` appear after the next commit.",
        lambda: agent.plan(names),
    )
    yield Item(
        "bamboo-branch-specs",
        BAMBOO,
        "Only people who may use the credentials may push branches, or specs of branches are off.",
        "With Bitbucket, Bamboo takes a branch's own specs by default (since 7.0), and a branch may bring one that asks for the agents "
        "that have credentials. Where that is too much, switch specs of branches off for this repository. Branches then take main's plan, "
        "and its job Image runs none of their code.",
        ask="a Bamboo administrator",
    )
    yield Item(
        "bamboo-production",
        BAMBOO,
        "Those who may approve and deploy to production are the right ones.",
        f"The specs let the group `{names.service.team}` deploy to every environment of `{names.deployment}`; a release "
        "waits for an approval "
        "before it goes to production. Take the permission to deploy there from whom you do not mean, in `bamboo-specs/`.",
        ask=f"the team {names.service.team}",
    )


def _agents(names: Names) -> Iterator[Item]:
    for capability in names.capabilities:
        yield Item(
            "agent-capability",
            AGENTS,
            f"Agents that may hold credentials have the capability `{capability}`.",
            f"*Agents → the agent → Capabilities → Add capability*: custom, key `{capability}`, value `true`. No agent "
            "that builds branches "
            "may have it.",
            lambda capability=capability: agent.capability(capability),  # type: ignore[misc]
        )
    yield Item(
        "agent-programs",
        AGENTS,
        f"Agents have `{names.python}`, `git`, `make` and `tar`; those with credentials also `docker` and `kubectl`.",
        f"Debian: `apt-get install {names.python} {names.python}-venv git make`. `ci/mlops-build` installs the rest into `.venv` of each "
        "clean checkout, which takes minutes at first and seconds with `uv` on PATH and its cache; MLOPS_BUILD names a mlops-build that is "
        "installed, and then nothing is.",
        lambda: agent.programs([names.python, "git", "make", "tar"]),
    )
    yield Item(
        "agent-engine",
        AGENTS,
        "Docker answers the agent's user.",
        "`usermod --append --groups docker BAMBOO-USER`, and start the agent anew; or set DOCKER_HOST.",
        lambda: _doctor(doctor.engine(required=True)),
    )
    yield Item(
        "agent-index",
        AGENTS,
        "The Python package index answers.",
        "Where it is your company's: PIP_INDEX_URL (and PIP_CERT or SSL_CERT_FILE) in the agent's environment.",
        agent.package_index,
    )
    secrets = _secrets(names)
    if secrets:
        listed = ", ".join(f"`{name}`" for name in secrets)
        yield Item(
            "agent-secrets",
            AGENTS,
            f"Agents with credentials have {listed} in their environment.",
            "In the agent's own environment (its systemd unit: `EnvironmentFile=`, mode 0600), or as variables of the "
            "Bamboo project, encrypted. "
            "Should one have to stand in a spec: encrypted on *this* Bamboo instance only (`BAMSCRT@…`), never plain.",
            lambda: agent.variables(secrets),
        )
    yield Item(
        "agent-lock",
        AGENTS,
        "`requirements.lock` is committed.",
        "`make lock`, then commit it: without one every build resolves anew, and training refuses the uncommitted file.",
        lambda: _doctor(doctor.lock(names.root)),
    )


def _secrets(names: Names) -> list[str]:
    """The variables that hold what agents need to log in."""
    found = ["MLOPS_GIT_TOKEN"] if names.wants_token else []
    if names.service.tracking.uri.startswith("http"):
        found += ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
    if (names.remote or "").startswith("s3:"):
        found += ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    return found


def _git(names: Names) -> Iterator[Item]:
    repository = f"`{names.repository}`" if names.repository else f"<{names.origin or 'the repository'}>"
    yield Item(
        "git-push",
        GIT,
        f"The bot may push to {repository}.",
        "*Repository settings → HTTP access tokens → Create token* with *Repository write*, into MLOPS_GIT_TOKEN; or "
        "an SSH key of the agent's "
        "user among the *Access keys* with *Read/Write*. Bamboo's checkout may leave no usable origin: then the plan's "
        "address is taken, or "
        "MLOPS_GIT_URL.",
        lambda: host.push(names),
    )
    yield Item(
        "git-main",
        GIT,
        "Nobody pushes to `main` but the bridge; everybody may push to `retrain/*` and their own branches.",
        "*Repository settings → Branch permissions*: for `main` *Prevent all changes without a pull request*, *except* "
        "the bridge's user, and "
        "*Prevent rewriting history*. `ci train` needs no exception: it pushes `retrain/N`.",
        ask="a repository administrator (a dry run of a push does not ask the host's rules)",
    )
    yield Item(
        "git-identity",
        GIT,
        "Training commits as a user that the host knows.",
        "MLOPS_GIT_NAME and MLOPS_GIT_EMAIL on the agents. Where a hook verifies committers, the address must be that of the token's user.",
        lambda: host.identity(names),
    )
    yield Item(
        "git-bridge-identity",
        GIT,
        "The bridge commits as a user that the host knows.",
        "MLOPS_BRIDGE_NAME and MLOPS_BRIDGE_EMAIL where the bridge runs, the same in all places: its commits must not "
        "depend on who makes them.",
        ask="who runs the bridge",
    )
    prefix = names.service.git.commit_prefix
    yield Item(
        "git-hooks",
        GIT,
        "Hooks let machines' commits pass.",
        f"They start with `{prefix}`, as `git.commit_prefix` in `service.yaml` says."
        if prefix
        else "A hook that wants a Jira issue in each message: `git: {commit_prefix: ML-123}` in `service.yaml`, an issue that stays open.",
        ask="a repository administrator",
    )
    if names.service.git.pull_requests != "none":
        yield Item(
            "git-pull-requests",
            GIT,
            f"MLOPS_GIT_TOKEN may open pull requests at <{names.service.git.api}>.",
            "The same token, with *Repository write*. A certificate of your company: its file in SSL_CERT_FILE.",
            lambda: host.pull_requests(names),
        )


def _images(names: Names) -> Iterator[Item]:
    yield Item(
        "images-push",
        IMAGES,
        f"Agents with credentials may push to `{names.image}`.",
        f"As the agent's user: `docker login {names.image_host}`. Where the registry wants a repository to be made "
        "first, make "
        f"`{names.image}`. Tags must not expire while a release names them.",
        lambda: image_registry.push(names),
    )


def _cluster(names: Names) -> Iterator[Item]:
    places = names.service.environments
    spaces = list(dict.fromkeys(place.namespace for place in places.values()))
    yield Item(
        "cluster-access",
        CLUSTER,
        "Agents with credentials have a kubeconfig whose context is the cluster.",
        "KUBECONFIG in the agent's environment, for a ServiceAccount with the rights below; one cluster for all environments.",
        lambda: cluster.reachable(),
    )
    for space in spaces:
        yield Item(
            f"cluster-namespace-{space}",
            CLUSTER,
            f"The namespace `{space}` exists, and admits pods by the level `restricted`.",
            f"`kubectl create namespace {space}` and `kubectl label namespace {space} pod-security.kubernetes.io/enforce=restricted`.",
            lambda space=space: cluster.exists("namespace", space),  # type: ignore[misc]
        )
        yield Item(
            f"cluster-pull-secret-{space}",
            CLUSTER,
            f"`{space}` has the secret `registry-credentials`, with which the nodes pull from `{names.image_host}`.",
            f"`kubectl --namespace {space} create secret docker-registry registry-credentials "
            f"--docker-server={names.image_host} "
            "--docker-username=… --docker-password=…`, for a user that may only read.",
            lambda space=space: cluster.exists("secret", "registry-credentials", space),  # type: ignore[misc]
        )
    yield Item(
        "cluster-rights",
        CLUSTER,
        f"That account may get, create and patch what the overlays hold, in {', '.join(f'`{space}`' for space in spaces)}.",
        "A Role in each namespace, bound to the account: get, list, watch, create, patch on deployments, services, "
        "ingresses, serviceaccounts, "
        "networkpolicies and what else `kubectl kustomize deploy/overlays/ENV` shows; delete on "
        "horizontalpodautoscalers and "
        "poddisruptionbudgets. `kubectl auth can-i --list --namespace NAMESPACE` shows what it has.",
        lambda: cluster.rights(names),
    )
    yield Item(
        "cluster-hosts",
        CLUSTER,
        f"{', '.join(f'`{place.host}`' for place in places.values())} lead to the ingress.",
        "A DNS entry for each; an ingress controller whose IngressClass is the default one. `ci deploy` asks the recorded examples there.",
        lambda: cluster.addresses([place.host for place in places.values()]),
    )
    for env, place in places.items():
        if place.priority_class:
            yield Item(
                f"cluster-priority-{env}",
                CLUSTER,
                f"The PriorityClass `{place.priority_class}` exists.",
                f"`kubectl create priorityclass {place.priority_class} --value=…`, or remove `priority_class` of {env} "
                "from `service.yaml`.",
                lambda name=place.priority_class: cluster.exists("priorityclass", name),  # type: ignore[misc]
            )


def _gpu(names: Names) -> Iterator[Item]:
    gpu = names.service.gpu
    if gpu.mode == "exclusive":
        yield Item(
            "gpu-device-plugin",
            CLUSTER,
            "NVIDIA's device plugin hands out `nvidia.com/gpu`.",
            "The GPU operator, or the plugin's DaemonSet alone.",
            lambda: cluster.cards(),
        )
    if gpu.mode != "shared":
        return
    if gpu.runtime_class:
        yield Item(
            "gpu-runtime-class",
            CLUSTER,
            f"The RuntimeClass `{gpu.runtime_class}` exists, with NVIDIA's runtime on the GPU nodes.",
            "The NVIDIA container toolkit on the nodes; the GPU operator makes the class.",
            lambda: cluster.exists("runtimeclass", str(gpu.runtime_class)),
        )
    yield Item(
        "gpu-lease-folder",
        CLUSTER,
        f"Each GPU node has the folder `{gpu.lease_dir}`, which everybody may write to.",
        f"On each node, at each start: `install --directory --mode 1777 {gpu.lease_dir}` (`/etc/tmpfiles.d`, or a DaemonSet).",
        ask="who looks after the nodes",
    )
    files = {env: names.root / "deploy/overlays" / env / "release/gpu-leases.yaml" for env in names.service.environments}
    commands = ", ".join(
        f"`kubectl --namespace {place.namespace} apply --filename deploy/overlays/{env}/release/gpu-leases.yaml`"
        for env, place in names.service.environments.items()
    )
    yield Item(
        "gpu-volumes",
        CLUSTER,
        "The PersistentVolumes of the leases are there, or that account may make them.",
        "Better the first: who may make one may read any folder of a node. After an environment's first release, an "
        f"administrator, once: {commands}.",
        lambda: cluster.volumes([file for file in files.values() if file.is_file()]),
    )


def _data(names: Names) -> Iterator[Item]:
    uri = names.service.tracking.uri
    yield Item(
        "mlflow",
        DATA,
        f"MLflow at `{uri}` answers agents" + ("." if uri.startswith("http") else ": for agents it must be a server, not a file."),
        "The address in `tracking.uri` of `service.yaml` (MLFLOW_TRACKING_URI wins).",
        lambda: _mlflow(names),
    )
    models = ", ".join(f"`{model.name}`" for model in names.service.models)
    yield Item(
        "mlflow-rights",
        DATA,
        f"The agents' user may make experiments, runs, and versions of {models}, and set their tags.",
        f"With MLflow's basic authentication: `EDIT` on the experiment `{names.service.name}` and on each model. Who "
        "may edit a model may also "
        "move its aliases.",
        ask="MLflow's administrator; the first training tells, and goes on where it stopped",
    )
    yield Item(
        "data-write",
        DATA,
        f"Agents may write to DVC's remote, `{names.remote or 'which is not set'}`.",
        "A user of the gateway with read and write on the bucket; `dvc remote add --default NAME s3://BUCKET/PATH`. "
        "Old objects must not expire.",
        lambda: storage.write(names),
    )


def _mlflow(names: Names) -> Seen:
    check = doctor.registry(names.root)
    if check.ok and "sqlite:" in check.seen:
        return no(f"{check.seen}: a file, which other agents do not see")
    return _doctor(check)


def _doctor(check: doctor.Check) -> Seen:
    return ok(check.seen) if check.ok else no("; ".join(found.why for found in check.findings))


def _looked(item: Item) -> Looked:
    if item.look is None:
        return Looked(item, unseen(f"cannot be seen from an agent: ask {item.ask}"))
    try:
        return Looked(item, item.look())
    except MlopsBuildError as error:
        return Looked(item, no(error.message))
    except ModuleNotFoundError as error:
        return Looked(item, unseen(f"the Python package {error.name!r} is not installed here"))


def findings_of(looked: Sequence[Looked]) -> list[Looked]:
    """Those that are not as they must be."""
    return [one for one in looked if one.seen.state == "no"]
