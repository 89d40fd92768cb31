"""A simulation of the parts of Bamboo that our specs use: it runs bamboo-specs/bamboo.yaml of a commit like a server with two agents.

It follows Atlassian's reference of Bamboo Specs in YAML. Every job gets a clean folder and Bamboo's kind of checkout (one commit, no
branch, an origin that does not exist). Jobs receive only the artifacts and variables that the spec gives them, and artifacts lose the
permission to execute. A script sees its agent's environment, the agent's HOME and bamboo_* variables, and nothing else. Other keys of a
spec are refused, so that no part of a spec is untested.
"""

import fnmatch
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ruamel.yaml import YAML

SECONDS = 300
PLAN_KEYS = {"version", "plan", "stages", "triggers", "branches", "branch-overrides", "notifications", "other"}
JOB_KEYS = {"key", "tasks", "final-tasks", "requirements", "artifacts", "artifact-subscriptions", "other"}
ENVIRONMENT_KEYS = {"tasks", "final-tasks", "requirements", "triggers", "notifications", "release-approval-prerequisite"}
DEPLOYMENT_KEYS = {"version", "deployment", "release-naming", "environments"}


class NotInterpreted(Exception):
    """The spec has something that this simulation does not support, or a job that no agent can run."""


@dataclass(frozen=True)
class Agent:
    """home: its user's folder, kept between builds. environment: the agent's variables."""

    name: str
    capabilities: frozenset[str]
    environment: Mapping[str, str]
    home: Path


@dataclass
class Job:
    """The result of a job, or of a deployment to an environment. log: stdout and stderr of its scripts. tests: the parser's numbers."""

    name: str
    agent: str
    ok: bool = True
    log: str = ""
    scripts: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    tests: int | None = None


@dataclass
class Build:
    """A build of a plan. artifacts: name → folder of the shared artifacts, with paths relative to `location`."""

    plan: str
    branch: str
    number: int
    commit: str
    jobs: list[Job] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    waiting_for_a_person: bool = False

    @property
    def ok(self) -> bool:
        return all(job.ok for job in self.jobs) and not self.waiting_for_a_person

    @property
    def log(self) -> str:
        return "\n".join(f"--- {job.name} on {job.agent}: {'ok' if job.ok else 'FAILED'}\n{job.log}" for job in self.jobs)

    def job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)


