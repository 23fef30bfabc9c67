"""EM on data that come in pieces: exactly, pass by pass, or in steps before a pass has ended."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch

from ember.inference.fit import Fit
from ember.inference.inputs.chunks import check_loader, given_by
from ember.inference.inputs.frames import recipe_of
from ember.inference.inputs.options import check_choice, check_count
from ember.inference.inputs.shelter import sheltered
from ember.inference.iteration.convergence import Monitor
from ember.inference.iteration.kept_plan import ReadingOptions
from ember.inference.iteration.loop import DataLost
from ember.inference.iteration.run import Run
from ember.inference.plan.plan import Plan
from ember.inference.storage.sealed_file import check_target
from ember.inference.streaming.checkpoints import read_checkpoint
from ember.inference.streaming.fitting import InPieces, finished, start_of
from ember.inference.streaming.nodes import EnoughNodes
from ember.inference.streaming.online import METHODS, Online, check_online
from ember.inference.streaming.passes import MANY
from ember.inference.streaming.ranks import ranks_at_hand
from ember.inference.streaming.stream import Stream, stream_of
from ember.inference.streaming.workers import check_executor

__all__ = ["Batches"]


LOOSE = 1e-5  # tolerance on the sample: what it says of all rows is not more certain


class Batches(ABC):
    """What ``EM`` does with data in pieces; its options are those of ``EM``."""

    model: Any
    objective: str
    init: Any
    accelerate: str | None
    tol: float
    max_iter: int
    seed: int | None
    progress: bool
    anneal: tuple[float, ...]
    assignment: str
    escape: str | None

    def fit_batches(
        self,
        loader: Iterable[object],
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: float = 60.0,
        resume: str | Path | None = None,
        executor: Executor | None = None,
        patience: float = 600.0,
        **options: Any,
    ) -> Fit:
        r"""Runs EM on data in pieces, one of which is in memory at a time: exactly, as ``fit``.

        Statistics are sums over rows, so those of the pieces add up to those of the whole,

        .. math:: \log p(x \mid \theta) = \sum_b \log p(x_b \mid \theta), \qquad
                  \mathbb E[T \mid x, \theta] = \sum_b \mathbb E[T \mid x_b, \theta].

        One pass looks at everything once: at the moments from which default priors take their
        scale, and at up to 20,000 random rows, on which the fit starts. Every E-step is a pass
        more. A row, or a sequence of a chain, is independent of all others; one piece may not
        share a latent with another. Of sites without sufficient statistics each piece gives the
        gradient and the Hessian of their expected log probability (Lange 1995), and a step that
        would lower the objective is shortened.

        Where ``torch.distributed`` has been set up, each process gives the pieces of its share, and
        all end with the same fit.

        Args:
            loader: The pieces: a ``DataLoader``, ``chunks(...)``, a list, or whatever else can be
                iterated over many times. Each is data (a tensor, array or table of numbers), a
                tuple of positional arguments of the model, or a dict of arguments by name. Each may
                pad its sequences to a length of its own.
            checkpoint: A file to write what has been reached to, every so often.
            checkpoint_every: For how many seconds at least the latest checkpoint stands.
            resume: A checkpoint to go on from: with the same model, options and data the result is
                that of the fit that was broken off, to the bit.
            executor: Processes that read and work on the pieces: ``ProcessPoolExecutor()``, or
                ``client.get_executor()`` of Dask. Statistics travel; rows do only if the loader
                holds them (``chunks`` of a file does not).
            patience: How many seconds a worker may take for a piece.
            **options: The arguments of the model that all pieces share.

        Returns:
            The fit. It holds no rows but a sample, and the loader: ``predict``, ``log_prob`` and
            the like take new ones; ``standard_errors`` and the like pass over the pieces again.
            Where data get lost on the way (a file is cut short, a worker dies) it holds the
            parameters reached so far, and a warning says what happened.

        Raises:
            TypeError: If the loader or the executor is none, or a piece holds no numbers.
            ValueError: If the model or a piece cannot be handled; the message names the site or
                the piece. If ``resume`` is no checkpoint of this fit.

        References: Neal & Hinton (1998), *A view of the EM algorithm that justifies incremental,
        sparse, and other variants*, in Learning in Graphical Models, 355-368; Lange (1995), *A
        gradient algorithm locally equivalent to the EM algorithm*, JRSS B 57, 425-437.

        Example:
            >>> import torch
            >>> from ember.inference import EM, chunks
            >>> from ember.models import gaussian_mixture
            >>> x = torch.randn(900, 2, generator=torch.Generator().manual_seed(0)).double()
            >>> x[:300] += 6.0
            >>> em = EM(gaussian_mixture, seed=0)
            >>> fit = em.fit_batches(chunks(x, rows=250), components=2)
            >>> whole = em.fit(x, components=2)
            >>> abs(fit.log_posterior - whole.log_posterior) < 1e-4
            True
        """
        self._check_batches(escape=self.escape)
        began = time.perf_counter()
        targets = check_target(checkpoint) if checkpoint is not None else None
        if executor is not None:
            check_executor(executor)
        on_sample = functools.lru_cache(lambda template: self._on_sample(template, began))
        fitting = InPieces(
            self.model,
            self.init,
            on_sample,
            self.accelerate,
            Monitor(self.tol) if self.tol else None,
            self.max_iter,
            self.name,
            self.progress,
            self.assignment == "hard",
        )
        with self._stream(loader, options, executor, patience) as stream:
            nodes = EnoughNodes(stream, self._options)
            if resume is None:
                nodes = nodes.for_sample(lambda stream: start_of(stream, self.init, on_sample))
            else:
                nodes = nodes.given(read_checkpoint(resume).about.get("nodes", {}))
            run = fitting(nodes.stream, began, targets, checkpoint_every, resume)
            nodes, are_more = nodes.for_pieces(run)
            while are_more:
                run = fitting(nodes.stream, began, targets, checkpoint_every, before=run)
                nodes, are_more = nodes.for_pieces(run)
            run = run.told_of_nodes(nodes.warning)
            run = dataclasses.replace(run, evaluations=nodes.stream.passes)
        fit = dataclasses.replace(_told(run, began), node_gaps=dict(nodes.gaps))
        return self._with_columns(fit, stream)

    def fit_online(
        self,
        loader: Iterable[object],
        *,
        method: str = "stepwise",
        passes: int = 1,
        decay: float = 0.6,
        **options: Any,
    ) -> Fit:
        r"""Runs EM with an M-step after every piece: a few passes over very large data.

        A running average of the statistics, scaled to all rows, takes the place of their sum:

        .. math::

            s \leftarrow (1 - \gamma_k)\, s + \gamma_k \tfrac{n}{n_b} S_b(\theta), \qquad
            \theta \leftarrow M(s), \qquad \gamma_k = (k + 2)^{-\alpha}.

        The parameters are averaged over the last half of each pass. After a pass the objective of
        all rows is computed, in another pass; the history holds the best so far.

        Args:
            loader: The pieces, as for ``fit_batches``; their order should be random.
            method: "stepwise", or "variance-reduced", which looks at each piece twice and comes to
                the optimum itself, where the other is left with noise.
            passes: The number of passes of steps.
            decay: The exponent :math:`\alpha`, above 1/2 and up to 1; smaller forgets faster.
            **options: The arguments of the model that all pieces share.

        Raises:
            ValueError: If an option has an unknown value, or a piece cannot be handled.

        References: Cappé & Moulines (2009), *On-line expectation-maximization algorithm for latent
        data models*, JRSS B 71, 593-613; Chen, Zhu, Teh & Zhang (2018), *Stochastic expectation
        maximization with variance reduction*, NeurIPS 31.

        Example:
            >>> import torch
            >>> from ember.inference import EM, chunks
            >>> from ember.models import poisson_mixture
            >>> generator = torch.Generator().manual_seed(0)
            >>> rates = torch.tensor([2.0, 9.0])[torch.arange(2000) % 2]
            >>> counts = torch.poisson(rates, generator=generator)
            >>> fit = EM(poisson_mixture, seed=0).fit_online(chunks(counts, rows=100), components=2)
            >>> fit.params["rates"].sort().values.round(decimals=0)
            tensor([2., 9.], dtype=torch.float64)
        """
        self._check_batches(escape=self.escape, assignment=self.assignment)
        began = time.perf_counter()
        check_choice("method", method, METHODS)
        if not 0.5 < decay <= 1.0:
            raise ValueError(f"decay must be above 0.5 and at most 1, not {decay!r}.")
        check_count("passes", passes)
        with self._stream(loader, options, None, 0.0) as stream:
            if stream.ranks.count > 1:
                raise ValueError("fit_online runs in one process; use fit_batches in several.")
            check_online(stream.template)
            start = start_of(stream, self.init, lambda plan: self._on_sample(plan, began))
            run = Online(stream, method, passes, decay, f"{self.name}, {method}")(start, began)
            run = finished(run, stream, self.model, isinstance(self.init, str))
        return self._with_columns(_told(run, began), stream)

    def _with_columns(self, fit: Fit, stream: Stream) -> Fit:
        """The fit, which tells the columns of new tables by the names in the first piece."""
        known = stream.source
        args, kwargs = given_by(known.first[0], known.options) if known.first else ((), {})
        return dataclasses.replace(fit, recipe=recipe_of(self.model, args, kwargs))

    @contextlib.contextmanager
    def _stream(
        self,
        loader: Iterable[object],
        options: dict[str, Any],
        executor: Executor | None,
        patience: float,
    ) -> Iterator[Stream]:
        """The pieces as an E-step, in a sheltered state; what is lost before a fit is an error."""
        check_loader(loader)
        ranks = ranks_at_hand()
        if ranks.count > 1 and executor is not None:
            raise ValueError("take an executor, or several processes of torchrun, not both.")
        seed = self.seed
        if seed is None:
            with torch.random.fork_rng(devices=[]):  # the caller's own draws go on as they were
                seed = ranks.gathered(int(torch.randint(2**31, ()).item()))[0]
        try:
            with sheltered(seed, MANY):
                yield stream_of(
                    self._options, loader, options, ranks, executor, patience, seed, self.progress
                )
        except DataLost as error:
            raise ValueError(f"{str(error).rstrip('.')}.") from error

    def _on_sample(self, template: Plan, began: float) -> Run:
        """A fit of the sampled rows, no closer than a sample allows."""
        em = copy.copy(self)
        em.tol, em.progress = max(self.tol, LOOSE), False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return em._fit(template, began)

    @property
    @abstractmethod
    def name(self) -> str:
        """How tables and pictures call this method."""

    @abstractmethod
    def _fit(self, plan: Plan, began: float) -> Run:
        """The best run from all starts under one plan."""

    @property
    @abstractmethod
    def _options(self) -> ReadingOptions:
        """What a plan depends on, the arguments aside."""

    def _check_batches(self, **asked: str | None) -> None:
        """Refuses options that ask for all rows at once."""
        for option, value in asked.items():
            if value not in (None, "soft"):
                raise ValueError(
                    f"{option}={value!r} needs all rows at once; leave it out, or use fit(...)."
                )


def _told(run: Run, began: float) -> Fit:
    """The fit of a run, its warning said."""
    fit = Fit.of(run)
    if fit.warning:
        warnings.warn(fit.warning, RuntimeWarning, stacklevel=3)
    return dataclasses.replace(fit, seconds=time.perf_counter() - began)
