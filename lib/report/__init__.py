"""What a reader sees: tables, figures, claims, pages."""
