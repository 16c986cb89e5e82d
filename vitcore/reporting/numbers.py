"""From the accumulators of an evaluation to its numbers; all shares are in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitcore.errors import VitcoreError

Counts = npt.NDArray[np.int64]

# A confusion matrix of n classes is 4 n^2 bytes on the device, and as many again while a batch is counted.
MOST_CLASSES = 8192


def scores(report: Mapping[str, Any], expected: int) -> dict[str, float]:
    """Accuracy and top-5 accuracy, right answers, images and mean loss. VitcoreError when no image was counted;
    `expected` is how many there should be."""
    total = round(report["eval_total"])
    if total == 0:
        raise VitcoreError(
            f"evaluation: none of {expected} images could be read; check the files of the evaluation split"
        )
    correct, correct5 = round(report["eval_correct"]), round(report["eval_correct5"])
    percent = {"accuracy": 100 * correct / total, "top5": 100 * correct5 / total}
    return {**percent, "correct": correct, "total": total, "loss": report["eval_loss"] / total}


def check_classes(classes: int) -> None:
    """Refuse (VitcoreError) more classes than are counted by class, before memory is taken for them."""
    if classes > MOST_CLASSES:
        raise VitcoreError(f"--report counts a matrix of {classes} x {classes} confusions, and at most {MOST_CLASSES} classes "
                           "are counted so; leave --report out")  # fmt: skip


@dataclass(frozen=True)
class ClassScore:
    """One class: its images, how many of them were taken for it, and how many images of any class were.

    accuracy: the share of its images that were right. precision: the share of right ones among those that were taken for
    it. None where there is nothing to divide by.
    """

    name: str
    images: int
    correct: int
    answered: int

    @property
    def accuracy(self) -> float | None:
        return 100 * self.correct / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        return 100 * self.correct / self.answered if self.answered else None


@dataclass(frozen=True)
class Bin:
    """The images whose confidence (largest probability) lies in (above, to], in percent: how many, their mean confidence
    and their accuracy; None where there are none."""

    above: float
    to: float
    images: int
    confidence: float | None
    accuracy: float | None

    @property
    def gap(self) -> float:
        """How far accuracy and confidence are apart."""
        return abs((self.accuracy or 0.0) - (self.confidence or 0.0))


@dataclass(frozen=True)
class Details:
    """What is known of an evaluation by class and by confidence.

    confusion: of shape (classes, classes), how many images of a class (line) were taken for a class (column). undecided:
    of each class, those of which no single class scored highest; they are wrong answers, and a sign of a model that is not
    trained or not finite.
    """

    class_names: tuple[str, ...]
    confusion: Counts
    undecided: Counts
    bins: tuple[Bin, ...]

    @classmethod
    def of(cls, report: Mapping[str, Any], class_names: Sequence[str]) -> Details:
        """From the accumulators that an evaluation with details has read."""
        counts = np.rint(np.array(report["eval_confusion"], dtype=np.float64)).astype(np.int64)
        return cls(tuple(class_names), counts[:, :-1], counts[:, -1], tuple(_bins(*report["eval_bins"])))

    @property
    def classes(self) -> list[ClassScore]:
        """Each class, in the data set's order."""
        images, answered = self.confusion.sum(1) + self.undecided, self.confusion.sum(0)
        columns = zip(images.tolist(), np.diagonal(self.confusion).tolist(), answered.tolist(), strict=True)
        return [ClassScore(name, *counts) for name, counts in zip(self.class_names, columns, strict=True)]

    @property
    def mean_class_accuracy(self) -> float:
        """The mean of the classes' accuracies, each class alike however many images it has; those without images left out.
        Also called balanced accuracy."""
        known = [score.accuracy for score in self.classes if score.accuracy is not None]
        return sum(known) / len(known)

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error: the mean over images of |accuracy - confidence| of their bin, with 15 equally
        wide bins ("On Calibration of Modern Neural Networks", Guo et al. 2017, arXiv 1706.04599, equation 3). None when no
        image has a confidence."""
        images = sum(b.images for b in self.bins)
        return sum(b.images * b.gap for b in self.bins) / images if images else None

    def worst_classes(self, most: int) -> list[ClassScore]:
        """The classes with images that are not all right, the lowest accuracy first."""
        wrong = [score for score in self.classes if score.correct < score.images]
        return sorted(wrong, key=lambda score: score.accuracy or 0.0)[:most]

    def confusions(self, most: int) -> list[tuple[int, str, str]]:
        """(images, their class, what they were taken for) of the most frequent mistakes."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        found = [(int(wrong.flat[i]), *divmod(int(i), len(wrong))) for i in order]
        return [(n, self.class_names[true], self.class_names[taken]) for n, true, taken in found if n]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; the confusion matrix is left out."""
        return {
            "mean_class_accuracy": self.mean_class_accuracy,
            "undecided": int(self.undecided.sum()),
            "calibration_error": self.calibration_error,
            "bins": [vars(b) for b in self.bins],
            "classes": [{**vars(c), "accuracy": c.accuracy, "precision": c.precision} for c in self.classes],
        }


def _bins(images: Sequence[float], confidences: Sequence[float], right: Sequence[float]) -> list[Bin]:
    made = []
    for i, (count, confidence, correct) in enumerate(zip(images, confidences, right, strict=True)):
        edges = 100 * i / len(images), 100 * (i + 1) / len(images)
        means = (100 * confidence / count, 100 * correct / count) if count else (None, None)
        made.append(Bin(*edges, round(count), *means))
    return made
