"""The loop of the bridge: reconcile the repositories that changed, again and again, until the process ends.

A pass reads the alias map of the registry and the head of each repository. A repository is reconciled if its head or an alias that its last
reconciliation read has changed. What the loop remembers is only a cache: without it, the next pass reconciles every repository.

Each host of repositories has its own threads, so a host that does not answer delays only its own repositories.
"""

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import SystemRandom

from mlops_build import fleet
from mlops_build.adapters.git import command, remote
from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.bridge.notices import Notices
from mlops_build.bridge.reconcile import Outcome
from mlops_build.errors import MlopsBuildError, Refused, Unreachable
from mlops_build.fleet import repositories
from mlops_build.fleet.repositories import Repositories
from mlops_build.fleet.rules import Rules

log = logging.getLogger("mlops_build.bridge")
# States in which the loop has nothing to do for an environment.
SETTLED = frozenset({"released", "requested", "rolled back", "unchanged", "held", "frozen", "reverted", "declined", "nothing promoted yet"})
# States whose commit is on the branch. That of a request is on another one.
PUSHED = ("released", "rolled back")
# Between two passes, however often the loop is woken.
GAP_SECONDS = 0.2
# A failed repository is tried again after the first, then after twice as long, up to the last.
FIRST_WAIT, LAST_WAIT = 10.0, 300.0
# The first pass waits so long for the rules of fleet.yaml.
RULES_SECONDS = 30.0
# A promotion ends these states without a move of an alias. Their repositories are reconciled again in each pass, also when MLflow wakes the
# loop: at most so many, once in so many seconds.
UNTIL_PROMOTED, MOST_AGAIN, AGAIN_SECONDS = ("reverted", "declined"), 20, 10.0
# An unchanged repository is reconciled all the same after about this time: not every change of the registry moves an alias.
REFRESH_SECONDS = 1800.0

# A repository whose aliases moved does not wait for the others of a pass.
NO, ROUTINE, URGENT = range(3)

AliasMap = Mapping[str, Mapping[str, int]]
Queue = queue.PriorityQueue[tuple[int, int, "Watched"]]
AliasesOf = tuple[tuple[str, tuple[tuple[str, int], ...]], ...]


@dataclass
class Watched:
    """What the loop remembers of a repository. Times are of time.monotonic.

    address: the URL without user. models: those of its service, by its last reconciliation. examined: its head and the aliases of these
    models then; None if it could not be reached. rules: those that applied then. is_optional: it may have no service. again_at: the time of
    the next reconciliation if nothing changes. done_at: that of the last one. awaits_promotion: a promotion may end its state. failures:
    consecutive ones. all_failures: since the start. changed_at: since when it has a change that is not released. lines: the last report of
    each environment. queued: how urgently it waits for an examination. examining: it is being examined. requested: to be examined again
    then.
    """

    url: str
    address: str
    models: frozenset[str] = frozenset()
    examined: tuple[str, AliasesOf] | None = None
    rules: Rules | None = None
    is_optional: bool = False
    again_at: float = 0.0
    awaits_promotion: bool = False
    done_at: float = 0.0
    failures: int = 0
    all_failures: int = 0
    changed_at: float | None = None
    states: dict[str | None, str] = field(default_factory=dict)
    lines: dict[str | None, str] = field(default_factory=dict)
    queued: int = NO
    examining: bool = False
    requested: bool = False


