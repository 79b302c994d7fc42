"""Pages: contact sheets of searches and reports of models, each one self-contained HTML file."""

from kedge.page.comparison import comparison_page, comparison_summary, comparison_tables
from kedge.page.contact_sheet import contact_sheet
from kedge.page.duplicates_page import duplicates_page, shown_on_page
from kedge.page.report import ReportMaterial, evaluate_to_page, gather_material, report_page
from kedge.page.writing import write_page

__all__ = [
    "ReportMaterial",
    "comparison_page",
    "comparison_summary",
    "comparison_tables",
    "contact_sheet",
    "duplicates_page",
    "evaluate_to_page",
    "gather_material",
    "report_page",
    "shown_on_page",
    "write_page",
]
