"""Fits come back from files and from pickle as they were; what is no fit gets one sentence."""

import dataclasses
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ember.inference import (
    EM,
    NUTS,
    SVI,
    VBEM,
    Adaptive,
    Fit,
    Laplace,
    MonteCarlo,
    Quadrature,
)
from ember.inference.storage.sealed_file import FIT, write_sealed
from ember.inference.tables import old_faithful
from ember.models import (
    gaussian_mixture,
    hidden_markov_gaussian,
    item_response,
    linear_mixed_model,
    poisson_mixture,
    regression_mixture,
)
from tests.inference.catalogue import CASES, INTEGRATED, NUMERICAL, Case, case_id, model_of

VISITS = torch.tensor([0.0, 1, 0, 2, 1, 9, 11, 8, 10, 12])


def quickly(run: Callable[[], Fit]) -> Fit:
    """A fit of a few iterations, which says that it has not converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return run()


def answer(ask: Callable[[], Any]) -> Any:
    """What a fit says, or why it does not."""
    try:
        return ask()
    except ValueError as error:
        return str(error)


def effects(y: Tensor, group: Tensor) -> None:
    mean = pyro.param("mean", torch.tensor(0.0))
    with pyro.plate("groups", int(group.max()) + 1):
        u = pyro.sample("u", dist.Normal(mean, 0.5))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize(
    "how", ["quadrature", Adaptive(9), MonteCarlo(2, 20, 20, 40, 40), "monte-carlo"], ids=str
)
def test_fits_unit_by_unit(tmp_path: Path, how: Any, data: bool) -> None:
    group = torch.arange(30) // 5
    em = EM(effects, "mle", seed=0, integrate={"u": how})
    fit = quickly(lambda: em.fit(VISITS.repeat(3), group))
    fit.save(tmp_path / "fit.ember", data=data)
    again = Fit.load(tmp_path / "fit.ember", effects)
    assert again.node_gaps == fit.node_gaps
    assert str(again) == str(fit)
    new = (VISITS[:5], group[:5])
    assert torch.equal(again.log_prob(*new), fit.log_prob(*new))
    if data:
        torch.testing.assert_close(again.posterior("u").mean, fit.posterior("u").mean)


def answers(fit: Fit) -> dict[str, Any]:
    """Everything that follows from a fit, as tensors, numbers and words."""
    structure = fit.plan.structure
    latents = [*structure.latent, *structure.gaussian, *structure.conjugate]
    said = {
        "posterior": [answer(lambda n=name: spread(fit.posterior(n))) for name in latents],  # type: ignore[misc]
        "predict": answer(fit.predict),
        "new": answer(
            lambda: fit.log_prob(*structure.arguments.args, **structure.arguments.kwargs)
        ),
        "rows": fit.log_prob(),
        "sample": fit.sample(3, seed=1),
        "latents": answer(lambda: fit.latent_samples(2, seed=1)),
        "predictive": answer(lambda: spread(fit.predictive())),
        "deterministic": fit.deterministic,
        "criteria": [fit.aic, fit.bic, fit.icl, fit.n_parameters, fit.n_observations],
        "report": [str(fit), fit.summary().to_csv(), str(fit.starts), fit.stop_reason],
    }
    fields = {field.name for field in dataclasses.fields(fit)} - {"plan", "guide"}
    kept = {name: getattr(fit, name) for name in sorted(fields)}
    return {**said, **kept, "starts": vars(fit.starts)}


def spread(found: Any) -> Any:
    """The numbers of a distribution."""
    if isinstance(found, dict):
        return {name: spread(value) for name, value in found.items()}
    return found.probs if hasattr(found, "probs") else (found.mean, found.variance)


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equality to the last bit, NaN equal to itself."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, where
        torch.testing.assert_close(other, one, rtol=0.0, atol=0.0, equal_nan=True)
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for name, value in one.items():
            assert_same(value, other[name], f"{where}.{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}.{place}")
    else:
        assert one == other or (one != one and other != other), where


@pytest.mark.parametrize("case", CASES + NUMERICAL + INTEGRATED, ids=case_id)
def test_every_model_comes_back_with_all_its_answers(case: Case, tmp_path: Path) -> None:
    model = model_of(case)
    fit = quickly(lambda: EM(model, seed=0, max_iter=2).fit(case[1], **case[2]))
    expected = answers(fit)
    fit.save(tmp_path / "a.ember")
    assert_same(answers(Fit.load(tmp_path / "a.ember", model)), expected)
    assert_same(answers(pickle.loads(pickle.dumps(fit))), expected)


def by_variational_bayes() -> Fit:
    return VBEM(gaussian_mixture, restarts=2, seed=0).fit(old_faithful()[::4], components=2)


def sampled() -> Fit:
    return NUTS(poisson_mixture, draws=4, warmup=3, chains=2, seed=0).fit(VISITS, components=2)


def approximated() -> Fit:
    return Laplace(poisson_mixture, draws=20, seed=0).fit(VISITS, components=2)


def named_columns() -> Fit:
    return EM(gaussian_mixture, "mle", restarts=3, seed=0).fit(old_faithful()[::4], components=2)


def own_start() -> Fit:
    start = {"rates": torch.tensor([1.0, 9.0])}
    return EM(poisson_mixture, init=start, assignment="hard").fit(VISITS, components=2)


def on_nodes() -> Fit:
    answered = (torch.arange(40).reshape(10, 4) % 3 > 0).double()
    em = EM(item_response, integrate={"ability": Quadrature(9, 17)}, max_iter=3)
    return em.fit(answered, model="rasch")


def weighted() -> Fit:
    prior = {"rate": torch.tensor(0.5)}
    weights = torch.arange(1.0, 11.0, dtype=torch.float32)
    em = EM(poisson_mixture, mode="unconstrained", accelerate=None, max_iter=5)
    return em.fit(VISITS.float(), components=2, frequency=weights, prior=prior)


def regressed() -> Fit:
    frame = pd.DataFrame({"rain": [1.0, 2, 3, 4, 5, 7], "sun": [5.0, 1, 4, 2, 6, 3]})
    y = pd.Series([2.1, 3.9, 6.2, 7.8, 10.1, 14.0], name="growth")
    return EM(regression_mixture, seed=0).fit(y, X=frame, components=1)


OTHERS = [
    *(by_variational_bayes, sampled, approximated, named_columns),
    *(own_start, on_nodes, weighted, regressed),
]


@pytest.mark.parametrize("make", OTHERS)
def test_options_names_and_weights_come_back(make: Callable[[], Fit], tmp_path: Path) -> None:
    fit = quickly(make)
    fit.save(tmp_path / "a.ember")
    again = Fit.load(tmp_path / "a.ember", fit.plan.structure.model)
    assert_same(answers(again), answers(fit))
    assert again.plan.objective == fit.plan.objective
    assert again.plan.unconstrained == fit.plan.unconstrained
    assert type(again) is type(fit)
    again.save(tmp_path / "b.ember")
    assert_same(answers(pickle.loads(pickle.dumps(fit))), answers(fit))  # with all it has kept
    twice = Fit.load(tmp_path / "b.ember", fit.plan.structure.model)
    assert_same(answers(twice), answers(fit))


def test_a_loaded_fit_draws_and_renumbers(tmp_path: Path) -> None:
    fit = named_columns()
    fit.save(tmp_path / "a.ember")
    again = Fit.load(str(tmp_path / "a.ember"), gaussian_mixture)
    assert len(again.plot().axes) == len(fit.plot().axes)
    assert_same(again.relabel([1, 0]).params, fit.relabel([1, 0]).params)
    new = old_faithful()[1:40:4]
    assert_same(again.predict(new), fit.predict(new))


# -- without data -------------------------------------------------------------------------------


def test_without_data_estimates_and_reports_remain(tmp_path: Path) -> None:
    fit, path = named_columns(), tmp_path / "a.ember"
    fit.save(path, data=False)
    with safe_open(path, framework="pt") as file:
        assert not [name for name in file.keys() if name.startswith("arguments")]  # noqa: SIM118
    again = Fit.load(path, gaussian_mixture)
    assert str(again) == str(fit)
    assert_same(again.summary().to_csv(), fit.summary().to_csv())
    new = old_faithful()[1:40:4]
    assert_same(again.predict(new), fit.predict(new))
    assert_same(again.log_prob(new), fit.log_prob(new))
    assert_same(again.posterior("assignment", new).probs, fit.posterior("assignment", new).probs)
    asked: list[Callable[[], object]] = [
        *(again.predict, again.log_prob, again.plot, lambda: again.posterior("assignment")),
        *(lambda: again.sample(3), lambda: again.icl, again.relabel, lambda: again.plan.sites),
    ]
    for ask in asked:
        with pytest.raises(ValueError, match="saved without its data, which this needs"):
            ask()
    again.save(tmp_path / "b.ember")
    assert str(Fit.load(tmp_path / "b.ember", gaussian_mixture)) == str(fit)
    assert str(pickle.loads(pickle.dumps(again))) == str(fit)
    whole = Fit.load(path, gaussian_mixture, old_faithful()[::4])
    assert_same(answers(whole), answers(fit))
    assert_same(answers(Fit.load(path, gaussian_mixture, x=old_faithful()[::4])), answers(fit))


def test_without_data_reports_know_nodes_and_computed_values(tmp_path: Path) -> None:
    nodes = quickly(on_nodes)
    nodes.save(tmp_path / "a.ember", data=False)
    assert str(Fit.load(tmp_path / "a.ember", item_response)) == str(nodes)
    fit = EM(computing).fit(VISITS)
    fit.save(tmp_path / "b.ember", data=False)
    again = Fit.load(tmp_path / "b.ember", computing)
    assert_same(again.deterministic, fit.deterministic)
    assert_same(again.log_prob(VISITS[:3]), fit.log_prob(VISITS[:3]))


def computing(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.deterministic("wait", 1.0 / rate)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def test_without_data_what_new_data_need_is_named(tmp_path: Path) -> None:
    y, group = torch.randn(12, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
    line = torch.arange(12.0).unsqueeze(-1)
    fit = quickly(lambda: EM(linear_mixed_model, max_iter=3).fit(y, groups=group, X=line))
    fit.save(tmp_path / "a.ember", data=False)
    again = Fit.load(tmp_path / "a.ember", linear_mixed_model)
    with pytest.raises(ValueError, match="without its data"):
        again.predictive(groups=torch.tensor([0]), X=torch.ones(1, 1))
    whole = Fit.load(tmp_path / "a.ember", linear_mixed_model, y, groups=group, X=line)
    assert_same(answers(whole), answers(fit))
    experts = EM(needing, seed=0).fit(y, line)
    experts.save(tmp_path / "b.ember", data=False)
    bare = Fit.load(tmp_path / "b.ember", needing)
    with pytest.raises(ValueError, match=r"saved without its data, argument 'slope'.*give it too"):
        bare.log_prob(y)
    assert_same(bare.log_prob(y, line), experts.log_prob(y, line))


def needing(y: Tensor, slope: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(loc + slope[:, 0], 1.0), obs=y)


# -- what cannot be stored ----------------------------------------------------------------------


def linked(x: Tensor, link: Callable[[Tensor], Tensor], scale: object = 1.0) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(link(loc), 1.0), obs=x)


def test_an_argument_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    fit = EM(linked).fit(VISITS, link=torch.exp, scale=[1, {"a": (None, float("inf"), True)}])
    with pytest.raises(ValueError, match=r"'link' of the model cannot be saved.*data=False"):
        fit.save(tmp_path / "a.ember")
    assert not os.listdir(tmp_path)
    fit.save(tmp_path / "a.ember", data=False)
    again = Fit.load(tmp_path / "a.ember", linked, VISITS, link=torch.exp)
    assert again.log_prob().equal(fit.log_prob())
    assert again.plan.structure.arguments.kwargs["scale"] == [1, {"a": (None, float("inf"), True)}]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([[0.0, 1.0], [2.0, 0.0]]).to_sparse(),
        scipy.sparse.csr_matrix([[0.0, 1.0], [2.0, 0.0]]),
        torch.zeros(2, 3, dtype=torch.int16),
        torch.tensor(True),
        torch.arange(6).reshape(2, 3).T,
        torch.zeros(1).expand(4),
    ],
)
def test_tensors_of_all_kinds_come_back(tensor: Any, tmp_path: Path) -> None:
    fit = EM(carrying).fit(VISITS, {("any", 1): tensor})
    fit.save(tmp_path / "a.ember")
    again = Fit.load(tmp_path / "a.ember", carrying)
    ((key, value),) = again.plan.structure.arguments.args[1].items()  # type: ignore[attr-defined]
    before = fit.plan.structure.arguments.args[1][key]  # type: ignore[index]
    assert key == ("any", 1)
    assert value.layout == before.layout
    assert value.dtype == before.dtype
    assert value.to_dense().equal(before.to_dense())


def carrying(x: Tensor, cargo: object) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


# -- guides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["delta", "normal", "multivariate_normal"])
def test_a_named_guide_is_made_again(guide: str, tmp_path: Path) -> None:
    y = torch.randn(12, generator=torch.Generator().manual_seed(1))
    fits: dict[Callable[..., object], Fit] = {
        poisson_mixture: SVI(poisson_mixture, guide, steps=5, seed=0).fit(VISITS, components=2),
        linear_mixed_model: SVI(linear_mixed_model, guide, steps=5, seed=0).fit(
            y, groups=torch.arange(12) % 3
        ),
        item_response: SVI(item_response, guide, steps=5, seed=0).fit((VISITS > 2).view(5, 2)),
    }
    for model, fit in fits.items():
        fit.save(tmp_path / "a.ember")
        again = Fit.load(tmp_path / "a.ember", model)
        assert_same(again.posterior_samples(4, seed=1), fit.posterior_samples(4, seed=1))
        assert again.guide.is_delta == fit.guide.is_delta
        assert again.guide.covered == fit.guide.covered
        assert_same(answers(again), answers(fit))
        fit.save(tmp_path / "a.ember", data=False)
        bare = Fit.load(tmp_path / "a.ember", model)
        assert str(bare) == str(fit)
        with pytest.raises(ValueError, match="guide of this fit is not in the file"):
            bare.posterior_samples(3)


def test_a_guide_of_ones_own_is_left_out_with_a_word(tmp_path: Path) -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("rate", dist.Delta(pyro.param("r", torch.ones(()))))

    fit = SVI(computing, guide, steps=3, seed=0).fit(VISITS)
    with pytest.warns(RuntimeWarning, match="guide of the fit is of your own making"):
        fit.save(tmp_path / "a.ember")
    again = Fit.load(tmp_path / "a.ember", computing)
    assert_same(answers(again), answers(fit))
    with pytest.raises(ValueError, match="guides of one's own are not saved"):
        again.posterior_samples(3)
    again.save(tmp_path / "b.ember")  # without another word
    assert str(Fit.load(tmp_path / "b.ember", computing)) == str(fit)


# -- files that are no fits ---------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.ember"
    EM(poisson_mixture, seed=0).fit(VISITS, components=2).save(path)
    return path


def refusal(path: Path, model: Any = poisson_mixture) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(ValueError, match=path.name) as refused:
        Fit.load(path, model)
    text = str(refused.value)
    assert str(path) in text
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_a_truncated_file_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        assert "damaged" in refusal(saved)
    saved.write_bytes(whole + b"\0")
    assert "damaged" in refusal(saved)


def test_a_changed_byte_is_noticed_wherever_it_is(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    for place in [*range(0, 160), *range(160, len(whole), 23), len(whole) - 1]:
        changed = whole.copy()
        changed[place] ^= 0x01
        saved.write_bytes(changed)
        refusal(saved)


def test_other_versions_and_other_files_are_refused(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        words = file.metadata()
    for made, expected in (
        ({**words, "format": "ember fit 2", "version": "7.0"}, "'ember fit 2' by Ember 7.0"),
        ({"format": "other"}, "no fit"),
        ({}, "no fit"),
        ({**words, "content": words["content"].replace("Poisson", "Gamma")}, "checksum"),
    ):
        save_file({"a": torch.zeros(1)}, saved, metadata=made)
        assert expected in refusal(saved)
    saved.write_text("rate,weight\n1,2\n" * 20)
    assert "no fit" in refusal(saved)
    assert "there is no file" in refusal(saved.parent / "none.ember")
    assert "there is no file" in refusal(saved.parent)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"fit": 1},
        {"fit": {"os.system": "echo"}},
        {"fit": {"tensor": "none"}},
        {"fit": {"StopReason": "__class__"}, "plan": None},
        {"fit": {"Starts": {"dict": [["nonsense", 1]]}}},
        {"fit": {"dict": []}, "plan": None, "guide": None, "arguments": None},
        {"fit": {"dict": []}, "plan": 1, "guide": 2, "arguments": {"tuple": [[], {"dict": []}]}},
    ],
)
def test_a_forged_file_is_no_fit(content: Any, saved: Path) -> None:
    write_sealed(saved, content, {})
    assert "no fit that fit.save wrote" in refusal(saved)


def test_deep_nesting_is_no_fit(saved: Path) -> None:
    words = {"format": FIT.format, "content": "[" * 100_000, "checksum": ""}
    save_file({}, saved, metadata=words)
    assert "checksum" in refusal(saved)


def test_folders_and_missing_folders_are_said_before_writing(tmp_path: Path) -> None:
    fit = EM(computing).fit(VISITS)
    with pytest.raises(ValueError, match="is a folder"):
        fit.save(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        fit.save(tmp_path / "none" / "a.ember")


# -- other models -------------------------------------------------------------------------------


def wider(x: Tensor, components: int) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(components)))
    with pyro.plate("components", components):
        rates = pyro.sample("rates", dist.Gamma(2.0, 0.01))
    with pyro.plate("rows", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[assignment]), obs=x)


def narrower(x: Tensor, components: int) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(components)))
    with pyro.plate("components", components):
        rates = pyro.sample("rates", dist.Gamma(2.0, 3.0))
    with pyro.plate("rows", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[assignment]), obs=x)


def test_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    assert "'hidden_markov_gaussian' cannot be read" in refusal(saved, hidden_markov_gaussian)
    EM(wider, seed=0).fit(VISITS, 2).save(saved)
    assert "the model 'computing' cannot be read" in refusal(saved, computing)
    assert "another one: site" in refusal(saved, poisson_mixture)
    assert "log posterior" in refusal(saved, narrower)
    with pytest.raises(ValueError, match="site 'weights' has the shape"):
        Fit.load(saved, wider, components=3)
    with pytest.raises(ValueError, match="log likelihood"):
        Fit.load(saved, wider, VISITS + 1.0)
    with pytest.raises(TypeError, match="takes the model that was fitted \\('wider'\\)"):
        Fit.load(saved, "wider")  # type: ignore[arg-type]


def test_a_parameter_that_is_held_makes_another_model(tmp_path: Path) -> None:
    held = pyro.condition(computing, data={"rate": torch.tensor(2.0)})
    path = tmp_path / "a.ember"
    EM(computing).fit(VISITS).save(path)
    with pytest.raises(ValueError, match="site 'rate' is no parameter there"):
        Fit.load(path, held)


def test_the_file_is_open_to_other_tools(saved: Path) -> None:
    with safe_open(saved, framework="np") as file:
        assert file.get_tensor("params.rates").shape == (2,)
        assert json.loads(file.metadata()["content"])["model"] == "poisson_mixture"


def test_saving_again_keeps_permissions_and_leaves_nothing_behind(saved: Path) -> None:
    saved.chmod(0o640)
    EM(poisson_mixture, seed=0).fit(VISITS, components=2).save(saved)
    assert saved.stat().st_mode & 0o777 == 0o640
    assert os.listdir(saved.parent) == [saved.name]
