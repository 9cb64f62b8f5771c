"""Timing that a busy machine does not spoil: what is compared runs in turn, and rounds are compared pair by pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def paired(
    ways: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Processor seconds of each way in each of the rounds; in a round all run once, one after the other.

    Every other round runs them in reverse, since who comes first pays for memory that the next one finds at hand.
    With several threads, give `time.perf_counter`: processor seconds add up over threads.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds):
        for name, way in list(ways.items())[:: 1 - 2 * (index % 2)]:
            started = clock()
            way()
            seconds[name].append(clock() - started)
    return seconds


def ratio(times: list[float], others: list[float]) -> float:
    """How many times as long the first take as the others: the median over rounds."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))
