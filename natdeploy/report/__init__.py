"""What a run came to: rows for terminals and programs, and one HTML page for people."""

from natdeploy.report.figures import Round
from natdeploy.report.page import PageData, Quality, write_page
from natdeploy.report.tables import Pick, file_json, front_table, net_json

__all__ = ["PageData", "Pick", "Quality", "Round", "file_json", "front_table", "net_json", "write_page"]
