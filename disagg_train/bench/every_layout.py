"""Every layout of a job, for what the planner's choice is held against. Pure."""

from collections.abc import Iterator
from itertools import product

from disagg_train.config.base import divisors
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.planner.candidates import Candidate, Team, partitions
from disagg_train.planner.shapes import shapes


def every_candidate(job: JobConfig, ranks: int) -> Iterator[Candidate]:
    """Return every candidate on all of some ranks of one node, nothing computed again.

    Modules are grouped, groups given ranks and modules cut in every way. Steps have every number of
    microbatches that divides the batch, in one window; zero-bubble schedules come beside 1F1B where
    the LLM has several stages, one per rank. Candidates of one ``layout`` follow one another.

    Args:
        job: whose own layout does not matter.
        ranks: of the node.
    """
    for groups in partitions(list(job.modules)):
        for sizes in product(range(1, ranks + 1), repeat=len(groups)):
            if sum(sizes) == ranks:
                teams = tuple(Team(g, n) for g, n in zip(groups, sizes, strict=True))
                yield from _in_teams(job, teams)


def _in_teams(job: JobConfig, teams: tuple[Team, ...]) -> Iterator[Candidate]:
    names = [name for team in teams for name in team.modules]
    fitting = [
        [
            shape
            for shape in shapes(job.modules[name], team.ranks, team.ranks)
            if team.ranks % shape.num_ranks == 0 and shape.recompute == "none"
        ]
        for team in teams
        for name in team.modules
    ]
    for chosen in product(*fitting):
        own = dict(zip(names, chosen, strict=True))
        has_bubble = own[LANGUAGE].pp > 1 and own[LANGUAGE].vpp == 1
        for count in divisors(job.train.global_batch):
            for schedule in ("1f1b", "zero_bubble")[: 1 + has_bubble]:
                yield Candidate(teams, own, count, count, schedule)
