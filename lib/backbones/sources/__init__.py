"""Where backbones come from: packages, folders, the hub, tiny random models."""
