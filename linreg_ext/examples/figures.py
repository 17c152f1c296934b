# SPDX-License-Identifier: BSD-3-Clause
"""What a program leaves behind, and how its figures are held against the expected ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..training import TrainStep

Numbers = Tensor | Iterable[float] | float

# Two runs that are the same but for rounding agree in their weights to these relative differences.
WEIGHT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure, what it should be, and what the two runs gave."""

    figure: str
    expected: str
    eager: str
    fused: str
    ok: bool


@dataclass(frozen=True)
class Run:
    """What a training run leaves behind.

    Attributes:
        weights: the final parameters by name.
        losses: [steps], each of before its update.
        optimizer: the optimizer's state_dict; None for a program that updates by hand.
        level: `TrainStep.explain()`; None where no TrainStep took part.
        validation: [epochs], the validation losses; empty without validation data.
        generator: the state of torch's random generator right after the run.
    """

    weights: dict[str, Tensor]
    losses: Tensor
    optimizer: dict[str, Any] | None
    level: str | None
    validation: Tensor
    generator: Tensor = field(default_factory=torch.get_rng_state)

    @classmethod
    def of(
        cls,
        weights: nn.Module | dict[str, Tensor],
        losses: Numbers,
        optimizer: torch.optim.Optimizer | None = None,
        step: TrainStep | None = None,
        validation: Numbers = (),
    ) -> Run:
        """The run that has just ended."""
        named = weights.state_dict() if isinstance(weights, nn.Module) else weights
        return cls(
            weights={name: tensor.detach().cpu().clone() for name, tensor in named.items()},
            losses=_column(losses),
            optimizer=None if optimizer is None else optimizer.state_dict(),
            level=None if step is None else step.explain(),
            validation=_column(validation),
        )


def printed(figure: str, expected: str, eager: Numbers, fused: Numbers, *, rtol: float = 0.0) -> Row:
    """Numbers that must print as `expected` does: within half a unit of each last digit, and `rtol` more."""
    words = expected.split()
    wanted = _column([float(word) for word in words])
    allowed = _column([0.5 * 10.0 ** -len(word.partition(".")[2]) for word in words]) + rtol * wanted.abs()
    return Row(figure, expected, *_compared(expected, wanted, allowed, eager, fused))


def near(
    figure: str,
    expected: str | Numbers,
    eager: Numbers,
    fused: Numbers,
    *,
    rtol: float = 0.0,
    atol: Numbers = 0.0,
) -> Row:
    """Numbers that must be within ``atol + rtol * |expected|`` of `expected`, given as text or computed."""
    wanted = _column([float(word) for word in expected.split()] if isinstance(expected, str) else expected)
    text = expected if isinstance(expected, str) else " ".join(f"{value:.4f}" for value in wanted.tolist())
    allowed = _column(atol) + rtol * wanted.abs()
    return Row(figure, "~ " + text, *_compared(text, wanted, allowed, eager, fused))


def at_most(figure: str, limit: float, eager: float, fused: float) -> Row:
    """Numbers that must not exceed `limit`."""
    return Row(figure, f"<= {limit:.0e}", f"{eager:.1e}", f"{fused:.1e}", eager <= limit and fused <= limit)


def same(figure: str, expected: object, eager: object, fused: object) -> Row:
    """Anything else that both runs must give exactly."""
    return Row(figure, str(expected), str(eager), str(fused), eager == expected and fused == expected)


def contract(program: str, pairs: dict[str, tuple[Run, Run]]) -> list[Row]:
    """What every eager run and its fused twin have in common; each row covers all pairs, naming the worst."""
    rows = []
    for dtype, tolerance in WEIGHT_TOLERANCE.items():
        of_dtype = {name: pair for name, pair in pairs.items() if next(iter(pair[0].weights.values())).dtype == dtype}
        if of_dtype:
            word = str(dtype).removeprefix("torch.")
            for title, measure in (("weights", _weight_difference), ("losses", _loss_difference)):
                differences = {name: measure(*pair) for name, pair in of_dtype.items()}
                worst = max(differences, key=differences.__getitem__)
                rows.append(
                    Row(
                        f"{program} {title}, fused against eager, {word}",
                        f"<= {tolerance:.0e}",
                        "",
                        f"{differences[worst]:.1e} ({worst})",
                        all(difference <= tolerance for difference in differences.values()),
                    )
                )
    for title, agree in (("optimizer.state_dict()", _same_optimizer), ("random generator", _same_generator)):
        differing = [name for name, pair in pairs.items() if not agree(*pair)]
        got = "differs (" + ", ".join(differing) + ")" if differing else "equal"
        rows.append(Row(f"{program} {title} afterwards", "equal", "", got, not differing))
    levels = [fused.level for _, fused in pairs.values() if fused.level is not None]
    slower = [level for level in levels if not level.startswith("fused")]
    if levels:
        count = f"{len(levels) - len(slower)} of {len(levels)}"
        every = f"{len(levels)} of {len(levels)}"
        rows.append(Row(f"{program} train steps at level fused", every, "", count, not slower))
    return rows


