"""When a run ends before its last round: after so much time, or when it gets no better."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from coordinator.store.round_report import RoundReport


@dataclass(slots=True)
class StopRule:
    """Follows the closed rounds of a run. It decides on what metrics.csv holds, so that a resumed run decides the same.

    Args:
        stop_after_s: seconds of closed rounds after which no other is opened; 0 for no limit.
        patience: evaluations in a row that were no better than the best before them, after which no other round is
            opened; 0 for no limit. What counts is the server's accuracy, mean over devices, each on its own held-out
            samples.
    """

    stop_after_s: float = 0.0
    patience: int = 0
    _spent_s: float = 0.0
    _best: float = -1.0
    _best_round: int = 0
    _n_no_better: int = 0

    def read(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Take in the closed rounds that metrics.csv has."""
        for round_, of_round in groupby(rows, key=lambda row: int(row["round"])):
            held = list(of_round)
            accuracies = [float(row["server_accuracy"]) for row in held if row["server_accuracy"]]
            self._take(round_, float(held[0]["seconds"]), accuracies)

    def take(self, report: RoundReport) -> None:
        """Take in a round that was just closed."""
        accuracies = [d.server_accuracy for d in report.devices if d.server_accuracy is not None]
        self._take(report.round, round(report.seconds, 3), [round(accuracy, 4) for accuracy in accuracies])

    @property
    def reason(self) -> str:
        """Why no other round is opened; empty where nothing speaks against one."""
        if self.stop_after_s and self._spent_s >= self.stop_after_s:
            return f"{self._spent_s:.1f} s of rounds are enough (run.stop_after_s = {self.stop_after_s:g})"
        if self.patience and self._n_no_better >= self.patience:
            return f"no evaluation was better than that of round {self._best_round} (run.patience = {self.patience})"
        return ""

    def _take(self, round_: int, seconds: float, accuracies: Sequence[float]) -> None:
        self._spent_s += seconds
        if not accuracies:
            return
        accuracy = statistics.fmean(accuracies)
        if accuracy > self._best:
            self._best, self._best_round, self._n_no_better = accuracy, round_, 0
        else:
            self._n_no_better += 1
