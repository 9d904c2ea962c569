"""The exact minimum of a linear function of a ReLU network over a box, as a mixed integer program in float64."""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


def affine_maps(functions, size):
    """Each function's matrix and bias, W x + b, from what it makes of the unit vectors; each reads the one before."""
    maps = []
    for function in functions:
        bias = function(np.zeros((1, size)))[0]
        maps.append(((function(np.eye(size)) - bias).T, bias))
        size = len(bias)
    return maps


def exact_minimum(maps, wanted, lower, upper, shortcut=None):
    """min <wanted, z> for z = W_k relu(... relu(W_1 x + b_1) ...) + b_k over lower <= x <= upper.

    Args:
        maps: (W_i, b_i) for i = 1..k.
        wanted: the function of the last map's values.
        lower: of x.
        upper: of x.
        shortcut: (i, j): map j reads the sum of what map i and map j - 1 give, after their ReLUs.

    Variables are x, and for each hidden layer its values z, h = relu(z) and an indicator d of z > 0:
    h >= z, h >= 0, h <= z - l (1 - d), h <= u d.
    """
    variables, sizes = 0, []

    def new(count):
        nonlocal variables
        sizes.append(count)
        variables += count
        return np.arange(variables - count, variables)

    low, high, whole, rows = [lower], [upper], [np.zeros(len(lower))], []
    read, l_read, u_read = [new(len(lower))], lower, upper
    hidden = []
    for index, (matrix, bias) in enumerate(maps):
        if shortcut and index == shortcut[1]:
            first, (l_first, u_first) = hidden[shortcut[0]]
            read, l_read, u_read = [*read, first], l_read + l_first, u_read + u_first
        if index == len(maps) - 1:
            break
        center, radius = (l_read + u_read) / 2, (u_read - l_read) / 2
        z_center, z_radius = matrix @ center + bias, np.abs(matrix) @ radius
        lowest, highest = z_center - z_radius, z_center + z_radius
        z, h, d = (new(len(bias)) for _ in range(3))
        low += [lowest, np.zeros(2 * len(bias))]
        high += [highest, np.maximum(highest, 0), np.ones(len(bias))]
        whole += [np.zeros(2 * len(bias)), np.ones(len(bias))]
        eye, zeros = np.eye(len(bias)), np.zeros(len(bias))
        rows.append(([(z, eye), *((part, -matrix) for part in read)], bias, bias))
        rows.append(([(h, eye), (z, -eye)], zeros, np.full(len(bias), np.inf)))
        rows.append(([(h, eye), (z, -eye), (d, -np.diag(lowest))], np.full(len(bias), -np.inf), -lowest))
        rows.append(([(h, eye), (d, -np.diag(np.maximum(highest, 0)))], np.full(len(bias), -np.inf), zeros))
        read, l_read, u_read = [h], np.maximum(lowest, 0), np.maximum(highest, 0)
        hidden.append((h, (l_read, u_read)))
    matrix, bias = maps[-1]
    cost = np.zeros(variables)
    for part in read:
        cost[part] += wanted @ matrix
    constraints = []
    for terms, least, most in rows:
        together = np.zeros((len(least), variables))
        for columns, values in terms:
            together[:, columns] += values
        constraints.append(LinearConstraint(together, least, most))
    solved = milp(
        cost,
        constraints=constraints,
        integrality=np.concatenate(whole),
        bounds=Bounds(np.concatenate(low), np.concatenate(high)),
        options={"mip_rel_gap": 1e-9},
    )
    assert solved.status == 0, solved.message
    return solved.fun + wanted @ bias
