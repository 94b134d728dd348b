"""The command line: a thin layer over natdeploy.pipeline, one verb a file."""
