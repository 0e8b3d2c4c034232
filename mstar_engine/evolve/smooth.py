"""A smooth curve over temperatures from paired measurements: what racing believes.

The value of a problem at an arm is the problem's own level, plus the curve at the arm's temperature, plus noise. The
levels are free, so problems compare arms and nothing else: an easy problem does not favour the arms that met it. The
curve is a Gaussian process: neighbouring temperatures do about the same, so each arm borrows from its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

AMPLITUDE, LENGTH, ROUGH, DRIFT = 0.08, 0.3, 0.01, 0.03
"""How the curve is expected to be: its standard deviation, the reach of likeness as a share of the range of
temperatures, what an arm may have to itself, and by how much the curve moves from one choice to the next."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What one choice measured about differences between `temperatures` [A]: `precision` [A, A] and `weighted` [A].

    Both are sums over problems; a constant added to all of a problem's values changes neither.
    """

    temperatures: np.ndarray
    precision: np.ndarray
    weighted: np.ndarray

    def plain(self) -> dict[str, Any]:
        """JSON's terms."""
        return {name: getattr(self, name).tolist() for name in self.__slots__}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Evidence:
        """From JSON's terms."""
        return cls(*(np.array(plain[name], np.float64) for name in cls.__slots__))


def gather(temperatures: np.ndarray, blocks: Sequence[tuple[np.ndarray, np.ndarray]]) -> Evidence:
    """The evidence of blocks: (indices of the arms into `temperatures` [a], values [problems, a]) each.

    The noise is what is left when every problem and, in each block, every arm has its own level; one more observation
    of variance 0.1 keeps it above 0.
    """
    centred = [(arms, values - values.mean(axis=1, keepdims=True)) for arms, values in blocks]
    left = sum(float(((values - values.mean(axis=0)) ** 2).sum()) for _, values in centred)
    freedom = sum((values.shape[0] - 1) * (values.shape[1] - 1) for _, values in centred)
    noise = (left + 0.1) / (freedom + 1)
    size = len(temperatures)
    precision, weighted = np.zeros((size, size)), np.zeros(size)
    for arms, values in centred:
        count, many = values.shape
        precision[np.ix_(arms, arms)] += count * (np.eye(many) - 1 / many) / noise
        weighted[arms] += values.sum(axis=0) / noise
    return Evidence(temperatures, precision, weighted)


@dataclass(frozen=True, slots=True, eq=False)
class Belief:
    """The curve at `temperatures` [A], up to a constant: mean [A] and covariance [A, A]."""

    temperatures: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    def behind(self, other: int | np.ndarray, best: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By how much arm `other` is below arm `best`, and the standard error of that."""
        c = self.covariance
        variance = c[other, other] + c[best, best] - 2 * c[other, best]
        return self.mean[best] - self.mean[other], np.sqrt(np.maximum(variance, 0.0))

    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the curve around its own average."""
        project = np.eye(len(self.mean)) - 1 / len(self.mean)
        return project @ self.mean, np.sqrt(np.maximum(np.diag(project @ self.covariance @ project), 0.0))


def believe(temperatures: np.ndarray, width: float, past: Sequence[Evidence]) -> Belief:
    """What `past`, oldest first, says of the curve now; what is older counts less, since the curve moves.

    `width` is that of the range of temperatures. The last piece of evidence is of the present curve.
    """
    union = np.unique(np.concatenate([temperatures, *(one.temperatures for one in past)]))
    likeness = np.exp(-0.5 * ((union[:, None] - union) / (LENGTH * width)) ** 2)
    mean, covariance = np.zeros(len(union)), AMPLITUDE**2 * likeness + ROUGH**2 * np.eye(len(union))
    for index, one in enumerate(past):
        if index:
            covariance = covariance + DRIFT**2 * likeness
        at = np.searchsorted(union, one.temperatures)
        known = np.linalg.inv(covariance)
        weighted, precision = known @ mean, known
        weighted[at] += one.weighted
        precision[np.ix_(at, at)] += one.precision
        covariance = np.linalg.inv(precision)
        covariance = (covariance + covariance.T) / 2
        mean = covariance @ weighted
    at = np.searchsorted(union, temperatures)
    return Belief(temperatures, mean[at], covariance[np.ix_(at, at)])
