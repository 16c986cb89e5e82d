"""A reliability diagram and a confusion matrix as pictures, by matplotlib where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitcore.reporting.numbers import Details

RELIABILITY, CONFUSION = "reliability.png", "confusion.png"
# More names than this do not fit beside a matrix.
_NAMED = 40


def draw(folder: Path, details: Details) -> list[str]:
    """Draw both into the folder; the names of what was drawn, none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    # Figures of their own and no pyplot: that would choose a window system, and keep them for ever.
    for name, paint in ((RELIABILITY, _reliability), (CONFUSION, _confusion)):
        figure = Figure(figsize=(6, 6), layout="constrained")
        paint(figure, details)
        figure.savefig(folder / name, dpi=150)
    return [RELIABILITY, CONFUSION]


def _reliability(figure: Any, details: Details) -> None:
    """Accuracy over confidence, a bar a bin; on the diagonal a model is as often right as it is sure."""
    axes = figure.add_subplot()
    width = 100 / len(details.bins)
    for b in details.bins:
        if b.accuracy is not None:
            axes.bar(b.above, b.accuracy, width, align="edge", color="tab:blue", edgecolor="white")
            axes.plot([b.confidence], [b.accuracy], "k.")
    axes.plot([0, 100], [0, 100], "--", color="grey")
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)", ylabel="accuracy (%)")
    error = details.calibration_error
    axes.set_title("no confidences" if error is None else f"expected calibration error {error:.2f} %")


def _confusion(figure: Any, details: Details) -> None:
    """Each line is a class, its colours the shares of its images that were taken for the columns' classes."""
    axes = figure.add_subplot()
    images = details.confusion.sum(1, keepdims=True) + details.undecided[:, None]
    shares = 100 * details.confusion / images.clip(min=1)
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=100, cmap="viridis"), label="% of the class", shrink=0.8)
    axes.set(xlabel="taken for", ylabel="class")
    if len(details.class_names) <= _NAMED:
        places, names = range(len(details.class_names)), [_plain(name) for name in details.class_names]
        axes.set_xticks(places, names, rotation=90)
        axes.set_yticks(places, names)


def _plain(name: str) -> str:
    """A name that matplotlib shows as it is, and not as a formula."""
    return name.replace("$", r"\$")
