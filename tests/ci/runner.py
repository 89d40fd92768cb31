"""A simulation of the parts of GitLab CI/CD that our pipeline uses: it runs .gitlab-ci.yml of a commit like a project with two runners.

It follows GitLab's reference of the keywords. A runner keeps its folder between jobs, and checks out one commit, detached, from an origin
whose token may not push. A runner with tags is protected: it runs jobs of main only, and only jobs that name its tags. Other keys and
expressions are refused, so that no part of the pipeline is untested.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.ci.agent import SECONDS, Agent, Job, NotInterpreted, parse_reports, refuse_others

ROOT_KEYS = {"workflow", "stages"}
JOB_KEYS = {"stage", "rules", "needs", "tags", "environment", "resource_group", "variables", "script", "artifacts"}
TERM = re.compile(r'\$(\w+)(?: (==|!=) "([^"]*)")?')


@dataclass
class Pipeline:
    """spec: its jobs by name. waiting: those that a person may start. artifacts: the folder of each job's."""

    branch: str
    number: int
    commit: str
    variables: Mapping[str, str]
    spec: dict[str, Any]
    jobs: dict[str, Job] = field(default_factory=dict)
    waiting: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(job.ok for job in self.jobs.values())

    @property
    def log(self) -> str:
        return "\n".join(f"--- {job.name} on {job.agent.name}: {'ok' if job.ok else 'FAILED'}\n{job.log}" for job in self.jobs.values())


