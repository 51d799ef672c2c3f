"""Everything that pages share: templates, style, scripts, figures, and the way numbers are written."""

REPORT, FIGURES = "report.html", "figures"  # in the folder of a run or a study
