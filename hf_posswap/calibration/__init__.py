"""Calibration: fit a scheme's parameters to the stock model's attention scores.

For each layer, the stock model's scores are compared with the scores of the swapped model, whose lower layers are
already fitted. In each row (query) the difference matters only up to a constant, which softmax removes. The curve is
the bias by distance that fits the differences best, by weighted least squares. The weight of a pair of query and key is
the mean of its attention in the stock model, its attention in the swapped model and a uniform weight. A scheme whose
bias depends on the query is fitted to the differences query by query instead. Calibration is deterministic and needs no
labels.
"""

from hf_posswap.calibration.fitting import CalibrationError, FitSettings, fit_curve, sum_by_query
from hf_posswap.calibration.measuring import Yardstick, mean_loss
from hf_posswap.calibration.run import (
    CalibrationReport,
    CalibrationWarning,
    calibrate,
    calibration_refusal,
    rewrites_weights,
)
from hf_posswap.calibration.streams import QUERY_STEP, Projections, compared_queries
from hf_posswap.calibration.texts import document_windows, text_windows, tokens_to_read

__all__ = [
    "QUERY_STEP",
    "CalibrationError",
    "CalibrationReport",
    "CalibrationWarning",
    "FitSettings",
    "Projections",
    "Yardstick",
    "calibrate",
    "calibration_refusal",
    "compared_queries",
    "document_windows",
    "fit_curve",
    "mean_loss",
    "rewrites_weights",
    "sum_by_query",
    "text_windows",
    "tokens_to_read",
]
