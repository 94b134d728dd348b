"""Searching a space: objectives and constraints, archive, surrogate, evolution, the NAT loop, and the final choice."""

from natdeploy.search.archive import Archive, non_dominated
from natdeploy.search.decide import Choice, choose
from natdeploy.search.distribution import Distribution
from natdeploy.search.evolve import infill
from natdeploy.search.feasible import reachable_range, smallest_feasible
from natdeploy.search.nat import Adapt, Correct, Evaluate, NatSettings, RoundReport, Scores, SurrogateQuality, search
from natdeploy.search.objectives import Constraint, Objectives, by_precision, parse_constraint, show
from natdeploy.search.surrogate import Knowledge

__all__ = [
    "Adapt",
    "Archive",
    "Choice",
    "Constraint",
    "Correct",
    "Distribution",
    "Evaluate",
    "Knowledge",
    "NatSettings",
    "Objectives",
    "RoundReport",
    "Scores",
    "SurrogateQuality",
    "by_precision",
    "choose",
    "infill",
    "non_dominated",
    "parse_constraint",
    "reachable_range",
    "search",
    "show",
    "smallest_feasible",
]