@dataclass
class Project:
    """bare: its repository. url: the address in variables. main is its only protected branch."""

    folder: Path
    bare: Path
    url: str
    runners: Sequence[Agent]
    pipelines: int = 0

    def run(self, branch: str = "main", source: str = "push") -> Pipeline | None:
        """The pipeline of a branch's newest commit, with all jobs that start by themselves; None if there are no jobs."""
        commit = self._git("rev-parse", f"refs/heads/{branch}")
        spec = YAML(typ="safe").load(self._git("show", f"{commit}:.gitlab-ci.yml"))
        self.pipelines += 1
        variables = {
            "GITLAB_CI": "true",
            "CI_COMMIT_BRANCH": branch,
            "CI_COMMIT_REF_PROTECTED": str(branch == "main").lower(),
            "CI_COMMIT_SHA": commit,
            "CI_PIPELINE_IID": str(self.pipelines),
            "CI_PIPELINE_SOURCE": source,
            "CI_PROJECT_URL": self.url.removesuffix(".git"),
        }
        stages = spec["stages"]
        jobs = {name: settings for name, settings in spec.items() if name not in ROOT_KEYS}
        included = {name: rule for name, settings in jobs.items() if (rule := _rule(settings["rules"], variables)) is not None}
        if _rule(spec["workflow"]["rules"], variables) is None or not included:
            return None
        pipeline = Pipeline(branch, self.pipelines, commit, variables, {name: jobs[name] for name in included})
        for name in sorted(included, key=lambda name: stages.index(jobs[name]["stage"])):
            refuse_others(jobs[name], JOB_KEYS)
            if included[name].get("when") == "manual":
                pipeline.waiting[name] = included[name]
            elif self._ready(pipeline, name, stages):
                self._job(pipeline, name)
        return pipeline

    def start(self, pipeline: Pipeline, name: str) -> Job:
        """A person starts a manual job, or repeats a job."""
        if name not in {*pipeline.waiting, *pipeline.jobs} or not self._ready(pipeline, name, None):
            raise NotInterpreted(f"{name} cannot be started")
        return self._job(pipeline, name)

    def _ready(self, pipeline: Pipeline, name: str, stages: Sequence[str] | None) -> bool:
        """Whether the jobs that a job needs, or those of all earlier stages, have passed. Manual jobs without allow_failure count, too."""
        needed = pipeline.spec[name].get("needs")
        if needed is None:
            assert stages, f"{name} must have `needs` to be started later"
            earlier = stages[: stages.index(pipeline.spec[name]["stage"])]
            needed = [other for other, settings in pipeline.spec.items() if settings["stage"] in earlier]
            needed = [other for other in needed if not pipeline.waiting.get(other, {}).get("allow_failure")]
        return all(other in pipeline.jobs and pipeline.jobs[other].ok for other in needed)

    def _job(self, pipeline: Pipeline, name: str) -> Job:
        settings = pipeline.spec[name]
        job = pipeline.jobs[name] = Job(name, self._runner(pipeline, settings))
        variables = {**pipeline.variables, "CI_JOB_NAME": name, **settings.get("variables", {})}
        work = self.folder / "builds" / job.agent.name / "points"
        self._checkout(pipeline, work, variables)
        for other in settings.get("needs", pipeline.artifacts):
            shutil.copytree(pipeline.artifacts[other], work, dirs_exist_ok=True)
        body = "set -e\n" + "\n".join(settings["script"])
        job.scripts.append(body)
        done = subprocess.run(
            ["/bin/sh", "-c", body],
            cwd=work,
            env={**job.agent.environment, "HOME": str(job.agent.home), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        job.ok, job.log = done.returncode == 0, done.stdout
        self._keep(pipeline, job, settings.get("artifacts", {}), work)
        return job

    def _runner(self, pipeline: Pipeline, settings: Mapping[str, Any]) -> Agent:
        wanted = set(settings.get("tags", []))
        for runner in self.runners:
            may_run = wanted <= runner.capabilities if wanted else not runner.capabilities
            if may_run and (pipeline.branch == "main" or not runner.capabilities):
                return runner
        raise NotInterpreted(f"no runner for {wanted} on {pipeline.branch}")

    def _checkout(self, pipeline: Pipeline, work: Path, variables: Mapping[str, str]) -> None:
        strategy = variables.get("GIT_STRATEGY", "fetch")
        if strategy not in ("fetch", "clone", "empty"):
            raise NotInterpreted(f"GIT_STRATEGY {strategy}")
        if strategy != "fetch":
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        origin = self.url.replace("://", "://gitlab-ci-token:the-jobs-token@")
        commands = [
            ["init", "--quiet"],
            ["fetch", "--quiet", "--depth=20", self.bare.as_uri(), pipeline.commit],
            ["checkout", "--quiet", "--force", "--detach", pipeline.commit],
            ["clean", "--quiet", *variables.get("GIT_CLEAN_FLAGS", "-ffdx").split()],
            ["config", "remote.origin.url", origin],
        ]
        for command in commands if strategy != "empty" else []:
            subprocess.run(["git", "-C", str(work), *command], check=True, timeout=60)

    def _keep(self, pipeline: Pipeline, job: Job, artifacts: Mapping[str, Any], work: Path) -> None:
        refuse_others(artifacts, {"paths", "expire_in", "when", "reports"})
        store = self.folder / "artifacts" / f"{pipeline.number}-{job.name}"
        store.mkdir(parents=True, exist_ok=True)
        pipeline.artifacts[job.name] = store
        for path in [path for pattern in artifacts.get("paths", []) for path in work.glob(pattern)] if job.ok else []:
            (store / path.relative_to(work)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, store / path.relative_to(work))
        if reports := artifacts.get("reports"):
            refuse_others(reports, {"junit"})
            parse_reports([reports["junit"]], job, work)

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.bare), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _rule(rules: Sequence[Mapping[str, Any]], variables: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The first rule that is true."""
    for rule in rules:
        refuse_others(rule, {"if", "when", "allow_failure"})
        if all(_is_true(term, variables) for term in rule["if"].split(" && ")):
            return rule
    return None


def _is_true(term: str, variables: Mapping[str, str]) -> bool:
    match = TERM.fullmatch(term)
    if not match:
        raise NotInterpreted(f"expression: {term}")
    name, operator, text = match.groups()
    return bool(variables.get(name)) if operator is None else (variables.get(name) == text) == (operator == "==")
