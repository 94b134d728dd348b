"""What a run came to, or what is known of it so far: rows for terminals and programs, and one HTML page for people."""

from natdeploy.report.figures import Round
from natdeploy.report.page import PageData, Quality, write_page
from natdeploy.report.standing import Standing, sentence
from natdeploy.report.tables import Pick, file_json, front_table, net_json

__all__ = ["PageData", "Pick", "Quality", "Round", "Standing", "file_json", "front_table", "net_json", "sentence", "write_page"]
