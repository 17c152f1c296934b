# SPDX-License-Identifier: BSD-3-Clause
"""What README.md shows of the results: a table, where a peer is faster, memory, and plots."""

from __future__ import annotations

from pathlib import Path

from . import plots, targets
from .results import Row, duration, read

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
PEERS = ("eager", "compiled", "by hand", "NumPy", "numba", "JAX", "scikit-learn")
LOSES = 1.05  # a peer that is so many times as fast as ours is named
WORK = {  # what a case of a workload is, where its name alone does not say it
    "cache": "{}, in cache, one thread",
    "loss": "{}, loss and `backward()`",
    "launch": "{}",
}
LEFT_OUT = ("sizes", "bits", "constants", "order", "memory")

Case = targets.Case


def write(paths: list[Path], readme: Path, folder: Path) -> None:
    """Write the section between README's markers, and the plots into `folder`."""
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{readme}: has no line {BEGIN} with a line {END} after it")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for rows in _machines(read(paths)):
        device = rows[0]["device"]
        parts.append(section(rows))
        plot = folder / f"how_fast_{device}.png"
        if plots.draw(rows, plot):
            where = plot.resolve().relative_to(readme.resolve().parent) if _is_under(plot, readme) else plot
            parts.append(f"![share of the read bandwidth, and speed beside eager PyTorch]({where})")
    readme.write_text(f"{before}{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}{after}")


def section(rows: list[Row]) -> str:
    """Machine, table, where it loses, memory."""
    cases = targets.cases(rows)
    timed = [case for case in cases if any(row["seconds"] and row["role"] == "ours" for row in case.values())]
    shown = [case for case in timed if _first(case)["workload"] not in LEFT_OUT]
    return "\n\n".join(filter(None, (_machine(rows), _table(shown), _losses(shown), _memory(cases))))


def _machines(rows: list[Row]) -> list[list[Row]]:
    """The rows of each machine under its widest instruction set, CPUs first."""
    widths = {"DEFAULT": 0, "AVX2": 1, "AVX512": 2}
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["device"], row["machine"]), []).append(row)
    widest = {key: max((row["isa"] for row in all_), key=lambda isa: widths.get(isa, 3)) for key, all_ in found.items()}
    return [[row for row in found[key] if row["isa"] == widest[key]] for key in sorted(found)]


def _machine(rows: list[Row]) -> str:
    row = max(rows, key=lambda row: int(row["threads"]))
    if row["device"] == "cuda":
        return (
            f"**{row['machine']}**, driver {row['driver']}; Python {row['python']}, torch {row['torch']}. "
            "Times are of the GPU, from replays of captured graphs (JAX: from Python)."
        )
    return (
        f"**{row['machine']}**, {row['isa']}, {row['threads']} threads; Python {row['python']}, torch {row['torch']}. "
        "float32 unless named."
    )


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
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _losses(cases: list[Case]) -> str:
    """Where a peer is faster than the fastest way in by more than 5 %."""
    lines = []
    for case in cases:
        best = min((row for row in case.values() if row["role"] == "ours" and row["seconds"]), key=_seconds)
        faster = [row for row in case.values() if row["role"] == "peer" and _seconds(row) * LOSES < _seconds(best)]
        for row in sorted(faster, key=_seconds)[:1]:
            ratio = _seconds(best) / _seconds(row)
            gain = f"{_gain(ratio)} as fast ({duration(_seconds(row))})"
            lines.append(f"{_label(best)}, where {row['variant']} is {gain}")
    if not lines:
        return "No peer is more than 5 % faster than the fastest way in."
    return f"**Where it loses** by its fastest way in, by more than 5 % to the fastest peer: {'; '.join(lines)}."


def _memory(cases: list[Case]) -> str:
    """How much the process grows, beside eager."""
    lines = []
    for case in cases:
        if _first(case)["workload"] != "memory":
            continue
        mine = next((row for row in case.values() if row["role"] == "ours"), None)
        if mine:
            what = "loss and `backward()` on " if mine["id"] else ""
            other = f"; eager: {int(case['eager']['memory_bytes']) / 1e6:,.0f} MB" if "eager" in case else ""
            lines.append(f"{what}{mine['case']}: {int(mine['memory_bytes']) / 1e6:,.0f} MB{other}")
    return f"Memory beyond the data: {'. '.join(lines)}." if lines else ""


def _label(row: Row) -> str:
    name = WORK.get(row["workload"], "{}").format(row["case"])
    name += f", {row['dtype']}" if row["dtype"] not in ("", "float32") else ""
    way = row["variant"].removeprefix("linreg_ext").strip()
    return f"{name}, `{way}`" if way and row["workload"] not in ("loss", "cache") else name


def _peer(case: Case, name: str) -> Row | None:
    """The fastest of a peer's ways."""
    ways = [row for row in case.values() if row["role"] == "peer" and row["variant"].startswith(name)]
    return min(ways, key=_seconds, default=None)


def _gain(ratio: float) -> str:
    text = f"{ratio:,.0f}×" if ratio >= 9.95 else f"{ratio:.1f}×" if ratio >= 2 else f"{ratio:.2f}×"
    return f"**{text}**" if ratio * LOSES < 1 else text


def _seconds(row: Row) -> float:
    return float(row["seconds"])


def _first(case: Case) -> Row:
    return next(iter(case.values()))


def _is_under(plot: Path, readme: Path) -> bool:
    return readme.resolve().parent in plot.resolve().parents
