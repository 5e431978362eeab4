"""The section of a report on the certificate: bounds alone, or what `mdw certify` measured."""

from pathlib import Path

from mdw_jax.errors import UserError
from mdw_jax.io.checksums import read_verified
from mdw_jax.io.contained import inside
from mdw_jax.io.files import parse_csv
from mdw_jax.reporting import figures, html
from mdw_jax.reporting.report_charts import distinct_experts
from mdw_jax.reporting.run_files import Run

# Measures of certificate.csv that a report shows, and their columns.
MEASURES = {"excess_bound_large_n": "cost of noise at most", "excess": "cost measured", "clean_risk": "clean risk",
            "upper_bound": "clean risk at most"}


def certificate(run: Run) -> str:
    """The measurements of `mdw certify` where they exist, otherwise the bounds (docs/method.md, section 3)."""
    path = run.path / "certificate.csv"
    return _measurements(run, path) if path.exists() else _bounds(run)


def _measurements(run: Run, path: Path) -> str:
    own, others = _tables(path)
    figure = inside(run.path, "figures/certificate.png")
    image = ""
    if figure.exists():
        words = "Bounds and measurements by noise rate, and the share of memorized pairs by epoch"
        image = f'<figure class="drawing">{html.image(figures.png_uri(figure), words)}</figure>'
    return (image + html.html_table(own, "Certificate, for the experts' own loss")
            + '<p class="soft">In units of each loss. Clean risk: the loss on val images as truly paired, where '
            "that is known; at most: an upper bound of it, from pairs as they are given.</p>"
            + "<details><summary>Measured by other losses</summary>\n"
            f"{html.html_table(others, 'Certificate, other losses')}</details>" * bool(others))


def _tables(path: Path) -> tuple[list[dict], list[dict]]:
    """Rows of certificate.csv by experts, noise rate and loss: of the loss they were trained with, and of others."""
    entries: dict[tuple, dict] = {}
    trained_with: dict[tuple, str] = {}
    try:
        for row in parse_csv(read_verified(path))[1]:
            experts = row["preset"], f"{float(row['eta']):.0%} ({row['source']})"
            if row["measure"] in MEASURES:
                trained_with.setdefault(experts, row["loss"])  # it comes first
                entry = entries.setdefault((*experts, row["loss"]), {})
                entry[MEASURES[row["measure"]]] = f"{float(row['value']):.3g}"
                if row["trivial"]:
                    entry["guessing"] = f"{float(row['trivial']):.3g}"
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error}); run mdw certify again.") from None
    except (KeyError, ValueError):
        raise UserError(f"'{path}' is damaged; run mdw certify again.") from None
    own, others = [], []
    for key, entry in entries.items():
        row = {**dict(zip(("preset", "noise", "loss"), key, strict=True)),
               **{name: entry.get(name) for name in (*MEASURES.values(), "guessing")}}
        (own if trained_with[key[:2]] == key[2] else others).append(row)
    return own, others


def _bounds(run: Run) -> str:
    rows = []
    for experts, preset in distinct_experts(run):
        inputs = (preset.experts or {})["certificate_inputs"]
        for track, entry in (inputs["tracks"] if inputs else {}).items():
            rows.append({"experts": experts, "track": track, "loss": f"{entry['loss']} {entry['q']:g}",
                         "noise": f"{inputs['eta']:.1%}",
                         "cost of noise at most": entry.get("certificate") or f"{entry['excess_risk_bound']:.3g}"})
    return html.html_table(rows, "Certificate") + (
        '<p class="soft">Bounds alone, in units of the loss: <code>mdw certify</code> with the config of this run '
        "measures the effect of the noise, and a new report shows it.</p>")
