"""The report of a run: one HTML page that works offline."""

from glora_search.report.page import result_rows, write_report

__all__ = ["result_rows", "write_report"]
