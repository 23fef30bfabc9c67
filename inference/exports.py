"""Ways out of a fit: into a file and back, and to ArviZ."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ember.inference.inputs.arguments import Model
from ember.inference.inputs.options import check_count
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.run import Run
from ember.inference.reports.arviz_groups import arviz_data
from ember.inference.storage.fit_file import read_fit, write_fit

__all__ = ["Exports"]


class Exports(Run):
    """The part of ``Fit`` that hands it on."""

    def save(self, path: str | Path, *, data: bool = True) -> None:
        """Writes the fit into one file, from which ``Fit.load`` brings it back.

        The file is in the safetensors format: tensors, and JSON beside them; nothing in it is ever
        executed. The model is not in it. With its data the fit comes back as it is.

        Args:
            path: The file; one that is there is replaced.
            data: False leaves out the data, and with them what cannot be stored: estimates,
                history and report remain, new data can be asked about, and ``Fit.load`` takes the
                old ones again.

        Warns:
            RuntimeWarning: If an SVI fit has a guide of the user's own, which is not saved.

        Raises:
            ValueError: If the file cannot be written, or an argument of the model cannot be stored.

        Example:
            >>> import tempfile
            >>> from ember.inference import EM, Fit
            >>> from ember.models import poisson_mixture
            >>> visits = torch.tensor([0.0, 1, 2, 9, 11])
            >>> fit = EM(poisson_mixture, seed=0).fit(visits, components=2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     fit.save(f"{folder}/visits.ember")
            ...     again = Fit.load(f"{folder}/visits.ember", poisson_mixture)
            >>> again.predict(torch.tensor([3.0, 8.0])).tolist()
            [0, 1]
        """
        write_fit(self, path, data)

    @classmethod
    def load(cls, path: str | Path, model: Model, *args: object, **kwargs: object) -> Self:
        """The fit in a file, with the model that was fitted.

        Args:
            path: A file that ``save`` wrote.
            model: The model; its sites, their shapes and the densities must be those of the fit.
            *args: The model's arguments, for those that were left out of the file.
            **kwargs: The model's keyword arguments, likewise.

        Raises:
            ValueError: If the file is no fit, is damaged, has been changed or is of another
                version; or if the model is another one.
        """
        kind, fields = read_fit(path, model, args, kwargs)
        kinds = {each.__name__: each for each in (cls, *cls.__subclasses__())}
        if kind not in kinds:
            raise ValueError(f"{path} holds a {kind}, and no {cls.__name__}; use {kind}.load.")
        return kinds[kind](**fields)

    def to_arviz(self, draws: int = 1000, seed: int | None = None) -> Any:
        r"""Draws, data and pointwise log likelihood for ArviZ: summaries, pictures, LOO.

        ========================  ==============================================================
        ``posterior``             draws of the parameters, from the normal approximation at the
                                  estimates (of SVI from its guide, of VBEM from its posteriors, of
                                  NUTS its chains); and with each one joint draw of the latents
        ``log_likelihood``        of each row at each draw, latents integrated out:
                                  :math:`\log p(x_n \mid \theta)`; where Gaussian latents tie all
                                  rows together, of each row given the draw of these; of a single
                                  chain only that of the whole. It is called after the observed
                                  site, or ``joint`` if rows have several numbers
        ``posterior_predictive``  new data at each draw, of the shape of the old, latents included
        ``observed_data``         the data, NaN where entries are missing
        ========================  ==============================================================

        Plates name the dims. An axis along the columns of a data frame is called ``column`` and has
        their names as coordinates.

        Args:
            draws: The number of draws, of one chain; of NUTS how many there are of each chain at
                most, evenly spaced.
            seed: Makes the draws repeatable; torch's global random state governs them otherwise.

        Returns:
            An ``xarray.DataTree``; before ArviZ 1.0 an ``arviz.InferenceData``.

        Raises:
            ImportError: If ArviZ is not installed (``pip install pyro-ember[arviz]``).
            ValueError: If the fit has no draws: it is no maximum, or was loaded without its data.

        Reference: Kumar, Carroll, Hartikainen & Martin (2019), *ArviZ a unified library for
        exploratory analysis of Bayesian models in Python*, JOSS 4(33), 1143; Vehtari, Gelman &
        Gabry (2017), *Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC*, Statistics and Computing 27, 1413-1432.
        """
        check_count("draws", draws)
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        fit: Any = self
        with sheltered(seed, self.plan.structure.arguments), torch.no_grad():
            return arviz_data(fit, self._draws_by_chain(draws, seed))

    def _draws_by_chain(self, n: int, seed: int) -> dict[str, Tensor]:
        """Draws of the parameters, site name to ``(chains, n, ...)``."""
        fit: Any = self
        drawn = fit.posterior_samples if fit.has_posterior else fit.laplace_samples
        return {name: values.unsqueeze(0) for name, values in drawn(n, seed).items()}
