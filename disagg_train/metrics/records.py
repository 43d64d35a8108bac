"""What a run reports: one object per step for people, one per rank and step underneath."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Span:
    """Something a rank did: an op with its begin and end, in seconds since the epoch.

    ``subject`` is the op's module, or its boundary.
    """

    name: str
    subject: str
    category: str
    begin_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """How long it took."""
        return self.end_s - self.begin_s


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used: its key in the data source, and why."""

    key: int
    reason: str


@dataclass(frozen=True)
class RankReport:
    """What one rank says of one step.

    Args:
        place: global rank.
        modules: the modules that it hosts.
        loss_sum: of all target tokens of the global batch, agreed by all ranks; in an
            evaluation, where nothing is agreed, this rank's own part.
        grad_norm: over all modules, agreed by all ranks.
        skipped: whether all modules skipped the update (a norm that is not finite).
        loss_scale: what losses were multiplied with; None but for fp16.
        spans: the ops it ran, in order.
        sent_bytes: per boundary or stage link, bytes that left this rank, both directions.
        peak_boundary_bytes: most memory that received rows and messages took at once.
        peak_activation_bytes: most memory that waited for backwards at once.
        answers: per held-out sample key, the generated tokens (evaluation only).
    """

    place: int
    modules: Sequence[str] = ()
    loss_sum: float = 0.0
    grad_norm: float = 0.0
    skipped: bool = False
    loss_scale: float | None = None
    spans: Sequence[Span] = ()
    sent_bytes: Mapping[str, int] = field(default_factory=dict)
    peak_boundary_bytes: int = 0
    peak_activation_bytes: int = 0
    answers: Mapping[int, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class SnapshotOrder:
    """Asks every rank to copy its state after a step, and says where the copy goes.

    Args:
        steps_done: training steps that the state has behind it.
        to_vaults: whether into the vaults' memory.
        folder: of the checkpoint to write it to, an fsspec address or an absolute path; None for
            no checkpoint.
    """

    steps_done: int
    to_vaults: bool = False
    folder: str | None = None


@dataclass(frozen=True)
class Stored:
    """What became of a rank's copy.

    Args:
        stall_s: how long the rank stood still for it.
        busy_s: how long storing it took, beside the training.
        files: files that the rank wrote for a checkpoint, by path below its folder -> SHA-256.
        error: why the checkpoint could not be written; empty if it could.
        copy_error: why no vault took the copy; empty if one did.
    """

    stall_s: float
    busy_s: float
    files: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    copy_error: str = ""


@dataclass(frozen=True)
class ModuleTimes:
    """Seconds of one module in one step: its slowest rank's; bytes that its ranks sent."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    boundary_s: float = 0.0
    boundary_bytes: int = 0


@dataclass(frozen=True)
class StepRecord:
    """One line of ``metrics.jsonl``.

    Peaks are the busiest rank's; activations are counted in traced steps, else zero. The loss
    scale is the step's, with fp16. Bad samples are those taken out since the step before.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    num_target_tokens: int
    num_tokens: int
    step_time_s: float
    skipped: bool
    peak_boundary_bytes: int
    peak_activation_bytes: int
    modules: Mapping[str, ModuleTimes]
    loss_scale: float | None = None
    bad_samples: Sequence[BadSample] = ()
    num_bad_samples: int = 0
    """All that the run has taken out so far."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the LLM's streams per second."""
        return self.num_tokens / self.step_time_s if self.step_time_s else 0.0

    @property
    def in_words(self) -> str:
        """The step in one line."""
        return (
            f"done in {self.step_time_s:.3f} s: loss {self.loss:.6g}, gradient norm "
            f"{self.grad_norm:.6g}, {self.tokens_per_s:.0f} tokens/s"
            + (", skipped" if self.skipped else "")
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the record that ``as_dict`` made plain data of."""
        modules = {name: ModuleTimes(**times) for name, times in content["modules"].items()}
        bad = tuple(BadSample(**sample) for sample in content["bad_samples"])
        return cls(**{**content, "modules": modules, "bad_samples": bad})


@dataclass(frozen=True)
class Answer:
    """A held-out sample: what was generated, and what is right."""

    key: int
    predicted: str
    true: str


@dataclass(frozen=True)
class Evaluation:
    """How the model does on held-out samples.

    Args:
        step: training steps done before it.
        loss: teacher-forced, per target token.
        accuracy: characters of the true answers that greedy decoding put in their place, over
            the samples that an encoder sees.
        exact_match: part of all samples whose greedy answer is the true one, but for case and
            the punctuation around words.
        token_f1: mean over all samples of the harmonic mean of precision and recall of the
            answer's words, normalised in the same way (that of SQuAD, articles kept).
        answers: every sample's.
    """

    step: int
    loss: float
    accuracy: float
    exact_match: float
    token_f1: float
    answers: Sequence[Answer] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the record that ``as_dict`` made plain data of."""
        answers = tuple(Answer(**answer) for answer in content["answers"])
        return cls(**{**content, "answers": answers})


def module_times(reports: Sequence[RankReport], modules: Sequence[str]) -> dict[str, ModuleTimes]:
    """Fold the ranks' spans into seconds per module, the slowest rank's of each kind."""
    return {name: _times(reports, name) for name in modules}


def mean_busy_s(reports: Sequence[RankReport], modules: Sequence[str]) -> dict[str, float]:
    """Return the seconds that a rank spends on each module's passes, the mean of its hosts."""
    found = {}
    for name in modules:
        hosts = [report for report in reports if name in report.modules]
        spent = [_seconds(each, name, kind) for each in hosts for kind in ("forward", "backward")]
        found[name] = sum(spent) / max(len(hosts), 1)
    return found


def _times(reports: Sequence[RankReport], module: str) -> ModuleTimes:
    hosts = [report for report in reports if module in report.modules]

    def slowest(category: str) -> float:
        return max((_seconds(report, module, category) for report in hosts), default=0.0)

    sent = sum(
        count
        for report in hosts
        for edge, count in report.sent_bytes.items()
        if module in _modules(edge)
    )
    return ModuleTimes(slowest("forward"), slowest("backward"), slowest("boundary"), sent)


def _seconds(report: RankReport, module: str, category: str) -> float:
    """Return a rank's seconds of one kind; a transfer counts for both ends of its boundary."""
    return sum(
        span.duration_s
        for span in report.spans
        if span.category == category and module in _modules(span.subject)
    )


def _modules(subject: str) -> set[str]:
    """Return the modules that a stage or an edge is of: ``language.0->language.1``."""
    return {stage.partition(".")[0] for stage in subject.split("->")}
