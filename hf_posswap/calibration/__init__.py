"""Start a scheme from what the old weights know: fit its parameters to the preference of each head for each distance.

For each layer, the stock model's scores are compared with the swapped model's, whose layers below are fitted already.
In each row (query) the difference is known up to a constant, which softmax does not see. The curve is the bias by
distance that explains the differences best, by weighted least squares; a pair weighs by how much attention it gets from
the stock model, from the swapped one, and from nobody in particular (a third each). A scheme whose bias reads the query
fits the differences query by query instead. Deterministic, without labels.
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
