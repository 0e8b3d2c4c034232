"""Trackers: where metrics go besides the run's own files (`report_to`), one file a tracker."""
