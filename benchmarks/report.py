# SPDX-License-Identifier: BSD-3-Clause
"""What the documentation shows of the results: README's figures, and the tables and plots of docs/performance.md."""

from __future__ import annotations

from pathlib import Path

from . import plots, targets
from .results import Row, duration, read

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
FIGURES = {  # README's: (workload, case, our way in)
    ("program", "150 epochs of 80 × 1 in batches of 16", "fit"): "`fit`: 150 epochs of 80 rows in batches of 16",
    ("tiny", "32 × 8", "TrainStep"): "one step on 32 rows of 8 features",
    ("large", "4,194,304 × 64", ""): "one step on 4,194,304 rows of 64 features",
}
ALT = "left: share of the read bandwidth over features; right: speed-up over eager PyTorch over rows"
PEERS = ("eager", "compiled", "by hand", "NumPy", "numba", "JAX", "scikit-learn")
LOSES = 1.05  # a peer that is so many times as fast as ours is named
WORK = {  # what a case of a workload is, where its name alone does not say it
    "cache": "{}, in cache, one thread",
    "loss": "{}, loss and `backward()`",
    "launch": "{}",
    "processes": "{}, two processes under DistributedDataParallel",
    "stream": "{}, from Parquet in blocks",
}
LEFT_OUT = ("sizes", "bits", "constants", "order", "memory", "estimators", "groups", "sweep")
MANY_PEERS = ("one by one", "bmm by hand", "by hand", "vmap", "JAX vmap", "batched lstsq", "scikit-learn")
ESTIMATORS = "scikit-learn "  # before the name of an estimator

Case = targets.Case


def write(paths: list[Path], root: Path) -> None:
    """Write the sections between the markers of README.md and docs/performance.md, and the plots beside the latter."""
    machines = _machines(read(paths))
    sections, plotted = [], set()
    for rows in machines:
        device = rows[0]["device"]
        plot = root / "docs" / f"how_fast_{device}.png"
        has_plot = device not in plotted and plots.draw(rows, plot)
        plotted.add(device)
        sections.append(section(rows) + (f"\n\n![{ALT}]({plot.name})" if has_plot else ""))
        if table := estimators(targets.cases(rows)):
            plot = root / "docs" / "estimators.png"
            plots.draw_estimators(rows, plot)
            sections.append(f"{table}\n\n![speed-up over each estimator of scikit-learn, over rows]({plot.name})")
        if table := many(targets.cases(rows)):
            plot = root / "docs" / "many.png"
            plots.draw_many(rows, plot)
            sections.append(f"{table}\n\n![times as fast as each peer, over the number of problems]({plot.name})")
    _fill(root / "docs" / "performance.md", sections)
    _fill(root / "README.md", [figures(machines[0]), f"![{ALT}](docs/how_fast_{machines[0][0]['device']}.png)"])


def _fill(page: Path, parts: list[str]) -> None:
    """Replace what stands between the markers of a page."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{page}: has no line {BEGIN} with a line {END} after it")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}{after}")


def figures(rows: list[Row]) -> str:
    """README's table: three cases, beside eager PyTorch."""
    cases = {(_first(case)["workload"], _first(case)["case"]): case for case in targets.cases(rows)}
    machine = f"{rows[0]['machine']}, {max(int(row['threads']) for row in rows)} threads"
    lines = [[machine, "linreg_ext", "plain PyTorch", "speed-up"], [":--", "--:", "--:", "--:"]]
    for (workload, name, way), words in FIGURES.items():
        case = cases.get((workload, name), {})
        ours, eager = case.get(f"linreg_ext {way}".strip()), case.get("eager")
        if ours and eager:
            gain = _gain(_seconds(eager) / _seconds(ours))
            lines.append([words, duration(_seconds(ours)), duration(_seconds(eager)), gain])
    return _markdown(lines)


def section(rows: list[Row]) -> str:
    """Machine, table, where it loses, memory."""
    cases = targets.cases(rows)
    timed = [case for case in cases if any(row["seconds"] and row["role"] == "ours" for row in case.values())]
    shown = [case for case in timed if _first(case)["workload"] not in LEFT_OUT]
    return "\n\n".join(filter(None, (_machine(rows), _table(shown), _losses(shown), _memory(cases))))


def estimators(cases: list[Case]) -> str:
    """A line for each number of rows: the time of `LinearRegressor`, and its speed-up over each estimator."""
    found: dict[tuple[int, int], dict[str, str]] = {}
    peers: list[str] = []
    for case in cases:
        ours = next((row for row in case.values() if row["role"] == "ours"), None)
        if ours is None or ours["workload"] != "estimators":
            continue
        name = ours["case"].partition(":")[0]
        theirs = case.get(ESTIMATORS + name)
        gain = f", {_gain(_seconds(theirs) / _seconds(ours))}" if theirs else ""
        peers += [name] * (name not in peers)
        found.setdefault((int(ours["n"]), int(ours["d"])), {})[name] = duration(_seconds(ours)) + gain
    if not found:
        return ""
    lines = [["rows × features", *peers], [":--", *["--:"] * len(peers)]]
    lines += [[f"{n:,} × {d}", *(of.get(peer, "") for peer in peers)] for (n, d), of in sorted(found.items())]
    about = "Times of `LinearRegressor.fit` in float64, and its speed-up over the estimator with the same objective:"
    return f"### scikit-learn's estimators\n\n{about}\n\n{_markdown(lines)}"


