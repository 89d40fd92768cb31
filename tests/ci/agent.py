"""A simulation of the parts of Bamboo that our specs use: it runs bamboo-specs/bamboo.yaml of a commit like a server with two agents.

It follows Atlassian's reference of Bamboo Specs in YAML. Every job gets a clean folder and Bamboo's kind of checkout (one commit, no
branch, an origin that does not exist). Jobs receive only the artifacts that the spec gives them, and artifacts lose the permission to
execute. A script sees its agent's environment, the agent's HOME and bamboo_* variables, and nothing else. Other keys of a spec are
refused, so that no part of a spec is untested.
"""

import fnmatch
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ruamel.yaml import YAML

SECONDS = 300
PLAN_KEYS = {"version", "plan", "stages", "triggers", "branches", "branch-overrides", "notifications", "other"}
JOB_KEYS = {"key", "tasks", "final-tasks", "requirements", "artifacts", "other"}
ENVIRONMENT_KEYS = {"tasks", "requirements", "triggers", "notifications", "release-approval-prerequisite"}
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
    agent: Agent
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

    @property
    def ok(self) -> bool:
        return all(job.ok for job in self.jobs)

    @property
    def log(self) -> str:
        return "\n".join(f"--- {job.name} on {job.agent.name}: {'ok' if job.ok else 'FAILED'}\n{job.log}" for job in self.jobs)

    def job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)


@dataclass
class Bamboo:
    """bare: the repository that Bamboo clones. url: the address in scripts' variables. specs_of_branches: branches use their own specs."""

    folder: Path
    bare: Path
    url: str
    agents: Sequence[Agent]
    specs_of_branches: bool = True
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)

    def documents(self, branch: str = "main") -> list[dict[str, Any]]:
        text = self._git("show", f"refs/heads/{branch}:bamboo-specs/bamboo.yaml")
        return [document for document in YAML(typ="safe").load_all(text) if document]

    def plan(self, key: str, branch: str) -> dict[str, Any]:
        """The plan of a branch: its own spec with the first override that matches, or main's spec without overrides."""
        own = self.specs_of_branches or branch == "main"
        documents = [document for document in self.documents(branch if own else "main") if "stages" in document]
        (found,) = [document for document in documents if f"{document['plan']['project-key']}-{document['plan']['key']}" == key]
        plan = dict(found)
        for override in plan.pop("branch-overrides", []) if own else []:
            ((pattern, changes),) = override.items()
            if re.fullmatch(pattern, branch):
                return plan | changes  # shallow: whole root keys
        return plan

    def build(self, key: str, branch: str = "main", *, again: int | None = None) -> Build:
        """Run a plan on a branch's newest commit. again: the number of a build to repeat."""
        plan = self.plan(key, branch)
        number = again or self.numbers.get((key, branch), 0) + 1
        self.numbers[key, branch] = number
        build = Build(key, branch, number, self._git("rev-parse", f"refs/heads/{branch}"))
        # An override may leave jobs without a stage.
        refuse_others(plan, PLAN_KEYS | {name for name, value in plan.items() if isinstance(value, dict) and "tasks" in value})
        for stage in plan["stages"]:
            ((_, settings),) = stage.items()
            refuse_others(settings, {"jobs"})
            # The jobs of a stage do not receive each other's artifacts; those of the next stage do.
            before = dict(build.artifacts)
            for name in settings["jobs"] if build.ok else []:
                self._job(plan[name], name, build, before)
        return build

    def deploy(self, build: Build, env: str, *, approved: bool = False) -> Job:
        """Deploy the release of a build. Raises NotInterpreted if Bamboo would refuse it."""
        deployment = self._deployment()
        refuse_others(deployment, DEPLOYMENT_KEYS | set(deployment["environments"]))
        if env not in deployment["environments"] or deployment["deployment"]["source-plan"] != build.plan or not build.ok:
            raise NotInterpreted(f"no release of {build.plan} #{build.number} for {env}")
        settings = deployment[env]
        refuse_others(settings, ENVIRONMENT_KEYS)
        if settings.get("release-approval-prerequisite") == "approved" and not approved:
            raise NotInterpreted(f"{env}: the release is not approved")
        job = Job(env, self._agent(settings))
        self._run(settings, job, self._clean(f"deploy-{env}"), {"deploy.environment": env, "buildNumber": str(build.number)}, build)
        return job

    def follows(self, env: str) -> bool:
        """Whether an environment is deployed to after each successful build of main."""
        return "build-success" in self._deployment()[env].get("triggers", [])

    def _deployment(self) -> dict[str, Any]:
        return next(document for document in self.documents() if "environments" in document)

    def _job(self, settings: Mapping[str, Any], name: str, build: Build, artifacts: Mapping[str, Path]) -> None:
        refuse_others(settings, JOB_KEYS)
        job = Job(name, self._agent(settings))
        build.jobs.append(job)
        work = self._clean(f"{build.plan}-{settings['key']}")
        for folder in artifacts.values():
            _copy(folder, "**/*", work)
        variables = {
            "buildNumber": str(build.number),
            "planKey": build.plan,
            "planRepository.branch": build.branch,
            "planRepository.branchName": build.branch,
            "planRepository.revision": build.commit,
            "planRepository.repositoryUrl": self.url,
        }
        self._run(settings, job, work, variables, build)
        for artifact in settings.get("artifacts", []):
            self._keep(artifact, job, work, build)
        if settings.get("other", {}).get("clean-working-dir"):
            shutil.rmtree(work)

    def _run(self, settings: Mapping[str, Any], job: Job, work: Path, variables: Mapping[str, str], build: Build) -> None:
        for task in settings["tasks"]:
            job.ok = job.ok and self._task(task, job, work, variables, build)
        for task in settings.get("final-tasks", []):
            job.ok = self._task(task, job, work, variables, build) and job.ok

    def _task(self, task: Any, job: Job, work: Path, variables: Mapping[str, str], build: Build) -> bool:
        ((kind, settings),) = ({task: {}} if isinstance(task, str) else task).items()
        if not _met(settings.get("conditions", []), variables):
            job.skipped.append(kind)
            return True
        if kind == "clean":
            _empty(work)
        elif kind == "checkout":
            return self._checkout(settings, work, build)
        elif kind == "script":
            return self._script(settings, job, work, variables)
        elif kind == "artifact-download":
            for artifact in settings["artifacts"]:
                if artifact["name"] not in build.artifacts:
                    job.log += f"no artifact {artifact['name']}\n"
                    return False
                _copy(build.artifacts[artifact["name"]], "**/*", work)
        elif kind == "test-parser" and settings["type"] == "junit":
            return parse_reports(settings["test-results"], job, work)
        else:
            raise NotInterpreted(f"task {kind}")
        return True

    def _checkout(self, settings: Mapping[str, Any], work: Path, build: Build) -> bool:
        refuse_others(settings, {"force-clean-build"})
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

    def _script(self, settings: Mapping[str, Any], job: Job, work: Path, variables: Mapping[str, str]) -> bool:
        refuse_others(settings, {"interpreter", "scripts", "conditions"})
        if settings["interpreter"] != "SHELL" or "${bamboo." in (body := "\n".join(settings["scripts"])):
            raise NotInterpreted(f"script: {settings}")
        job.scripts.append(body)
        bamboo = {f"bamboo_{name.replace('.', '_')}": value for name, value in variables.items()}
        done = subprocess.run(
            ["/bin/sh", "-c", body],
            cwd=work,
            env={**job.agent.environment, "HOME": str(job.agent.home), **bamboo},
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
        copied = _copy(work / artifact.get("location", ""), artifact["pattern"], store)
        if not copied and artifact.get("required", True):
            job.ok, job.log = False, f"{job.log}the required artifact {artifact['name']} is not there\n"
        if copied and artifact.get("shared", True):
            build.artifacts[artifact["name"]] = store

    def _agent(self, settings: Mapping[str, Any]) -> Agent:
        wanted = set(settings.get("requirements", []))
        if able := [agent for agent in self.agents if wanted <= agent.capabilities]:
            return able[0]
        raise NotInterpreted(f"no agent has {wanted}")

    def _clean(self, name: str) -> Path:
        work = self.folder / "work" / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return work

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.bare), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def refuse_others(settings: Mapping[str, Any], known: set[str]) -> None:
    if unknown := set(settings) - known:
        raise NotInterpreted(f"keys: {unknown}")


