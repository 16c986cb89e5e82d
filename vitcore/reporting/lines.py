"""An evaluation's details as a person reads them at the terminal."""

from __future__ import annotations

from vitcore.reporting.numbers import Details

_SHOWN = 5


def lines(details: Details) -> list[str]:
    """The mean over classes, the calibration error, the worst classes and the most frequent confusions."""
    error = details.calibration_error
    said = "not known" if error is None else f"{error:.2f} %"
    out = [
        f"mean over classes {details.mean_class_accuracy:.2f} %, calibration error {said} (ECE, {len(details.bins)} bins)"
    ]
    if undecided := int(details.undecided.sum()):
        out.append(f"{undecided} image(s) of which no single class scored highest count as wrong")
    if worst := details.worst_classes(_SHOWN):
        out.append("worst classes:")
        out += [f"  {score.accuracy:6.2f} %  {score.correct} of {score.images}  {score.name}" for score in worst]
    if confusions := details.confusions(_SHOWN):
        out.append("most frequent confusions:")
        out += [f"  {n:6d} x {true} taken for {taken}" for n, true, taken in confusions]
    return out
