"""The best assignment of a few samples, by HiGHS: encoders first, the LLM within a span."""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from disagg_train.planner.sample_costs import Floats


def least_seconds(
    encoder_S: Floats, language_S: Floats, num_microbatches: int, span: int, time_limit_s: float
) -> float:
    """Return the least sum of the slowest encoder microbatch and the slowest LLM microbatch.

    Columns are x[i, j], the encoder's choices, then y[i, k], the LLM's, then both maxima.
    """
    S, M = len(encoder_S), num_microbatches
    N = 2 * S * M + 2
    each, positions = np.eye(S), np.arange(M, dtype=float)
    once = np.kron(each, np.ones(M))
    where = np.kron(each, positions)
    nothing = np.zeros((S, 2))
    rows = [
        (np.hstack([once, np.zeros_like(once), nothing]), 1, 1),
        (np.hstack([np.zeros_like(once), once, nothing]), 1, 1),
        (np.hstack([-where, where, nothing]), 0, span),
    ]
    for of_llm, weights_S in enumerate((encoder_S, language_S)):
        loads = np.zeros((M, N))
        for k in range(M):
            loads[k, of_llm * S * M + k : (of_llm + 1) * S * M : M] = weights_S
            loads[k, N - 2 + of_llm] = -1.0
        rows.append((loads, -np.inf, 0))
    total = np.zeros(N)
    total[-2:] = 1.0
    found = milp(
        total,
        constraints=[LinearConstraint(*each) for each in rows],
        integrality=np.r_[np.ones(N - 2), 0, 0],
        bounds=Bounds(0, np.r_[np.ones(N - 2), np.inf, np.inf]),
        options={"time_limit": time_limit_s, "mip_rel_gap": 1e-3},
    )
    return float(found.mip_dual_bound)
