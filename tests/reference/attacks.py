"""APGD as Algorithm 1 of Croce and Hein 2020 writes it, for one example, in plain NumPy and float64."""

import numpy as np


def project(x_adv, x, epsilon, norm):
    delta = x_adv - x
    if norm == "linf":
        delta = np.clip(delta, -epsilon, epsilon)
    elif np.sqrt((delta**2).sum()) > epsilon:
        delta = delta * epsilon / np.sqrt((delta**2).sum())
    return np.clip(x + delta, 0, 1)


def checkpoints(num_steps):
    """w_j = the step at which p_j of the steps are done, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06),
    in whole steps: windows of floor(0.22 n), then each floor(0.03 n) shorter, never under floor(0.06 n)."""
    window, at, found = int(0.22 * num_steps), 0, []
    while at + window <= num_steps:
        at += window
        found.append(at)
        window = max(window - int(0.03 * num_steps), int(0.06 * num_steps))
    return found


def auto_pgd(loss_and_gradient, x, start, epsilon, norm, num_steps, rho=0.75, momentum=0.75):
    """The best point found, its loss, and the step sizes used."""

    def direction(gradient):
        return np.sign(gradient) if norm == "linf" else gradient / np.sqrt((gradient**2).sum())

    step_size, previous, current = 2 * epsilon, start, start
    loss, gradient = loss_and_gradient(current)
    best, best_loss, best_gradient = current, loss, gradient
    raised, window_start, checked_loss, halved, sizes = 0, 0, loss, True, []
    for step in range(num_steps):
        z = project(current + step_size * direction(gradient), x, epsilon, norm)
        if step == 0:
            following = z
        else:
            following = project(
                current + momentum * (z - current) + (1 - momentum) * (current - previous), x, epsilon, norm
            )
        previous, current, last_loss = current, following, loss
        loss, gradient = loss_and_gradient(current)
        raised += loss > last_loss
        if loss > best_loss:
            best, best_loss, best_gradient = current, loss, gradient
        sizes.append(step_size)
        if step + 1 in checkpoints(num_steps):
            few = raised <= rho * (step + 1 - window_start)
            stuck = not halved and checked_loss >= best_loss
            halved = few or stuck
            if halved:
                step_size, current, gradient = step_size / 2, best, best_gradient
            raised, window_start, checked_loss = 0, step + 1, best_loss
    return best, best_loss, sizes
