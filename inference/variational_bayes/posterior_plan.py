r"""The plan of a model whose parameters have posteriors: the same, with more parameters.

Its parameters are the posterior means, under the names of the model's own, and what says how sure
each is. Natural parameters are those expected, and the log prior density is the divergence of the
posteriors from the priors, with its sign changed. So what EM's E-step and objective are on this
plan is the lower bound

.. math::

    \mathcal L(q) = \log \int \exp E_q[\log p(x, z \mid \theta)] \, dz - \mathrm{KL}(q \,\|\, p)
    \le \log p(x),

its gradient, by Fisher's identity, that of the expected natural parameters at the statistics, and
everything that needs no more than those goes on as it is.

Reference: Beal (2003), *Variational algorithms for approximate Bayesian inference*, chapter 2.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ember.inference.factors.residuals.choice import ResidualFactors
from ember.inference.maximisation.updates import Update, updates
from ember.inference.plan.plan import Plan
from ember.inference.plan.priors import Prior
from ember.inference.variational_bayes.choice import prior_coefficients
from ember.inference.variational_bayes.expected_factors import ExpectedFactors
from ember.inference.variational_bayes.given_scale import GivenScale
from ember.inference.variational_bayes.posterior import Posterior

__all__ = ["posterior_plan", "with_posteriors"]

Params = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class DivergencePrior(Prior):
    """The priors of points, and the divergences of posteriors from theirs.

    Attributes:
        posteriors: The posteriors.
        plan: The plan at points.
    """

    posteriors: Mapping[str, Posterior] = field(default_factory=dict)
    constants: Mapping[str, list[Tensor]] = field(default_factory=dict)
    varying: Mapping[str, tuple[Plan, Update]] = field(default_factory=dict)

    def log_prob(self, params: Params) -> Tensor:
        """The log prior density of points, less the divergences of posteriors."""
        total = super().log_prob(params)
        for name, posterior in self.posteriors.items():
            total = total - posterior.divergence(params, self._coefficients(name, params))
        return total

    def _coefficients(self, name: str, params: Params) -> list[Tensor]:
        """Of the prior of one parameter, at points that it depends on."""
        if name in self.constants:
            return self.constants[name]
        return _at(*self.varying[name], self.posteriors[name], params)


def posterior_plan(plan: Plan, posteriors: Mapping[str, Posterior]) -> Plan:
    """The plan of the posteriors of a plan's parameters."""
    parameters = dict(plan.structure.parameters)
    parameters |= {p.key: p.beside for p in posteriors.values()}
    return dataclasses.replace(
        with_posteriors(plan, posteriors),
        structure=dataclasses.replace(plan.structure, parameters=parameters),
        prior=_prior(plan, posteriors),
    )


def with_posteriors(plan: Plan, posteriors: Mapping[str, Posterior]) -> Plan:
    """A plan, perhaps for other data, at expected natural parameters; its prior stays."""
    return dataclasses.replace(
        plan,
        tied={key: ExpectedFactors.of(tied, posteriors) for key, tied in plan.tied.items()},
        residuals=ResidualFactors({}, {}, {}),
    )


def _prior(plan: Plan, posteriors: Mapping[str, Posterior]) -> DivergencePrior:
    by_name = {update.name: update for update in updates(plan)}
    start = plan.structure.start
    constants, varying = dict[str, list[Tensor]](), dict[str, tuple[Plan, Update]]()
    for name, posterior in posteriors.items():
        density = plan.priors[name].site.density
        assert density is not None
        own = {posterior.scale.name} if isinstance(posterior, GivenScale) else set()
        if set(density.sources) <= own:
            constants[name] = _at(plan, by_name[name], posterior, start)
        else:
            varying[name] = plan, by_name[name]
    known = {f.name: getattr(plan.prior, f.name) for f in dataclasses.fields(Prior)}
    known["sites"] = {n: site for n, site in plan.prior.sites.items() if n not in posteriors}
    return DivergencePrior(**known, posteriors=posteriors, constants=constants, varying=varying)


def _at(plan: Plan, update: Update, posterior: Posterior, params: Params) -> list[Tensor]:
    """The coefficients of a prior at given points, and at unit scale if that is shared."""
    if isinstance(posterior, GivenScale):
        params = posterior.at_unit_scale(params)
    return prior_coefficients(plan, update, params)
