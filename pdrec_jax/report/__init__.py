"""Results for people: a plain-text table, plots, and a report.md in the workdir."""