def many(cases: list[Case]) -> str:
    """A line for each way through many problems: its time, and its speed-up over each peer."""
    cases = [case for case in cases if _first(case)["workload"] in ("groups", "sweep")]
    peers = [peer for peer in MANY_PEERS if any(peer in case for case in cases)]
    lines = [["", "linreg_ext", *(f"vs {peer}" for peer in peers)], [":--", *["--:"] * (1 + len(peers))]]
    for case in cases:
        for row in case.values():
            if row["role"] == "ours" and row["seconds"]:
                gains = [_gain(_seconds(case[peer]) / _seconds(row)) if peer in case else "" for peer in peers]
                lines.append([_label(row), duration(_seconds(row)), *gains])
    return f"### Many problems at once\n\n{_markdown(lines)}" if lines[2:] else ""


def _machines(rows: list[Row]) -> list[list[Row]]:
    """The rows of each machine under its widest instruction set: CPUs first, and first the one with the most rows."""
    widths = {"DEFAULT": 0, "AVX2": 1, "AVX512": 2}
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["device"], row["machine"]), []).append(row)
    widest = {key: max((row["isa"] for row in all_), key=lambda isa: widths.get(isa, 3)) for key, all_ in found.items()}
    machines = [[row for row in found[key] if row["isa"] == widest[key]] for key in sorted(found)]
    return sorted(machines, key=lambda rows: (rows[0]["device"], -len(rows)))


def _machine(rows: list[Row]) -> str:
    row = max(rows, key=lambda row: int(row["threads"]))
    about = f"## {row['machine']}\n\nPython {row['python']}, torch {row['torch']}; "
    if row["device"] == "cuda":
        return (
            f"{about}driver {row['driver']}. Times are of the GPU, from replays of captured graphs (JAX: from Python)."
        )
    return f"{about}{row['isa']}, {row['threads']} threads. float32 unless named."


def _table(cases: list[Case]) -> str:
    """A line for each way in: its time, its share of the read bandwidth, how often as fast as each peer it is."""
    peers = [peer for peer in PEERS if any(_peer(case, peer) for case in cases)]
    lines = [
        ["rows × features (× targets)", "linreg_ext", "of BWread", *(f"vs {peer}" for peer in peers)],
        [":--", *["--:"] * (2 + len(peers))],
    ]
    for case in cases:
        for row in case.values():
            if row["role"] != "ours" or not row["seconds"]:
                continue
            share = f"{float(row['of_bwread']):.2f}" if row["of_bwread"] and int(row["n"]) > 1000 else ""
            times = [_peer(case, peer) for peer in peers]
            gains = [_gain(float(other["seconds"]) / float(row["seconds"])) if other else "" for other in times]
            lines.append([_label(row), duration(float(row["seconds"])), share, *gains])
    return _markdown(lines)


def _losses(cases: list[Case]) -> str:
    """Where a peer is faster than the fastest way in by more than 5 %."""
    lines = []
    for case in cases:
        best = min((row for row in case.values() if row["role"] == "ours" and row["seconds"]), key=_seconds)
        faster = [row for row in case.values() if row["role"] == "peer" and _seconds(row) * LOSES < _seconds(best)]
        for row in sorted(faster, key=_seconds)[:1]:
            ratio = _seconds(best) / _seconds(row)
            gain = f"{_gain(ratio)} as fast ({duration(_seconds(row))})"
            lines.append(f"{_label(best)}: {row['variant']} is {gain}")
    if not lines:
        return "No peer is more than 5 % faster than the fastest way in."
    return "**Where a peer is more than 5 % faster** than even our fastest call:\n\n" + "\n".join(
        f"- {line}" for line in lines
    )


def _memory(cases: list[Case]) -> str:
    """How much the process grows, beside eager."""
    lines = []
    for case in cases:
        if _first(case)["workload"] != "memory":
            continue
        mine = next((row for row in case.values() if row["role"] == "ours"), None)
        if mine:
            what = {"C10": "loss and `backward()` on ", "C14": "`lstsq` of "}.get(mine["id"], "")
            other = f" (eager: {int(case['eager']['memory_bytes']) / 1e6:,.0f} MB)" if "eager" in case else ""
            lines.append(f"- {what}{mine['case']}: {int(mine['memory_bytes']) / 1e6:,.0f} MB{other}")
    return "\n".join(["**Memory** beyond the data:\n", *lines]) if lines else ""


def _label(row: Row) -> str:
    name = WORK.get(row["workload"], "{}").format(row["case"])
    name += f", {row['dtype']}" if row["dtype"] not in ("", "float32") else ""
    way = row["variant"].removeprefix("linreg_ext").strip()
    return f"{name}, `{way}`" if way and row["workload"] not in ("loss", "cache") else name


def _peer(case: Case, name: str) -> Row | None:
    """The fastest of a peer's ways."""
    ways = [row for row in case.values() if row["role"] == "peer" and row["variant"].startswith(name)]
    return min(ways, key=_seconds, default=None)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _gain(ratio: float) -> str:
    text = f"{ratio:,.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×" if ratio >= 2 else f"{ratio:.2f}×"
    return f"**{text}**" if ratio * LOSES < 1 else text


def _seconds(row: Row) -> float:
    return float(row["seconds"])


def _first(case: Case) -> Row:
    return next(iter(case.values()))
