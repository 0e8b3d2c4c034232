"""What a run shows: the HTML report and the progress line."""