def _weight_difference(eager: Run, fused: Run) -> float:
    """The relative difference of all parameters as one vector; inf when names or shapes differ.

    One vector, because training couples them: the rounding of a large slope moves a small intercept.
    """
    shapes = [{name: w.shape for name, w in run.weights.items()} for run in (eager, fused)]
    if list(shapes[0].items()) != list(shapes[1].items()):
        return math.inf
    ours, theirs = (torch.cat([w.flatten() for w in run.weights.values()]) for run in (fused, eager))
    return _worst([(ours - theirs).norm() / theirs.norm()])


def _loss_difference(eager: Run, fused: Run) -> float:
    """The largest difference of two loss histories, in units of what rounding may do to them.

    Predictions that agree to a relative ε differ by about ε times the size of the targets, which is that of
    the first residuals, √first. A mean square then moves by at most 2ε √loss √first, and a mean of absolute
    values by less than ε times its first value. When the loss has become small, that is more than ε of it.
    """
    worst = []
    for ours, theirs in ((fused.losses, eager.losses), (fused.validation, eager.validation)):
        if len(ours) != len(theirs):
            return math.inf
        if len(theirs):
            worst.append(((ours - theirs).abs() / (2 * (theirs * theirs.max()).sqrt())).max())
    return _worst(worst)


def _worst(differences: list[Tensor]) -> float:
    """The largest of 0-dim tensors; inf when one of them is nan."""
    worst = float(torch.stack(differences).max())  # torch's maximum, unlike Python's, keeps a nan
    return math.inf if math.isnan(worst) else worst


def _same_optimizer(eager: Run, fused: Run) -> bool:
    """SGD without momentum, the only optimizer here, keeps no tensors: dictionaries compare as they are."""
    return fused.optimizer is None or eager.optimizer == fused.optimizer


def _same_generator(eager: Run, fused: Run) -> bool:
    return torch.equal(eager.generator, fused.generator)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    cells = [("figure", "expected", "eager", "fused", "ok")]
    cells += [(row.figure, row.expected, row.eager, row.fused, "yes" if row.ok else "OFF") for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    cells.insert(1, tuple("-" * width for width in (*widths, 3)))
    return "\n".join(
        f"{figure:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(rest, widths[1:], strict=True)) + f"  {ok}"
        for figure, *rest, ok in cells
    )


def _column(values: Numbers) -> Tensor:
    """Numbers, wherever they live, as one float64 vector on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().double().cpu().flatten()
    if isinstance(values, (int, float)):
        return torch.tensor([values], dtype=torch.float64)
    numbers = [value.item() if isinstance(value, Tensor) else value for value in values]
    return torch.tensor(numbers, dtype=torch.float64)


def _compared(text: str, wanted: Tensor, allowed: Tensor, eager: Numbers, fused: Numbers) -> tuple[str, str, bool]:
    """Both runs' numbers as text, and whether all are within `allowed` of the wanted ones."""
    eager, fused = _column(eager), _column(fused)
    ok = all(bool(((values - wanted).abs() <= allowed).all()) for values in (eager, fused))
    return _like(text, eager), _like(text, fused), ok


def _like(expected: str, values: Tensor) -> str:
    """The values with as many decimals as the words of `expected` have."""
    decimals = [len(word.partition(".")[2]) for word in expected.split()]
    return " ".join(f"{value:.{n}f}" for value, n in zip(values.tolist(), decimals, strict=True))
