"""Protocols, and the scores of prompts under an editor."""
