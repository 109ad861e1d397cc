"""Static pages: reports, records, the front page, published copies."""
