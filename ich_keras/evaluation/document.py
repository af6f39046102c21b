"""What an evaluation is made of, and metrics.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ich_keras.evaluation import metrics, tables
from ich_keras.evaluation.predictions import Frames
from ich_keras.labels import ARMS, LABELS

Key = tuple[str, int | str]
"""A model and a fold."""


@dataclass
class Evaluation:
    """Everything the outputs are made of."""

    frames: Frames
    labels: pd.DataFrame
    positions: dict[Key, np.ndarray]
    results: dict[str, dict[int | str, dict[str, Any]]]
    document: dict[str, Any]
    fitted: dict[Key, dict[str, Any]] = field(default_factory=dict)

    def arrays(self, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """Truth bool `[n, 6]` and probabilities float64 `[n, 6]` of one model and fold, row by row."""
        truth = self.labels[list(LABELS)].to_numpy(bool)[self.positions[key]]
        return truth, self.frames[key[0]][key[1]][list(LABELS)].to_numpy(np.float64)

    def column(self, key: Key, name: str) -> np.ndarray:
        """`patient` or `study` of each row of one model and fold."""
        return self.labels[name].to_numpy(object)[self.positions[key]]

    @property
    def shown(self) -> Key:
        """The headline model's fold whose accuracy is nearest the mean: the one whose curves are drawn."""
        model = self.document["model"]
        folds = self.results[model]
        accuracy = {fold: r["averages"]["micro_any6"]["accuracy"] or 0.0 for fold, r in folds.items()}
        mean = sum(accuracy.values()) / len(accuracy)
        return model, min(accuracy, key=lambda fold: abs(accuracy[fold] - mean))


def headline(models: Mapping[str, Any]) -> str:
    """The model whose numbers stand on top: the hybrid, or else the last."""
    return "hybrid" if "hybrid" in models else list(models)[-1]


def build_document(
    evaluation: Evaluation, test_set: str | None, context: Mapping[str, Any]
) -> dict[str, Any]:
    """metrics.json: the headline model's mean over folds on top, then every model and fold."""
    names = list(evaluation.results)
    models: dict[str, Any] = {}
    for name, folds in evaluation.results.items():
        arms = arms_of(name, names)
        models[name] = {
            "title": tables.model_title(name, names),
            "in_paper": all(ARMS[arm].in_paper for arm in arms) if arms else None,
            "folds": {str(fold): result for fold, result in folds.items()},
            "mean": metrics.mean_over_folds(list(folds.values())),
        }
    top = headline(models)
    labels = evaluation.labels
    return {
        "model": top,
        "title": models[top]["title"],
        "test_set": test_set,
        "synthetic": bool(context.get("synthetic", False)),
        "patients": len(set(labels["patient"]) - {""}),
        **models[top]["mean"],
        "models": models,
        "context": dict(context),
    }


def arms_of(name: str, models: Sequence[str]) -> list[str]:
    """The registered arms a model is made of; none where that is not known."""
    if name in ARMS:
        return [name]
    return [model for model in models if model in ARMS] if name == "hybrid" else []
