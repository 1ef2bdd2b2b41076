"""The reports of a finished run: report.html, report.json and the model card."""