class Loop:
    """Reconciles repositories until `stop`.

    registry: opens a connection; called once in each thread. interval: seconds between two passes. workers: the most repositories of a host
    that are examined at the same time. rules: reads those of fleet.yaml; called every interval. listed: asks the Git hosts for the
    repositories of these rules. say: prints a line of the log.
    """

    def __init__(
        self,
        named: Sequence[str],
        registry: Callable[[], Registry],
        *,
        branch: str = "main",
        interval: float = 60.0,
        workers: int = 4,
        rules: Callable[[], Rules] = Rules,
        listed: Callable[[Rules], Repositories] | None = None,
        say: Callable[[str], None] = log.info,
    ) -> None:
        self.repositories: list[Watched] = []
        self.interval = interval
        self.beat = time.monotonic()  # when the last pass began
        self.passes = 0
        self.pass_seconds = self._began = 0.0
        self.refusals = 0
        self.registry_answers: bool | None = None
        self.fleet_answers: bool | None = None  # None: there is none, or it has not been read yet
        self._branch, self._workers, self._say = command.checked_ref(branch), workers, say
        self._registry, self._of_thread = registry, threading.local()
        self._read_rules, self._rules_known, self._listed = rules, threading.Event(), listed
        self._rules = Rules(error=Unreachable(f"{fleet.FILE} has not been read yet"))
        self._options = self._named = tuple(named)
        self._discovered: tuple[str, ...] = ()
        self._not_listed = self._without_effect = ""
        self._next_pass = self._next_promoted = 0.0
        self._may_be_promoted = False  # since the last request of what awaits a promotion
        self._aliases: AliasMap = {}
        self._queues: dict[str, Queue] = {}
        self._threads: dict[str, int] = {}
        self._entries = itertools.count()
        self._left: set[str] = set()  # URLs that the current pass has not examined
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._notices = Notices(lambda: self._rules.fleet.notify if self._rules.fleet else (), say)
        self._watch()

    def wake(self) -> None:
        """Read the alias map soon, and reconcile the repositories whose aliases changed."""
        self._woken.set()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping.set()
        self._woken.set()
        self._rules_known.set()

    def is_idle(self, seconds: float) -> bool:
        """Whether no repository is being examined, after waiting for that for at most `seconds`."""
        with self._idle:
            return self._idle.wait_for(lambda: not any(watched.queued or watched.examining for watched in self.repositories), seconds)

    def run(self) -> None:
        """Run passes until `stop`. The heads of all repositories are read every interval, the alias map also when woken."""
        for follow in (self._follow_rules, self._follow_hosts):
            threading.Thread(target=follow, daemon=True).start()
        self._rules_known.wait(RULES_SECONDS)
        while not self._stopping.is_set():
            self.beat = time.monotonic()
            is_whole = self.beat >= self._next_pass
            self._may_be_promoted |= is_whole or self._woken.is_set()
            self._woken.clear()
            if is_whole:
                self._next_pass = self.beat + self.interval
                self._remark()
            if self._read_aliases():
                self._request_changed(is_whole)
            done = time.monotonic()
            earliest = done + max(GAP_SECONDS, done - self.beat)  # many events must not occupy the registry
            is_early = self._may_be_promoted and self._next_promoted > done
            self._woken.wait(max(0.0, (min(self._next_pass, self._next_promoted) if is_early else self._next_pass) - done))
            self._stopping.wait(max(0.0, earliest - time.monotonic()))

    def _watch(self) -> None:
        """Watch exactly the repositories that are known now, new ones at once. Raises UsageError for an address that is not valid."""
        with self._lock:
            listed = Repositories(self._named, self._discovered)
            of_address = {command.masked(url): command.checked_url(url) for url in listed.urls}
            known = {watched.address: watched for watched in self.repositories}
            new = [address for address in of_address if address not in known]
            for address in new:
                url = of_address[address]
                known[address] = Watched(url, address, is_optional=url not in listed.named)
                self._add_thread(remote.host(url))
            has_changed = len(of_address) != len(self.repositories)
            self.repositories = [known[address] for address in of_address]
        if new:
            self._next_pass = 0.0
            self._woken.set()
        if has_changed and self._rules.fleet:
            self._say(f"watches {len(of_address)} repositories")

    def _add_thread(self, host: str) -> None:
        waiting = self._queues.setdefault(host, queue.PriorityQueue())
        self._threads[host] = self._threads.get(host, 0) + 1
        if self._threads[host] <= self._workers:
            threading.Thread(target=self._work, args=(waiting,), daemon=True).start()

    def _read_aliases(self) -> bool:
        try:
            self._aliases = self._connection().alias_map()
        except Exception as error:  # the loop outlives every failure
            if self.registry_answers is not False:
                self._say(f"the registry cannot be read: {_message(error)}")
                if remedy := getattr(error, "remedy", None):
                    self._say(f"    {remedy}")
            self.registry_answers = False
            return False
        if self.registry_answers is False:
            self._say("the registry answers again")
        self.registry_answers = True
        return True

    def _follow_rules(self) -> None:
        """Read the rules every interval. In a thread of its own: where they are, too, may be a host that does not answer."""
        while not self._stopping.is_set():
            try:
                rules = self._read_rules()
            except Exception as error:  # a defect, or a full disk
                rules = Rules(error=Unreachable(_message(error)))
            if str(rules) != str(self._rules):
                if rules.error:
                    self._say(f"{fleet.FILE} cannot be read, so production is not changed, except to go back: {rules.error.message}")
                    if rules.error.remedy:
                        self._say(f"    {rules.error.remedy}")
                elif self.fleet_answers is False:
                    self._say(f"{fleet.FILE} can be read again")
                self._rules = rules  # the next pass reconciles every repository: they may allow what waits
                if rules.fleet:
                    self._named = repositories.named(self._options, rules)
                    self._watch()
            self.fleet_answers = not rules.error if rules.error or rules.fleet else None
            self._rules_known.set()
            self._stopping.wait(self.interval)

    def _follow_hosts(self) -> None:
        """Ask the Git hosts for the repositories every interval. In a thread of its own, so that a slow host delays no rule."""
        self._rules_known.wait()
        while self._listed and not self._stopping.is_set():
            if not self._rules.error:
                self._list(self._listed)
            self._stopping.wait(self.interval)

    def _list(self, listed: Callable[[Rules], Repositories]) -> None:
        """Watch the repositories of a project or group. Those that are known stay if its host does not answer."""
        try:
            answer = listed(self._rules)
            # A host's failure may leave some out.
            self._discovered = tuple(dict.fromkeys([*self._discovered, *answer.discovered])) if answer.error else answer.discovered
            self._watch()
            problem = f"the repositories of {fleet.FILE} cannot be read: {answer.error.message}" if answer.error else ""
        except Exception as error:  # a defect
            problem = f"the repositories of {fleet.FILE} cannot be read: {_message(error)}"
        if not self.repositories:
            problem = problem or f"{fleet.FILE} has no repositories, and there is no --repo"
        if problem and problem != self._not_listed:
            self._say(problem)
        self._not_listed = problem

    def _remark(self) -> None:
        """Say once which freezes have no effect, when all repositories are known."""
        known = tuple(self.repositories)
        if self._not_listed or not self.passes or not all(watched.states or watched.is_optional for watched in known):
            return
        remark = self._rules.without_effect({env for watched in known for env in watched.states})
        if remark and remark != self._without_effect:
            self._say(remark)
        self._without_effect = remark

    def _connection(self) -> Registry:
        if not hasattr(self._of_thread, "registry"):
            self._of_thread.registry = self._registry()
        connection: Registry = self._of_thread.registry
        return connection

    def _request_changed(self, is_whole: bool) -> None:
        """Request an examination of the repositories whose aliases changed; of all if is_whole."""
        now = time.monotonic()
        with self._lock:
            if is_whole and not self._left:
                self._left, self._began = {watched.url for watched in self.repositories}, now
            for watched in self.repositories:
                is_moved = watched.examined is not None and watched.examined[1] != _aliases_of(self._aliases, watched.models)
                if is_moved and watched.changed_at is None:
                    watched.changed_at = now
                if is_whole or is_moved:
                    self._request(watched, URGENT if is_moved else ROUTINE)
            if self._may_be_promoted and now >= self._next_promoted:
                awaiting = [watched for watched in self.repositories if watched.awaits_promotion]
                for watched in sorted(awaiting, key=lambda watched: watched.done_at)[:MOST_AGAIN]:
                    watched.again_at = now
                    self._request(watched, ROUTINE)
                self._may_be_promoted, self._next_promoted = False, now + AGAIN_SECONDS if awaiting else 0.0

    def _request(self, watched: Watched, urgency: int) -> None:
        if watched.examining:
            watched.requested = True
        elif watched.queued < urgency:
            watched.queued = urgency
            self._queues[remote.host(watched.url)].put((-urgency, next(self._entries), watched))

    def _work(self, waiting: Queue) -> None:
        while True:
            _, _, watched = waiting.get()
            with self._lock:
                if not watched.queued:
                    continue  # an urgent entry came before this one
                watched.queued, watched.examining = NO, True
            try:
                if not self._stopping.is_set():
                    self._examine(watched)
            except Exception as error:  # a defect, or a full disk: the other repositories go on
                log.exception("%s", watched.address)
                self._record(watched, None, [_failure(watched, MlopsBuildError(_message(error)))])
            with self._lock:
                self._finish(watched)

    def _finish(self, watched: Watched) -> None:
        watched.examining = False
        if self._left:
            self._left.discard(watched.url)
            if not self._left:
                self.passes += 1
                self.pass_seconds = time.monotonic() - self._began
        if watched.requested:
            watched.requested = False
            self._request(watched, ROUTINE)
        self._idle.notify_all()

    def _examine(self, watched: Watched) -> None:
        """Reconcile a repository if it changed, or if it is time to.

        What is remembered as examined was read before the reconciliation, so that a change during it is noticed by the next pass.
        """
        now = time.monotonic()
        if watched.examined is None and now < watched.again_at:
            return
        aliases = self._aliases
        try:
            head = remote.head(watched.url, self._branch)
        except MlopsBuildError as error:
            self._record(watched, None, [_failure(watched, error)])
            return
        rules = self._rules
        is_same = watched.examined == (head, _aliases_of(aliases, watched.models)) and watched.rules is rules
        if now < watched.again_at and is_same:
            return
        watched.rules = rules
        outcomes = reconcile.repository(watched.url, self._branch, self._connection(), aliases, rules, is_optional=watched.is_optional)
        # After a push, the last release is the head, and what it was made from has been compared.
        head = next((outcome.commit for outcome in reversed(outcomes) if outcome.commit and outcome.state in PUSHED), head)
        # A reconciliation that failed early does not know the models.
        watched.models = frozenset(model for outcome in outcomes for model in outcome.models) or watched.models
        is_unreachable = any(isinstance(outcome.error, Unreachable) and outcome.environment is None for outcome in outcomes)
        self._record(watched, None if is_unreachable else (head, _aliases_of(aliases, watched.models)), outcomes)

    def _record(self, watched: Watched, examined: tuple[str, AliasesOf] | None, outcomes: Sequence[Outcome]) -> None:
        """Remember the outcome of an examination, and report what is new in it."""
        if self._stopping.is_set():
            return  # the failure of a program that was stopped
        now, has_failed = time.monotonic(), any(outcome.error for outcome in outcomes)
        is_settled = all(outcome.state in SETTLED for outcome in outcomes)
        refresh = LAST_WAIT if any(outcome.state == "frozen" for outcome in outcomes) else REFRESH_SECONDS
        with self._lock:
            self.refusals += sum(isinstance(outcome.error, Refused) for outcome in outcomes)
            watched.examined = examined
            watched.failures = watched.failures + 1 if has_failed else 0
            watched.all_failures += has_failed
            wait = min(FIRST_WAIT * 2.0 ** min(watched.failures - 1, 10), LAST_WAIT) if has_failed else refresh if is_settled else 0
            watched.again_at, watched.done_at = now + wait * SystemRandom().uniform(0.5, 1), now
            watched.awaits_promotion = any(_awaits_promotion(outcome) for outcome in outcomes)
            if any(outcome.environment for outcome in outcomes):
                watched.states = {outcome.environment: outcome.state for outcome in outcomes}
                watched.changed_at = None if is_settled else watched.changed_at or now
            lines = {outcome.environment: str(outcome)[:500] for outcome in outcomes}
            news = [outcome for outcome in outcomes if watched.lines.get(outcome.environment) != lines[outcome.environment]]
            watched.lines = lines
        for outcome in news:
            self._notices.tell(outcome)
            self._say(str(outcome))
            if outcome.error and outcome.error.remedy:
                self._say(f"    {outcome.error.remedy}")


def _aliases_of(aliases: AliasMap, models: Iterable[str]) -> AliasesOf:
    return tuple((model, tuple(sorted(aliases.get(model, {}).items()))) for model in sorted(models))


def _awaits_promotion(outcome: Outcome) -> bool:
    return outcome.state in UNTIL_PROMOTED or (bool(outcome.environment) and isinstance(outcome.error, Refused))


def _failure(watched: Watched, error: MlopsBuildError) -> Outcome:
    return Outcome(watched.address, None, "failed", error=error)


def _message(error: Exception) -> str:
    return error.message if isinstance(error, MlopsBuildError) else f"{type(error).__name__}: {error}"[:300]
