"""Files: what appears whole or not at all, hashes that decide reuse, one cache, archives."""
