"""What a backbone is taught before any edit."""
