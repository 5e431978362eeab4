"""Whether two implementations compute the same: only then are their times compared."""

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = 5e-3  # largest relative difference of outputs that counts as the same: float32, through an unroll
TF32_TOLERANCE = 3e-2  # the same on GPUs, whose products keep ten bits
LARGEST_ROUNDING = 0.1  # effect of rounding beyond which outputs cannot be compared


def difference(outputs: dict, reference: dict) -> tuple[float, str]:
    """The largest relative difference `|a - b| / |b|` (Euclidean norms) of two dicts of arrays or tensors, and its name.

    NaN counts as larger than all.

    Raises:
        ValueError: their names differ.
    """
    if outputs.keys() != reference.keys():
        raise ValueError(f"not the same outputs: {sorted(outputs)} and {sorted(reference)}.")

    def relative(name):
        a, b = (np.asarray(x, np.float64).ravel() for x in (outputs[name], reference[name]))
        distance, size = np.linalg.norm(a - b), np.linalg.norm(b)
        return float(distance / size if size > 0 else distance)

    return max(((relative(name), name) for name in outputs), key=lambda entry: (np.isnan(entry[0]), entry))


def outputs_match(measure: str, name: str, outputs: dict, reference: dict, rounding: float) -> tuple[bool, str]:
    """Whether outputs are the same within `TOLERANCE` (on GPUs `TF32_TOLERANCE`), or three times the effect of rounding.

    Outputs that rounding moves by more than a tenth cannot be compared.

    Args:
        measure: what is computed, for the sentence.
        name: of the reference, for the sentence.
        outputs: of mdw_jax, by name.
        reference: of the reference, by name.
        rounding: `difference` of the outputs to those from inputs that are rounded differently.

    Returns:
        Whether they match, and a sentence that says so.
    """
    largest, where = difference(outputs, reference)
    tolerance = TF32_TOLERANCE if jax.default_backend() == "gpu" else TOLERANCE
    if rounding > LARGEST_ROUNDING and not largest <= tolerance:
        return False, (f"{measure} and {name} cannot be compared: rounding alone changes outputs by {rounding:.1g}, so "
                       "there is no ratio; try smaller distill.inner_lr_image, distill.inner_lr_text or experts.lr.")
    if largest <= max(tolerance, 3 * rounding):
        return True, (f"{measure} and {name} match: they differ by {largest:.1g} at most ({where}), and rounding changes "
                      f"outputs by {rounding:.1g}.")
    return False, f"{measure} and {name} do not match: they differ by {largest:.1g} ({where}), so there is no ratio."


def rounded_differently(tree):
    """Every float32 of a pytree as it might have been rounded otherwise."""
    generator = np.random.default_rng(0)

    def perturb(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x * (1 + 1e-7 * jnp.asarray(generator.normal(size=x.shape), x.dtype))

    return jax.tree.map(perturb, tree)
