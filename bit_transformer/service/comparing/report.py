"""placeholder"""

from pathlib import Path

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


def write_report(folder, plan, findings):
    (Path(folder) / MARKDOWN_FILE).write_text(repr(findings))
