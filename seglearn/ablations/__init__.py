"""The papers' key ablations, repeated small: what is compared (`table`), the rule (`claims`), how it runs (`runs`)."""

from seglearn.ablations.claims import RULE, Ablation, Arm, Claim, Judgement, judge
from seglearn.ablations.runs import fill, overview, page, plan, summary
from seglearn.ablations.table import SETTING, TABLE, choose, names

__all__ = [
    "RULE",
    "SETTING",
    "TABLE",
    "Ablation",
    "Arm",
    "Claim",
    "Judgement",
    "choose",
    "fill",
    "judge",
    "names",
    "overview",
    "page",
    "plan",
    "summary",
]
