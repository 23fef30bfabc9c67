"""Why an iteration went wrong, and what the data leave open where it went well, in words."""

from ember.inference.iteration.acceleration.em_map import EMMap
from ember.inference.iteration.convergence import Ending, StopReason
from ember.inference.maximisation.degeneracy import (
    Degenerate,
    emptied_states,
    idle_entries,
    near_singular,
    uncertainty,
)
from ember.inference.optimality.nearby import rounding
from ember.inference.plan.ownership import may_own_parameters
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["Diagnosis"]


NOISES = 10.0  # a fall that rounding may explain, in multiples of what it was seen to do
UNCERTAIN = 1e-7  # share of the objective that may be rounding without a word about it


class Diagnosis:
    """Says in words what became of an iteration.

    Args:
        plan: The plan of the model.
        method: How the fit calls itself.
    """

    def __init__(self, plan: Plan, method: str) -> None:
        self.plan, self.method = plan, method
        self._parameters = plan.structure.parameters

    def of_error(self, error: Exception) -> Ending:
        """The reason to stop where a step raised an error."""
        if isinstance(error, Degenerate):
            return StopReason.DEGENERATE, str(error)
        return StopReason.FAILED, f"{self.method}: {StopReason.FAILED.value} ({error})"

    def is_rounding(self, before: Statistics, after: Statistics) -> bool:
        """Whether the objective fell by no more than it is uncertain."""
        fall = before.objective - after.objective
        return fall <= uncertainty(self._parameters, after.params)

    def of_failure(
        self, failure: StopReason, before: Statistics, after: Statistics, em: EMMap
    ) -> Ending:
        """The reason to stop where the objective fell, or was not finite."""
        if failure is not StopReason.DECREASED:
            return failure, f"{self.method}: {failure.value}"
        singular = near_singular(self._parameters, after.params)
        if singular is not None:
            site, condition = singular
            return StopReason.ROUNDED, (
                f"{self.method}: {StopReason.ROUNDED.value}. A matrix of site '{site}' is all "
                f"but singular (condition number {condition:.0e}): drop columns that others all "
                "but determine, or give it a prior that keeps it away from that."
            )
        noise = max(rounding(em.e_step, before), rounding(em.e_step, after))
        if before.objective - after.objective <= NOISES * noise:
            return StopReason.ROUNDED, (
                f"{self.method}: {StopReason.ROUNDED.value}. At these parameters its rounding is "
                f"about {noise:.0e}: centre and scale the data."
            )
        return failure, f"{self.method}: {failure.value}"

    def identifiability_warning(self, current: Statistics) -> str:
        """A warning about estimates that the data do not determine, or nothing."""
        plan, warning = self.plan, ""
        if plan.objective == "mle":  # a prior determines what data leave open
            latents = [n for n in plan.discrete_latents if n in plan.compiled]
            keys = {n: plan.compiled[n][0] for n in latents if may_own_parameters(plan, n)}
            warning = emptied_states(current, keys, plan.structure.steps)
            warning = warning or self._uncertainty_warning(current)
        return warning or idle_entries(current, plan.priors)

    def _uncertainty_warning(self, current: Statistics) -> str:
        """A warning about a matrix so near to singular that the objective loses its digits."""
        error = uncertainty(self._parameters, current.params)
        if error <= UNCERTAIN * (1.0 + abs(current.objective)):
            return ""
        singular = near_singular(self._parameters, current.params)
        assert singular is not None
        site, condition = singular
        return (
            f"{self.method}: a matrix of site '{site}' is all but singular (condition number "
            f"{condition:.0e}), so that the objective is known to {error:.0e} only: drop columns "
            "that others all but determine, or give it a prior that keeps it away from that."
        )
