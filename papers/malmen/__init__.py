"""MALMEN (Tan, Zhang, Fu; ICLR 2024)."""
