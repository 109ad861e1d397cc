"""Per paper: settings and sources (YAML), reported numbers (CSV), and how its report is built."""