def _met(conditions: Sequence[Any], variables: Mapping[str, str]) -> bool:
    wanted = [pair for condition in conditions for pair in condition["variable"]["equals"].items()]
    return all(variables.get(name) == value for name, value in wanted)


def parse_reports(patterns: Sequence[str], job: Job, work: Path) -> bool:
    """Bamboo's JUnit parser: fails if a test failed, or if there are no results."""
    files = [file for pattern in patterns for file in sorted(work.glob(pattern))]
    suites = [suite for file in files for suite in ElementTree.parse(file).getroot().iter("testsuite")]  # noqa: S314 # pytest's own
    job.tests = sum(int(suite.get("tests", 0)) for suite in suites)
    return bool(job.tests) and not any(int(suite.get(kind, 0)) for suite in suites for kind in ("failures", "errors"))


def _copy(source: Path, pattern: str, target: Path) -> int:
    """Copy files whose path matches; returns their number. The permission to execute is not copied."""
    files = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    chosen = [path for path in files if pattern == "**/*" or (path.parent == Path() and fnmatch.fnmatchcase(path.name, pattern))]
    for path in chosen:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)
        (target / path).chmod(stat.S_IRUSR | stat.S_IWUSR)
    return len(chosen)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def bare_environment(path: Sequence[str]) -> dict[str, str]:
    """The minimal environment of an agent: a PATH of these folders, and the settings of Python's packages and their index."""
    kept = ("PYTHONPATH", "LANG", "TMPDIR", "PIP_", "UV_", "SSL_", "REQUESTS_")
    return {**{name: value for name, value in os.environ.items() if name.startswith(kept)}, "PATH": os.pathsep.join(path)}