@dataclass
class Bamboo:
    """bare: the repository that Bamboo clones. url: the address in scripts' variables. specs_of_branches: branches use their own specs."""

    folder: Path
    bare: Path
    url: str
    agents: Sequence[Agent]
    main: str = "main"
    specs_of_branches: bool = True
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)

    def documents(self, branch: str) -> list[dict[str, Any]]:
        text = self._git("show", f"refs/heads/{branch}:bamboo-specs/bamboo.yaml")
        return [document for document in YAML(typ="safe").load_all(text) if document]

    def plan(self, key: str, branch: str) -> dict[str, Any]:
        """The plan of a branch: its own spec with the first override that matches, or main's spec without overrides."""
        own = self.specs_of_branches or branch == self.main
        documents = self.documents(branch if own else self.main)
        plans = [
            document
            for document in documents
            if "stages" in document and f"{document['plan']['project-key']}-{document['plan']['key']}" == key
        ]
        if len(plans) != 1:
            raise NotInterpreted(f"{len(plans)} plans {key}")
        plan = dict(plans[0])
        for override in plan.pop("branch-overrides", []):
            ((pattern, changes),) = override.items()
            if own and re.fullmatch(pattern, branch):
                plan |= changes  # shallow: whole root keys
                break
        return plan

    def build(self, key: str, branch: str = "main", *, again: int | None = None) -> Build:
        """Run a plan on a branch's newest commit. again: the number of a build to repeat."""
        plan = self.plan(key, branch)
        number = again or self.numbers.get((key, branch), 0) + 1
        self.numbers[key, branch] = max(number, self.numbers.get((key, branch), 0))
        build = Build(key, branch, number, self._git("rev-parse", f"refs/heads/{branch}"))
        jobs = [name for _, settings in _stages(plan) for name in settings["jobs"]]
        if unknown := set(plan) - PLAN_KEYS - set(jobs) - self._unused_jobs(plan):
            raise NotInterpreted(f"keys of a plan: {unknown}")
        failed = False
        for _, settings in _stages(plan):
            if settings.get("manual"):
                build.waiting_for_a_person = True
                break
            if failed and not settings.get("final"):
                continue
            # The jobs of a stage do not receive each other's artifacts; those of the next stage do.
            before = dict(build.artifacts)
            for name in settings["jobs"]:
                failed = not self._job(plan, name, build, before).ok or failed
        return build

    def deploy(self, build: Build, env: str, *, approved: bool = False) -> Job:
        """Deploy the release of a build. Raises NotInterpreted if Bamboo would refuse it."""
        deployment = next(document for document in self.documents(self.main) if "environments" in document)
        if unknown := set(deployment) - DEPLOYMENT_KEYS - set(deployment["environments"]):
            raise NotInterpreted(f"keys of a deployment: {unknown}")
        if env not in deployment["environments"] or deployment["deployment"]["source-plan"] != build.plan or not build.ok:
            raise NotInterpreted(f"no release of {build.plan} #{build.number} for {env}")
        settings = deployment[env]
        if unknown := set(settings) - ENVIRONMENT_KEYS:
            raise NotInterpreted(f"keys of an environment: {unknown}")
        if settings.get("release-approval-prerequisite") == "approved" and not approved:
            raise NotInterpreted(f"{env}: the release is not approved")
        naming = deployment["release-naming"]
        name = naming if isinstance(naming, str) else naming["next-version-name"]
        variables = {**build.variables, "buildNumber": str(build.number)}
        variables |= {
            "deploy.environment": env,
            "deploy.release": _filled(name, variables),
            "deploy.project": deployment["deployment"]["name"],
        }
        job = Job(env, self._agent(settings).name)
        work = self._clean(f"deploy-{env}")
        self._run(settings, job, work, variables, build, in_deployment=True)
        return job

    def follows(self, env: str) -> bool:
        """Whether an environment is deployed to after each successful build of main."""
        deployment = next(document for document in self.documents(self.main) if "environments" in document)
        return "build-success" in deployment[env].get("triggers", [])

    def _unused_jobs(self, plan: Mapping[str, Any]) -> set[str]:
        """Jobs without a stage because of an override; they are defined but never run."""
        return {name for name, value in plan.items() if isinstance(value, dict) and "tasks" in value}

    def _job(self, plan: Mapping[str, Any], name: str, build: Build, artifacts: Mapping[str, Path]) -> Job:
        settings = plan[name]
        if unknown := set(settings) - JOB_KEYS:
            raise NotInterpreted(f"keys of the job {name}: {unknown}")
        job = Job(name, self._agent(settings).name)
        build.jobs.append(job)
        work = self._clean(f"{build.plan}-{settings['key']}")
        subscribed = settings.get("artifact-subscriptions", [{"artifact": name} for name in artifacts])
        for subscription in subscribed:
            _copy(artifacts[subscription["artifact"]], ["**/*"], work / subscription.get("destination", ""))
        variables = {
            **build.variables,
            "buildNumber": str(build.number),
            "buildKey": f"{build.plan}-{settings['key']}",
            "planKey": build.plan,
            "planRepository.branch": build.branch,
            "planRepository.branchName": build.branch,
            "planRepository.revision": build.commit,
            "planRepository.repositoryUrl": self.url,
        }
        tasks = settings["tasks"]
        if not any(task == "checkout" or (isinstance(task, dict) and "checkout" in task) for task in tasks):
            tasks = ["checkout", *tasks]
        self._run({**settings, "tasks": tasks}, job, work, variables, build)
        for artifact in settings.get("artifacts", []):
            self._keep(artifact, job, work, build)
        if settings.get("other", {}).get("clean-working-dir"):
            shutil.rmtree(work)
        return job

    def _run(
        self, settings: Mapping[str, Any], job: Job, work: Path, variables: dict[str, str], build: Build, *, in_deployment: bool = False
    ) -> None:
        for task in settings["tasks"]:
            if job.ok:
                job.ok = self._task(task, job, work, variables, build, in_deployment)
        for task in settings.get("final-tasks", []):
            job.ok = self._task(task, job, work, variables, build, in_deployment) and job.ok

    def _task(self, task: Any, job: Job, work: Path, variables: dict[str, str], build: Build, in_deployment: bool) -> bool:
        ((kind, settings),) = ({task: {}} if isinstance(task, str) else task).items()
        if isinstance(settings, dict) and not _met(settings.get("conditions", []), variables):
            job.skipped.append(kind)
            return True
        if kind == "clean":
            _empty(work)
            return True
        if kind == "checkout" and not in_deployment:
            return self._checkout(settings, work, build)
        if kind == "script":
            return self._script(settings, job, work, variables)
        if kind == "inject-variables":
            return _inject({"file": settings} if isinstance(settings, str) else settings, work, variables, build)
        if kind == "artifact-download" and in_deployment:
            wanted = settings.get("artifacts") or [{"name": name, **settings} for name in build.artifacts]
            if missing := [item["name"] for item in wanted if item["name"] not in build.artifacts]:
                job.log += f"no artifact {missing}\n"
                return False
            for item in wanted:
                _copy(build.artifacts[item["name"]], ["**/*"], work / item.get("destination", "").lstrip("/"))
            return True
        if kind == "test-parser" and settings["type"] == "junit":
            return _parse(settings["test-results"], job, work)
        raise NotInterpreted(f"task {kind}")

    def _checkout(self, settings: Mapping[str, Any], work: Path, build: Build) -> bool:
        if set(settings) - {"force-clean-build"}:
            raise NotInterpreted(f"checkout: {settings}")
        if settings.get("force-clean-build") == "true":
            _empty(work)
        for command in (
            ["init", "--quiet"],
            ["fetch", "--quiet", "--depth=1", self.bare.as_uri(), build.commit],
            ["checkout", "--quiet", "--detach", build.commit],
            ["remote", "add", "origin", "file:///nothing"],
        ):
            subprocess.run(["git", "-C", str(work), *command], check=True, timeout=60)
        return True

    def _script(self, settings: Any, job: Job, work: Path, variables: Mapping[str, str]) -> bool:
        if not isinstance(settings, dict) or set(settings) - {"interpreter", "scripts", "conditions"} or settings["interpreter"] != "SHELL":
            raise NotInterpreted(f"script: {settings}")
        agent = next(agent for agent in self.agents if agent.name == job.agent)
        body = _filled("\n".join(settings["scripts"]), variables)
        job.scripts.append(body)
        bamboo = {f"bamboo_{name.replace('.', '_')}": value for name, value in variables.items()}
        done = subprocess.run(
            ["/bin/sh", "-c", body],
            cwd=work,
            env={**agent.environment, "HOME": str(agent.home), **bamboo},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        job.log += done.stdout
        return done.returncode == 0

    def _keep(self, artifact: Mapping[str, Any], job: Job, work: Path, build: Build) -> None:
        store = self.folder / "artifacts" / f"{build.plan}-{build.branch.replace('/', '-')}-{build.number}" / artifact["name"]
        copied = _copy(work / artifact.get("location", ""), [artifact["pattern"]], store)
        if not copied and artifact.get("required", True):
            job.ok, job.log = False, f"{job.log}the required artifact {artifact['name']} is not there\n"
        if copied and artifact.get("shared", True):
            build.artifacts[artifact["name"]] = store

    def _agent(self, settings: Mapping[str, Any]) -> Agent:
        wanted = settings.get("requirements", [])
        if not all(isinstance(name, str) for name in wanted):
            raise NotInterpreted(f"requirements: {wanted}")
        able = [agent for agent in self.agents if set(wanted) <= agent.capabilities]
        if not able:
            raise NotInterpreted(f"no agent has {wanted}")
        return able[0]

    def _clean(self, name: str) -> Path:
        work = self.folder / "work" / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return work

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.bare), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _stages(plan: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for stage in plan["stages"]:
        ((name, settings),) = stage.items()
        yield name, settings if isinstance(settings, dict) else {"jobs": settings}


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """Replace ${bamboo.NAME}, as Bamboo does before the shell; unknown names stay."""
    return re.sub(r"\$\{bamboo\.([A-Za-z0-9_.]+)\}", lambda match: variables.get(match[1], match[0]), text)


def _met(conditions: Sequence[Any], variables: Mapping[str, str]) -> bool:
    for condition in conditions:
        ((kind, wanted),) = condition["variable"].items()
        if kind != "equals":
            raise NotInterpreted(f"condition {condition}")
        if any(variables.get(name) != value for name, value in wanted.items()):
            return False
    return True


def _inject(settings: Mapping[str, Any], work: Path, variables: dict[str, str], build: Build) -> bool:
    """Read key=value lines as variables NAMESPACE.KEY of this job; with RESULT of the following jobs of the build, and of its releases."""
    file = work / settings["file"]
    if not file.is_file():
        return False
    for line in file.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator:
            variables[f"{settings.get('namespace', 'inject')}.{key}"] = value
            if settings.get("scope", "LOCAL").upper() == "RESULT":
                build.variables[f"{settings.get('namespace', 'inject')}.{key}"] = value
    return True


def _parse(patterns: Sequence[str] | str, job: Job, work: Path) -> bool:
    """Bamboo's JUnit parser: fails if a test failed, or if there are no results."""
    files = [file for pattern in ([patterns] if isinstance(patterns, str) else patterns) for file in sorted(work.glob(pattern))]
    suites = [suite for file in files for suite in ElementTree.parse(file).getroot().iter("testsuite")]  # noqa: S314 # pytest's own
    job.tests = sum(int(suite.get("tests", 0)) for suite in suites)
    return bool(job.tests) and not any(int(suite.get(kind, 0)) for suite in suites for kind in ("failures", "errors"))


def _copy(source: Path, patterns: Sequence[str], target: Path) -> int:
    """Copy files that match an Ant pattern; returns their number. The permission to execute is not copied."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    names = [path.relative_to(source).as_posix() for path in files]
    chosen = [name for name in names if any(_fits(name, pattern) for pattern in patterns)]
    for name in chosen:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
        (target / name).chmod(stat.S_IRUSR | stat.S_IWUSR)
    return len(chosen)


def _fits(name: str, pattern: str) -> bool:
    """A part of Ant's patterns: ** for any folders, and * within a name."""
    head, separator, last = pattern.rpartition("/")
    folder, _, file = name.rpartition("/")
    if not separator:
        return not folder and fnmatch.fnmatchcase(file, last)
    return fnmatch.fnmatchcase(file, last) and (head == "**" or folder == head)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def bare_environment(path: Sequence[str]) -> dict[str, str]:
    """The minimal environment of an agent: a PATH of these folders, and the settings of Python's packages and their index."""
    kept = ("PYTHONPATH", "LANG", "TMPDIR", "PIP_", "UV_", "SSL_", "REQUESTS_")
    return {**{name: value for name, value in os.environ.items() if name.startswith(kept)}, "PATH": os.pathsep.join(path)}
