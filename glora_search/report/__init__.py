"""The report of a run: one HTML page that works offline."""

from glora_search.report.page import BUDGET_COLUMNS, budget_rows, result_columns, result_rows, write_report

__all__ = ["BUDGET_COLUMNS", "budget_rows", "result_columns", "result_rows", "write_report"]
