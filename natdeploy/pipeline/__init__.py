"""The one place that knows all rooms: search, resume, profile, predict, export, benchmark, report, demo, weights, tables."""

from natdeploy.distributed.engine import Engine, open_engine
from natdeploy.pipeline.benchmark import benchmark
from natdeploy.pipeline.budget import Budget
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.demo import demo
from natdeploy.pipeline.export import export
from natdeploy.pipeline.export_weights import export_weights
from natdeploy.pipeline.finished import files, load_subnet, nets
from natdeploy.pipeline.model_files import parse_shape
from natdeploy.pipeline.plan import Plan, plan
from natdeploy.pipeline.predict import PredictedLatency, predict
from natdeploy.pipeline.profile import ProfileResult, profile
from natdeploy.pipeline.report import ReportResult, report, write_archive
from natdeploy.pipeline.search import resume, search
from natdeploy.pipeline.serve import serve
from natdeploy.pipeline.supernet import ImportResult, WeightsInfo, supernet_import, supernet_info, supernet_save
from natdeploy.pipeline.tables import TableDetails, TableLine, TableMerge, tables_diff, tables_list, tables_merge, tables_show
from natdeploy.pipeline.tables_import import TableImport, tables_import
from natdeploy.pipeline.timings import BenchmarkResult, is_result, read_result

__all__ = [
    "BenchmarkResult",
    "Budget",
    "Engine",
    "ImportResult",
    "Plan",
    "PredictedLatency",
    "ProfileResult",
    "ReportResult",
    "SearchConfig",
    "TableDetails",
    "TableImport",
    "TableLine",
    "TableMerge",
    "WeightsInfo",
    "benchmark",
    "demo",
    "export",
    "export_weights",
    "files",
    "is_result",
    "load_subnet",
    "nets",
    "open_engine",
    "parse_shape",
    "plan",
    "predict",
    "profile",
    "read_result",
    "report",
    "resume",
    "search",
    "serve",
    "supernet_import",
    "supernet_info",
    "supernet_save",
    "tables_diff",
    "tables_import",
    "tables_list",
    "tables_merge",
    "tables_show",
    "write_archive",
]
