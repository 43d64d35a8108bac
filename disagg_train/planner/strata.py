"""Entrain's first level: every microbatch gets one sample of each stratum."""

import numpy as np

from disagg_train.planner.sample_costs import Floats, Ints


def stratified(weights_SR: Floats, num_microbatches: int) -> Ints:
    """Return the microbatch of each sample.

    Samples are sorted by the resource that they ask most of, and cut into strata of as many
    samples as there are microbatches. The heaviest of a stratum goes to the microbatch that is
    loaded least, and so on. With several resources that is the load that the stratum would add
    to; resources of little weight break ties.

    Args:
        weights_SR: seconds of each sample for each of R resources.
        num_microbatches: of the step.
    """
    num_samples = len(weights_SR)
    if num_microbatches == 1:
        return np.zeros(num_samples, np.int64)
    order = np.lexsort((-weights_SR.sum(axis=1), -weights_SR.max(axis=1)))
    at_S = np.empty(num_samples, np.int64)
    loads_MR = np.zeros((num_microbatches, weights_SR.shape[1]))
    for first in range(0, num_samples, num_microbatches):
        stratum = order[first : first + num_microbatches]
        wanted_R = weights_SR[stratum].sum(axis=0)
        heaviest_first = stratum[np.argsort(-(weights_SR[stratum] @ wanted_R), kind="stable")]
        lightest_first = np.argsort(loads_MR @ wanted_R, kind="stable")[: len(stratum)]
        at_S[heaviest_first] = lightest_first
        loads_MR[lightest_first] += weights_SR[heaviest_first]
    return at_S
