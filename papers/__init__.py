"""What knows a paper: settings, reported numbers, tables, figures, words. Nobody imports it."""
