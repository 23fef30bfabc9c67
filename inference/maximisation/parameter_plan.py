"""What the M-step needs to know of a plan: all but the rows of the data."""

from dataclasses import dataclass

from ember.inference.factors.tied import TiedFactors, TieKey
from ember.inference.maximisation.conditioning import Design, designs_of
from ember.inference.numerics.memo import Memo
from ember.inference.parameters.parameter import Parameter
from ember.inference.plan.plan import Plan
from ember.inference.plan.priors import Prior, PriorSite

__all__ = ["ParameterPlan"]


@dataclass(frozen=True, eq=False)
class ParameterPlan(Memo):
    """The part of a plan that the M-step is made of; see ``Plan`` for the attributes.

    Attributes:
        designs: The designs of linear predictors, for updates that are numerical.
    """

    parameters: dict[str, Parameter]
    objective: str
    prior: Prior
    tied: dict[TieKey, TiedFactors]
    designs: tuple[Design, ...]
    starts: int

    @staticmethod
    def of(plan: Plan, numerical: bool) -> "ParameterPlan":
        """That of a plan; without designs if no update is ever numerical."""
        designs = plan.once(designs_of) if numerical else ()
        return ParameterPlan(
            plan.structure.parameters, plan.objective, plan.prior, plan.tied, designs, plan.starts
        )

    @property
    def priors(self) -> dict[str, PriorSite]:
        """The prior of each parameter that counts in the objective."""
        return self.prior.sites
