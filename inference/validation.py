"""Checks of data that need the plan: are there enough rows for what is asked?"""

from ember.inference.plan import Plan

__all__ = ["check_rows"]


def check_rows(plan: Plan) -> None:
    """Refuses fewer than two rows, and latents with more states than rows.

    Raises:
        ValueError: Naming the plate or the latent site.
    """
    if plan.row is None:
        return
    rows = plan.sizes[plan.row]
    if rows < 2:
        raise ValueError(
            f"the data have {rows} row; estimating the parameters of a model needs at least 2: "
            "pass more rows."
        )
    for name, symbol in plan.latent_symbols.items():
        states = plan.sizes[symbol]
        if plan.row in plan.sites[name].plates and states > rows:
            raise ValueError(
                f"latent site '{name}' has {states} states but the data have only {rows} rows; "
                "use fewer components, or pass more rows."
            )
